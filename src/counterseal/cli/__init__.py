"""The program `counterseal`: its commands, what they print and how they end."""

from counterseal.cli.commands import main

__all__ = ["main"]
