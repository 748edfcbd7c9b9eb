"""Accounts: users, how they log in, and their second factor."""
