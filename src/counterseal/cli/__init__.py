"""The program `counterseal`: its commands, what they print and how they end."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line and end the process with its exit code."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["worker"] and "--check" in arguments:
        # The probe of a container runs every few seconds: it answers before the other commands are loaded.
        from counterseal.cli.checking import run_at_once

        if (code := run_at_once(arguments[1:])) is not None:
            sys.exit(code)
    from counterseal.cli.loading import begin_loading

    begin_loading()
    from counterseal.cli.commands import run

    sys.exit(run(arguments))
