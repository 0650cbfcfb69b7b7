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
    """The configuration of FILE or FILE:ARGUMENT, whose `get_config` gets the argument, completed
    by the defaults.

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
        given = runpy.run_path(str(path))["get_config"](*[argument] * bool(colon))
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"--config={text}: {error_with_line(error, path)}") from error
    if not isinstance(given, ConfigDict | dict):
        raise UserError(
            f"--config={text}: its get_config() returns {type(given).__name__}, not a ConfigDict"
        )
    config = _completed(given, f"--config={text}")
    trusted_processes.add(config.model.process)
    return config


def error_with_line(error: Exception, path: Path) -> str:
    """An error of code in a file of the user's, with the line of that file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def from_json(text: str, where: str) -> ConfigDict:
    """The configuration that `to_json` wrote, completed by the defaults.

    Raises UserError, naming `where`, if it is none.
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise UserError(f"{where}: not the JSON of a configuration ({error})") from None
    sections = [key for key, value in default.get_config().items() if isinstance(value, ConfigDict)]
    for section in sections:
        if not isinstance(given, dict) or not isinstance(given.get(section), dict):
            raise UserError(
                f"{where}: not the JSON of a configuration (it has no section {section!r})"
            )
    known = dict(flatten(default.get_config()))
    # Keys of the training that an earlier version had, and the run's provenance, mean nothing here.
    values = {
        key: value
        for key, value in saved_values(given).items()
        if key in known or key.startswith(("model.", "data."))
    }
    return _completed(values, where)


def saved_values(config: dict[str, Any]) -> dict[str, Any]:
    """Values by "section.key" of a configuration that this or an earlier version saved as JSON."""
    return dict(item for item in flatten(config) if item not in RETIRED)


def _completed(given: ConfigDict | dict, where: str) -> ConfigDict:
    """The defaults with the values of `given`.

    Raises UserError for unknown keys and for values of another kind.
    """
    config, values, schedule = default.get_config(), dict(flatten(given)), None
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
    if (
        schedule is not None
    ):  # the release's files have a table, nearly always the one that K and both ends give
        numbers = np.asarray(schedule).tolist()
        config.model.blur_schedule = "log" if release.is_log(schedule, config.model) else numbers
    release.check_release_keys(values, config.model)
    return config


def _converted(value: Any, kind: type) -> Any:
    """The value as of another kind where it means the same: an integer as a float, a NumPy number,
    a torch.device.
    """
    alike = {float: numbers.Real, int: numbers.Integral, tuple: list}.get(kind)
    if alike is not None and isinstance(value, alike) and not isinstance(value, bool):
        return kind(value)
    return str(value) if type(value).__name__ == "device" else value


def refuse_unknown(keys: Iterable[str]) -> None:
    """Raise UserError for a "section.key" that is not in configs/default.py."""
    known = dict(flatten(default.get_config()))
    for key in sorted(keys):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            raise UserError(
                f"config.{key}: there is no such key in configs/default.py; did you mean "
                f"config.{near}?"
            )


def flatten(config: ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", value) for everything in a configuration."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON, for config.json and checkpoints; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2)
