"""Configurations: read from files, completed by the defaults, as plain JSON."""

import difflib
import json
import numbers
import runpy
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from configs import default
from scripts.config import release
from scripts.config.paths import ROOT, user_path
from scripts.errors import UserError, one_line

RUN_CONFIG = "config.json"
"""In a run directory: its configuration."""

RETIRED = (("model.sees_means", False),)
"""Keys that earlier versions had, with the value at which they had no effect."""

trusted_processes: set[str] = set()
"""Values of config.model.process that the command line or a configuration in Python named: a file
that one of these names may run."""


def load(text: str) -> ConfigDict:
    """Return the configuration of FILE or FILE:ARGUMENT, whose `get_config` gets the argument,
    completed by the defaults.

    A file that ends with .json holds one as `to_json` writes it, as each run directory does.

    Raises UserError for a file that is missing, fails, or has keys that are not in
    configs/default.py.
    """
    name, colon, argument = text.partition(".py:")  # other colons are part of a path
    path = user_path(f"{name}.py" if colon else name, "--config")
    if not path.is_file():
        raise UserError(
            f"--config={text}: there is no such file; the project's own are in {ROOT / 'configs'}"
        )
    try:
        if path.suffix == ".json":
            return from_json(path.read_text(), f"--config={text}")
        get_config = runpy.run_path(str(path))["get_config"]
        loaded = get_config(argument) if colon else get_config()
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={text}: {error_with_line(error, path)}") from error
    if not isinstance(loaded, ConfigDict | dict):
        kind = type(loaded).__name__
        raise UserError(f"--config={text}: its get_config() returns {kind}, not a ConfigDict")
    config = _completed(loaded, f"--config={text}")
    trusted_processes.add(config.model.process)
    return config


def error_with_line(error: Exception, path: Path) -> str:
    """Return an error of code in a file of the user's, with the line of that file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def from_json(text: str, where: str) -> ConfigDict:
    """Return the configuration that `to_json` wrote, completed by the defaults.

    Raises UserError, naming `where`, if it is none.
    """
    try:
        saved = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not the JSON of a configuration ({error})") from None
    sections = [key for key, value in default.get_config().items() if isinstance(value, ConfigDict)]
    for section in sections:
        if not isinstance(saved, dict) or not isinstance(saved.get(section), dict):
            what = f"not the JSON of a configuration (it has no section {section!r})"
            raise UserError(f"{where}: {what}")
    defaults = dict(flatten(default.get_config()))
    # Keys of the training that an earlier version had, and the run's provenance, mean nothing here.
    values = {
        key: value
        for key, value in saved_values(saved).items()
        if key in defaults or key.startswith(("model.", "data."))
    }
    return _completed(values, where)


def saved_values(config: dict[str, Any]) -> dict[str, Any]:
    """Values by "section.key" of a configuration that this or an earlier version saved as JSON."""
    return dict(item for item in flatten(config) if item not in RETIRED)


def _completed(partial: ConfigDict | dict, where: str) -> ConfigDict:
    """Return the defaults with the values of `partial`.

    Raises UserError for unknown keys and for values of another kind.
    """
    config, values = default.get_config(), dict(flatten(partial))
    schedule = None
    refuse_unknown(values.keys() - release.KEYS)
    for key, default_value in flatten(default.get_config()):
        if key == "model.blur_schedule" and not isinstance(values.get(key, ""), str):
            schedule = values.pop(key)
        elif key in values:
            value = _converted(values.pop(key), type(default_value))
            if key == "data.image_size" and isinstance(value, list | tuple):
                value = tuple(_converted(side, int) for side in value)
            elif type(value) is not type(default_value):
                right = f"{type(default_value).__name__}, such as {default_value!r}"
                raise UserError(f"{where}: config.{key} = {one_line(value)[:100]}: must be {right}")
            config.update_from_flattened_dict({key: value})
    # The release's files have a table, nearly always the one that K and both ends give.
    if schedule is not None and not release.is_log(schedule, config.model):
        config.model.blur_schedule = np.asarray(schedule).tolist()
    release.check_release_keys(values, config.model)
    return config


def _converted(value: Any, kind: type) -> Any:
    """Return the value as of another kind where it means the same: an integer as a float, a NumPy
    number, a torch.device.
    """
    alike = {float: numbers.Real, int: numbers.Integral, tuple: list}.get(kind)
    if alike is not None and isinstance(value, alike) and not isinstance(value, bool):
        return kind(value)
    return str(value) if type(value).__name__ == "device" else value


def refuse_unknown(keys: Iterable[str]) -> None:
    """Raise UserError for a "section.key" that is not in configs/default.py."""
    defaults = dict(flatten(default.get_config()))
    for key in sorted(keys):
        if key not in defaults:
            near = difflib.get_close_matches(key, defaults, n=1, cutoff=0)[0]
            missing = f"config.{key}: there is no such key in configs/default.py"
            raise UserError(f"{missing}; did you mean config.{near}?")


def flatten(config: ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ("section.key", value) for everything in a configuration."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """Return the configuration as JSON, for config.json and checkpoints; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2)
