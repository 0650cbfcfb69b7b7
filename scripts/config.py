"""Configurations: parsed from the command line, checked once as a whole, compared with those of checkpoints.

Imports nothing heavy, so that `--help` and bad input answer at once.
"""

import difflib
import json
import math
import runpy
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from configs import default
from scripts.errors import USAGE_ERROR, UserError, error_line
from scripts.text import has_control_characters, one_line

ROOT = Path(__file__).resolve().parent.parent

KINDS = {bool: "True or False", int: "an integer", float: "a number", str: "text in one line", tuple: "a tuple of integers"}

# Keys that no machine could meet beyond these; a mistyped one is answered before memory is full.
MOST = {
    "training.batch_size": 2**20,
    "training.n_iters": 2**40,
    "training.num_samples": 2**20,
    "eval.batch_size": 2**20,
    "data.image_size": 4096,
    "data.num_workers": 1024,
    "model.K": 100_000,
    "model.blur_sigma_max": 1e6,
    "model.model_channels": 2**14,
    "model.num_res_blocks": 64,
}
MOST_MULTIPLE = 64
COMPILE_MODES = ("none", "default", "reduce-overhead", "max-autotune")

# Keys that a checkpoint's weights do not depend on.
FREE_ON_RESUME = {"model.delta_over_sigma", "data.num_workers", "data.path"}
FREE_IN_INFERENCE = FREE_ON_RESUME | {"model.dropout", "model.ema_rate", "model.protocol"}


def define_config_flag(required: bool = True) -> flags.FlagHolder:
    """The flag `--config FILE` with its overrides `--config.section.key=value`, for an entry script."""
    holder = config_flags.DEFINE_config_file("config", None, "Configuration file, see configs/.", lock_config=True)
    if required:
        flags.mark_flag_as_required("config")
    return holder


def run(main: Callable[[], int], positional: str | None = None) -> None:
    """Parse the command line and call `main` for its exit code; a UserError becomes one line on stderr and exit code 2.

    positional: a flag that may be given by its value alone.
    """

    def guarded(argv: list[str]) -> int:
        """`main`, with what a user can mend told in a line."""
        try:
            rest = argv[1:]
            if positional is not None and rest and not flags.FLAGS[positional].present:
                flags.FLAGS[positional].value = rest.pop(0)
            if rest:
                raise UserError(f"{rest[0]!r} is not a flag: options are written --name=value")
            return main()
        except (UserError, OSError) as error:  # the disk, permissions: the message names the file
            fail(error)

    warnings.formatwarning = _format_warning
    app.run(guarded, flags_parser=_parse_flags)


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """One line, as for errors."""
    return f"warning: {one_line(message)}\n"


def fail(error: object) -> NoReturn:
    """Print one line and exit."""
    print(error_line(error), file=sys.stderr)
    sys.exit(USAGE_ERROR)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        _check_config_file(argv)
        return flags.FLAGS(argv)
    except (flags.Error, UserError) as error:
        fail(error)
    except (AttributeError, KeyError, IndexError, TypeError):  # ml_collections' ways to say that there is no such key
        fail(_unknown_key(argv))


def _check_config_file(argv: list[str]) -> None:
    """ml_collections reports a missing or broken config file at length; this says it in a line."""
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = arg.partition("=")
        if name.lstrip("-") != "config" or not name.startswith("-"):
            continue
        path = value or following
        if not Path(path).is_file():
            known = ", ".join(sorted(str(p.relative_to(ROOT)) for p in (ROOT / "configs").glob("*/*.py")))
            raise UserError(f"--config={path}: there is no such file; the project's own are {known}")
        try:
            runpy.run_path(path)["get_config"]()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            line = error.lineno if isinstance(error, SyntaxError) else where.lineno
            raise UserError(f"--config={path}: {type(error).__name__}: {error} (line {line})") from error


def _unknown_key(argv: list[str]) -> UserError:
    """Say which `--config.key=value` names something that is not in configs/default.py, and what is near it."""
    known = [key for key, _ in leaves(default.get_config())]
    for arg in argv:
        key = arg.lstrip("-").split("=")[0].removeprefix("config.")
        if arg.lstrip("-").startswith("config.") and key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0)[0]
            return UserError(f"--config.{key}: there is no such key; did you mean --config.{near}?")
    return UserError("--config: the file lacks a key that the command line sets; start from configs/default.py")


def leaves(config: ConfigDict | dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("section.key", value) for everything in a configuration."""
    for key, value in config.items():
        if isinstance(value, ConfigDict | dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_json(config: ConfigDict) -> str:
    """The configuration as JSON, for config.json and checkpoints; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2)


def differences(saved: str, config: ConfigDict) -> dict[str, str]:
    """Keys whose value in the JSON `saved` is another than in `config`: {"model.K": "50, now 100"}."""
    before, now = dict(leaves(json.loads(saved))), dict(leaves(json.loads(to_json(config))))
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


def validate(config: ConfigDict) -> None:
    """Check the whole configuration before anything is built. Raises UserError naming key, value and what would be right."""
    known, given = dict(leaves(default.get_config())), dict(leaves(config))
    for key in given.keys() - known.keys():
        raise UserError(f"config.{key}: there is no such key; configs/default.py lists them all")
    for key in known.keys() - given.keys():
        raise UserError(f"config.{key} is missing: start from configs/default.py's get_config()")
    for key, value in given.items():
        finite(f"config.{key}", value)
        if not _is_like(value, known[key]):
            raise UserError(f"config.{key} = {value!r}: must be {KINDS[type(known[key])]}, such as {known[key]!r}")
    for key, right, ok in _checks(config):
        if not ok:
            raise UserError(f"config.{key} = {given[key]!r}: must be {right}")


