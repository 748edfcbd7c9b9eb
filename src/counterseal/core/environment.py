"""Environment: the variables that settings are read from, of the process and of a `.env` file.

Apart from the settings, so that what has to answer at once can know the data folder without them.
"""

from __future__ import annotations

import os
from pathlib import Path

from dotenv.parser import parse_stream

from counterseal.core.errors import ConfigurationError

ENVIRONMENT_FILE = ".env"
DATA_DIR = "COUNTERSEAL_DATA_DIR"
DEFAULT_DATA_DIR = Path(".counterseal")


def read_environment() -> dict[str, str]:
    """The variables of the current folder's `.env` file, then those of the process. Raises `ConfigurationError`."""
    return {**_read_file(Path(ENVIRONMENT_FILE)), **os.environ}


def read_data_dir() -> Path:
    """Where data is kept, as the settings say. Raises `ConfigurationError` for a `.env` file that can't be read."""
    given = read_environment().get(DATA_DIR, "")
    return Path(given) if given.strip() else DEFAULT_DATA_DIR


def _read_file(path: Path) -> dict[str, str]:
    """The variables of a `.env` file, as they stand; none when there is no such file."""
    try:
        with path.open(encoding="utf-8") as file:
            lines = list(parse_stream(file))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(f"{path}: expected UTF-8 text that may be read; it can't be") from None
    if faults := [line.original.line for line in lines if line.error]:
        raise ConfigurationError(
            [f"{path}: expected NAME=value in line {number}; came: something else" for number in faults]
        )
    return {line.key: line.value or "" for line in lines if line.key}
