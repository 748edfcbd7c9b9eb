"""Migrations: how the tables came to be, a module of `versions` each."""