def _is_like(value: object, default_value: object) -> bool:
    """Whether a value has the type of its default; whole numbers do for floating-point ones, True does not for 1."""
    if isinstance(default_value, tuple):
        return isinstance(value, tuple | list) and all(_is_like(item, 0) for item in value)
    if isinstance(default_value, str):
        return isinstance(value, str) and not has_control_characters(value)
    if type(value) is int and type(default_value) in (int, float):
        return abs(value) < 2**64
    return type(value) is type(default_value)


def finite(name: str, value: object) -> None:
    """Raise UserError if `value` is an infinite float or not a number."""
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name}={value}: must be a finite number")


def _checks(config: ConfigDict) -> Iterator[tuple[str, str, bool]]:
    """(key, what would be right, whether it is), later ones relying on earlier ones."""
    training, evaluation, data, model, optim = config.training, config.eval, config.data, config.model, config.optim

    for section, names in (
        ("training", "batch_size accumulation_steps n_iters log_freq eval_freq sampling_freq num_samples "
         "snapshot_freq snapshot_freq_for_preemption max_bad_steps"),
        ("eval", "batch_size"),
        ("data", "image_size"),
        ("model", "K model_channels num_res_blocks num_heads"),
    ):  # fmt: skip
        for name in names.split():
            yield f"{section}.{name}", "an integer of at least 1", config[section][name] >= 1
    for key, most in MOST.items():
        section, _, name = key.partition(".")
        yield key, f"at most {most}", config[section][name] <= most
    yield "seed", "an integer from 0 to 2^64 - 1", config.seed >= 0
    yield (
        "training.accumulation_steps",
        f"a divisor of training.batch_size = {training.batch_size}",
        training.batch_size % training.accumulation_steps == 0,
    )
    yield "training.level_weighting", "from -4 to 4", -4 <= training.level_weighting <= 4
    yield "compile", f"one of {', '.join(COMPILE_MODES)}", config.compile in COMPILE_MODES
    yield "eval.num_images", "an integer of at least 0 (0 takes all)", evaluation.num_images >= 0
    yield "data.num_channels", "1 or 3", data.num_channels in (1, 3)
    yield "data.num_workers", "an integer of at least 0", data.num_workers >= 0

    yield "model.protocol", "'paper' or 'released'", model.protocol in ("paper", "released")
    yield "model.K", "at least 2 with model.protocol = 'released'", model.protocol == "paper" or model.K >= 2
    yield "model.blur_sigma_min", "greater than 0", model.blur_sigma_min > 0
    yield (
        "model.blur_sigma_max",
        f"at least model.blur_sigma_min = {model.blur_sigma_min}",
        model.blur_sigma_max >= model.blur_sigma_min,
    )
    yield "model.sigma", "greater than 0", model.sigma > 0
    yield "model.delta_over_sigma", "at least 0", model.delta_over_sigma >= 0
    yield "model.ema_rate", "in [0, 1)", 0 <= model.ema_rate < 1
    yield "model.dropout", "in [0, 1)", 0 <= model.dropout < 1
    yield from _network_checks(config)

    yield "optim.optimizer", "'Adam' or 'AdamW'", optim.optimizer in ("Adam", "AdamW")
    yield "optim.schedule", "'constant' or 'cosine'", optim.schedule in ("constant", "cosine")
    yield "optim.amp_dtype", "'auto', 'bfloat16' or 'float16'", optim.amp_dtype in ("auto", "bfloat16", "float16")
    yield "optim.fp16_fallback", "'', 'bfloat16' or 'float32'", optim.fp16_fallback in ("", "bfloat16", "float32")
    yield "optim.lr", "greater than 0", optim.lr > 0
    yield "optim.eps", "greater than 0", optim.eps > 0
    yield "optim.beta1", "in [0, 1)", 0 <= optim.beta1 < 1
    yield "optim.beta2", "in [0, 1)", 0 <= optim.beta2 < 1
    for name in ("warmup", "weight_decay", "grad_clip"):
        yield f"optim.{name}", "at least 0", optim[name] >= 0


def _network_checks(config: ConfigDict) -> Iterator[tuple[str, str, bool]]:
    data, model = config.data, config.model
    levels = len(model.channel_mult)
    positive = levels > 0 and all(1 <= mult <= MOST_MULTIPLE for mult in model.channel_mult)
    yield "model.channel_mult", f"one positive integer of at most {MOST_MULTIPLE} per level, such as (1, 2, 2)", positive
    yield "model.model_channels", "a multiple of 32, the number of groups in GroupNorm", model.model_channels % 32 == 0
    factor = 2 ** min(levels - 1, 64)
    yield "data.image_size", f"divisible by {factor}, for {levels} levels in model.channel_mult", data.image_size % factor == 0
    in_range = all(0 <= level < levels for level in model.attention_levels)
    yield "model.attention_levels", f"levels from 0 to {levels - 1}, as model.channel_mult has {levels}", in_range
    attended = {model.channel_mult[level] for level in model.attention_levels} | {model.channel_mult[-1]}
    divides = all(model.model_channels * mult % model.num_heads == 0 for mult in attended)
    yield "model.num_heads", "a divisor of the channels at every level with attention", divides
