"""Loading: no garbage is looked for while a command is loaded.

What is imported lives as long as the process. The collector would go through it again and again and find nothing: that
is a quarter of the time in which a command starts.
"""

from __future__ import annotations

import gc


def begin_loading() -> None:
    """Look for no garbage until `end_loading`."""
    gc.disable()


def end_loading() -> None:
    """Look for garbage, but not in what is there now."""
    gc.freeze()
    gc.enable()
