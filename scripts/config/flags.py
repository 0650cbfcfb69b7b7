"""Flags of the entry scripts and tools, and how bad input ends: in one line."""

import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from scripts.config import release
from scripts.config.load import load, refuse_unknown
from scripts.config.paths import user_path
from scripts.errors import USAGE_ERROR, UserError, error_line, one_line


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


def define_kernel_flags() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """--delta, --steps and --eta: which reverse kernel to sample with, and which levels to visit."""
    delta = "Sampling noise: a standard deviation, spectral or calibrated; by default calibrated where that was measured."
    steps = "Network calls for a sample: N (evenly spaced levels), N:bound (for the best bound) or all levels K,...,0."
    return (
        flags.DEFINE_string("delta", None, delta),
        flags.DEFINE_string("steps", None, f"{steps} By default all levels."),
        flags.DEFINE_float("eta", None, "For blurring diffusion: 1 is ancestral sampling, 0 deterministic (DDIM).", 0.0, 1.0),
    )


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
