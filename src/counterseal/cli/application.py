"""Application: the `Counterseal` that `--app package.module:create` names, or the one of the settings alone."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from counterseal.app import Counterseal
from counterseal.cli.loading import end_loading
from counterseal.core.environment import DATA_DIR
from counterseal.core.errors import ConfigurationError, CountersealError
from counterseal.core.settings import Settings


def open_application(name: str | None, *, data_dir: Path | None) -> Counterseal:
    """Call the factory, or make a `Counterseal` of the settings when no application is named. It is not open yet.

    The current folder can be imported from. `data_dir` reaches the application as `COUNTERSEAL_DATA_DIR`. Raises
    `ConfigurationError` with a sentence. All that the command needs is loaded then.
    """
    seal = _open(name, data_dir=data_dir)
    end_loading()
    return seal


def _open(name: str | None, *, data_dir: Path | None) -> Counterseal:
    if name is None:
        return Counterseal.open(Settings.load(data_dir=data_dir))
    if data_dir is not None:
        os.environ[DATA_DIR] = str(data_dir)
    seal = _call(name)
    if data_dir is not None and seal.settings.data_dir.absolute() != data_dir.absolute():
        raise ConfigurationError(
            f"--data-dir: expected to be left out, as {name} does not take its data folder from {DATA_DIR}"
        )
    return seal


def _call(name: str) -> Counterseal:
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigurationError(f"--app: expected package.module:create; came: {ascii(name[:60])[1:-1]}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: object = import_module(module_name)
    except ModuleNotFoundError as fault:
        missing = fault.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise ConfigurationError(
                f"--app: expected a module that can be imported; there is no {missing} in {here} or in the environment"
            ) from None
        _refuse(f"the module {module_name}", fault)
    except Exception as fault:  # noqa: BLE001 - whatever an application raises is told in a sentence
        _refuse(f"the module {module_name}", fault)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(
                f"--app: expected a function; the module {module_name} has no {attribute}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise ConfigurationError(
            f"--app: expected a function that returns a Counterseal; {name} is of type {type(found).__name__}"
        )
    try:
        made: object = found()
    except ConfigurationError:
        raise
    except Exception as fault:  # noqa: BLE001
        _refuse(name, fault)
    if not isinstance(made, Counterseal):
        if inspect.iscoroutine(made):
            made.close()
        raise ConfigurationError(
            f"--app: expected a function that returns a Counterseal; {name} returned a {type(made).__name__}"
        )
    return made


def _refuse(what: str, fault: Exception) -> NoReturn:
    """The text of a foreign error may hold anything, a password too: it is told when it is about names."""
    frames = traceback.extract_tb(fault.__traceback__)
    last = frames[-1]
    where = f" in {Path(last.filename).name}, line {last.lineno}"
    known = isinstance(fault, (ImportError, SyntaxError, NameError, AttributeError, CountersealError))
    text = f": {fault}" if known and str(fault) else ""
    raise ConfigurationError(
        f"--app: {what} raised {type(fault).__name__}{where}{' '.join(text.split(chr(10)))}"
    ) from fault
