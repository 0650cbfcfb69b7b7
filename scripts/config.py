"""Configurations: read from files and the command line, compared with those of checkpoints.

Imports nothing heavy, so that `--help` and bad input answer at once.
"""

import difflib
import json
import numbers
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from configs import default
from scripts import release
from scripts.errors import USAGE_ERROR, UserError, error_line, one_line
from scripts.io import user_path

ROOT = Path(__file__).resolve().parent.parent

# Keys of model and data that trained weights do not depend on; optim and training are always free.
FREE_ON_RESUME = {"model.delta_over_sigma", "model.sampling_noise", "data.num_workers", "data.path"}
FREE_IN_INFERENCE = FREE_ON_RESUME | {
    *("model.dropout", "model.ema_rate", "model.protocol", "data.uniform_dequantization", "data.random_flip")
}


class _Parser(flags.ArgumentParser):
    """A function as the parser of a flag's value."""

    def __init__(self, function: Callable[[str], object]) -> None:
        self._function = function

    def parse(self, argument: str) -> object:
        return self._function(argument)


def define_config_flag(required: bool = True) -> flags.FlagHolder:
    """The flag `--config FILE` with its overrides `--config.section.key=value`, for an entry script."""
    holder = config_flags.DEFINE_config_file("config", None, "Configuration file, see configs/.")
    flags.FLAGS["config"].parser = _Parser(lambda path: load(path).lock())  # ml_collections applies the overrides afterwards
    if required:
        flags.mark_flag_as_required("config")
    return holder


def define_path_flag(name: str, help_text: str, required: bool = False) -> flags.FlagHolder:
    """A flag whose value is a Path with ~ expanded, or None."""
    parser = _Parser(lambda text: user_path(text, f"--{name}"))
    return flags.DEFINE(parser, name, None, help_text, serializer=flags.ArgumentSerializer(), required=required)


def run(main: Callable[[], int], positional: str | None = None) -> None:
    """Parse the command line and call `main` for its exit code; a UserError becomes one line on stderr and exit code 2.

    positional: a flag that may be given by its value alone.
    """

    def guarded(argv: list[str]) -> int:
        """`main`, its errors in one line."""
        try:
            rest = argv[1:]
            if positional is not None and rest and not flags.FLAGS[positional].present:
                flags.FLAGS[positional].parse(rest.pop(0))
            if rest:
                raise UserError(f"{rest[0]!r} is not a flag: options are written --name=value")
            release.warn_of_release_flags()
            return main()
        except (UserError, OSError, flags.Error) as error:  # OSError: a full disk, permissions; the message names the file
            fail(error)

    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(message)}\n"
    app.run(guarded, flags_parser=_parse_flags)


def fail(error: object) -> NoReturn:
    """Print one line and exit."""
    print(error_line(error), file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(error.__context__ if isinstance(error.__context__, UserError) else error)
    except (AttributeError, KeyError, IndexError, TypeError) as error:  # ml_collections' ways to say that there is no such key
        names = (arg.lstrip("-").partition("=")[0] for arg in argv)
        try:
            refuse_unknown(name.removeprefix("config.") for name in names if name.startswith("config."))
        except UserError as unknown:
            fail(unknown)
        fail(error)


def load(text: str) -> ConfigDict:
    """The configuration of FILE or FILE:ARGUMENT, whose `get_config` gets the argument, completed by the defaults.

    Raises UserError for a file that is missing, fails, or has keys that are not in configs/default.py.
    """
    name, colon, argument = text.partition(":")
    path = user_path(name, "--config")
    if not path.is_file():
        raise UserError(f"--config={text}: there is no such file; the project's own are in {ROOT / 'configs'}")
    try:
        given = runpy.run_path(str(path))["get_config"](*[argument] * bool(colon))
    except Exception as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        where = f" (line {lines[-1]})" if lines else ""
        raise UserError(f"--config={text}: {type(error).__name__}: {error}{where}") from error
    if not isinstance(given, ConfigDict | dict):
        raise UserError(f"--config={text}: its get_config() returns {type(given).__name__}, not a ConfigDict")
    config, values = default.get_config(), dict(flatten(given))
    refuse_unknown(values.keys() - release.KEYS)
    for key, default_value in flatten(default.get_config()):
        if key in values:
            value = _converted(values.pop(key), type(default_value))
            if type(value) is not type(default_value):
                right = f"{type(default_value).__name__}, such as {default_value!r}"
                raise UserError(f"--config={text}: config.{key} = {one_line(value)[:100]}: must be {right}")
            config.update_from_flattened_dict({key: value})
    release.check_release_keys(values, config.model)
    return config


def _converted(value: Any, kind: type) -> Any:
    """The value as of another kind where it means the same: an integer as a float, a NumPy number, a torch.device."""
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
            raise UserError(f"config.{key}: there is no such key in configs/default.py; did you mean config.{near}?")


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


def differences(saved: str, config: ConfigDict) -> dict[str, str]:
    """Keys whose value in the JSON `saved` is another than in `config`: {"model.K": "50, now 100"}.

    Keys that a `saved` of an earlier version lacks had the behaviour of today's defaults.
    """
    defaults, now = (dict(flatten(json.loads(to_json(c)))) for c in (default.get_config(), config))
    before = defaults | dict(flatten(json.loads(saved)))
    return {
        key: f"{before.get(key, 'absent')}, now {now.get(key, 'absent')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def refuse_differences(saved: str, config: ConfigDict, free: set[str], where: str) -> None:
    """Raise UserError if `config` describes other weights or data than the JSON `saved` of the checkpoint `where`."""
    changed = {
        key: change
        for key, change in differences(saved, config).items()
        if key.startswith(("model.", "data.")) and key not in free
    }
    if changed:
        listed = "; ".join(f"config.{key} was {change}" for key, change in changed.items())
        raise UserError(f"{where} was made with another configuration: {listed}")
