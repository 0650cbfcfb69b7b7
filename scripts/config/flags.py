"""Flags of the entry scripts and tools, and how bad input ends: in one line."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from ml_collections import config_flags

from scripts.config import release
from scripts.config.load import RUN_CONFIG, load, refuse_unknown
from scripts.config.paths import user_path
from scripts.errors import USAGE_ERROR, UserError, error_line, expected, one_line


class _Parser(flags.ArgumentParser):
    """A function as the parser of a flag's value."""

    def __init__(self, function: Callable[[str], object]) -> None:
        self._function = function

    def parse(self, argument: str) -> object:
        return self._function(argument)


def define_config_flag(required: bool = True) -> flags.FlagHolder:
    """The flag `--config FILE` with its overrides `--config.section.key=value`, for an entry script."""
    text = "Configuration: a file of configs/ or your own, or the config.json of a run; by default that in --workdir."
    # ml_collections defines a flag for each --config.section.key that it finds in sys.argv, parses them into the flag's value,
    # and has its own way to read FILE and to say that a key is unknown. Here the run's own configuration is put into sys.argv
    # first, where only --workdir names it; FILE is read by `load`, which completes it by the defaults and takes JSON, too; and
    # the result is locked, so that an unknown key is an error, which `_parse_flags` turns into one line.
    sys.argv[:] = _with_config_of_run(sys.argv)
    try:
        holder = config_flags.DEFINE_config_file("config", None, text)
    except flags.Error as error:  # a --flagfile that cannot be opened
        fail(error)
    flags.FLAGS["config"].parser = _Parser(lambda path: load(path).lock())
    if required:
        needed = "is needed: a configuration file, or a --workdir with a config.json"
        flags.register_validator("config", lambda config: config is not None, needed)
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


def define_init_flags() -> tuple[flags.FlagHolder, flags.FlagHolder, flags.FlagHolder]:
    """--init, --per_init and --from_level: images that samples start from, instead of those of the prior."""
    init = "Images to start from: held_out, train, a folder, an image or an array (.npy, .npz); by default the prior's."
    return (
        flags.DEFINE_string("init", None, init),
        flags.DEFINE_integer("per_init", None, "Samples of each of these images; they differ in the noise.", lower_bound=1),
        flags.DEFINE_integer("from_level", None, "The level to which these images are blurred; by default K.", lower_bound=1),
    )


def refuse_meaningless(*cases: tuple[flags.FlagHolder, str | bool]) -> None:
    """Raise UserError for a flag that was given beside something that makes it meaningless, such as "without --init"."""
    for flag, why in cases:
        if why and flags.FLAGS[flag.name].present:
            raise UserError(f"--{flag.name} has no meaning {why}: leave it out")


def run(main: Callable[[], int], positional: str | None = None) -> None:
    """Parse the command line and call `main` for its exit code; a UserError becomes one line on stderr and exit code 2.

    positional: a flag that may be given by its value alone, or by its values if it takes many.
    """

    def guarded(argv: list[str]) -> int:
        """`main`, its errors in one line."""
        try:
            rest = argv[1:]
            if positional is not None and rest and not flags.FLAGS[positional].present:
                many = isinstance(flags.FLAGS[positional], flags.MultiFlag)
                flags.FLAGS[positional].parse(rest if many else rest[0])
                rest = [] if many else rest[1:]
            if rest:
                raise UserError(f"{rest[0]!r} is not a flag: options are written --name=value")
            release.warn_of_release_flags()
            return main()
        except Exception as error:
            line = str(error) if isinstance(error, flags.Error) else expected(error)
            if line is None:
                raise
            fail(line)

    warnings.formatwarning = lambda message, *_, **__: f"warning: {one_line(message)}\n"
    app.run(guarded, flags_parser=_parse_flags)


def fail(error: object) -> NoReturn:
    """Print one line and exit."""
    print(error_line(error), file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _with_config_of_run(argv: list[str]) -> list[str]:
    """The command line with --config=W/config.json where it has --workdir W and no --config, if there is such a file.

    At its front, so that --config.section.key=value overrides it.
    """
    if any(arg.lstrip("-").partition("=")[0] == "config" for arg in argv if arg[:1] == "-"):
        return argv
    for i, arg in enumerate(argv):
        name, _, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == "workdir":
            file = Path(value or "".join(argv[i + 1 : i + 2])).expanduser() / RUN_CONFIG
            return [argv[0], f"--config={file}", *argv[1:]] if file.is_file() else argv
    return argv


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
