"""Versions: one module a migration, never changed once it is released."""
