"""Whether a configuration can be used, asked once, before anything is made or read."""

import math
import re
import runpy
import zlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import default
from model_code import HEAT, KEY, PROCESSES, Preset, configured_chain
from model_code.gaussian import GaussianProcess
from model_code.process import Process, next_levels
from scripts.config.load import error_with_line, flatten, named_code, refuse_unknown
from scripts.config.paths import user_path
from scripts.errors import UserError

process_checksums: dict[str, int] = {}
"""CRC32 of each file of a user's process that has run, by the value of config.model.process."""
Check = tuple[str, Callable[[Any], bool]]
"""What is expected of a value, for messages, and whether a value is that."""


def _one_of(*choices: object) -> Check:
    return f"one of {', '.join(map(repr, choices))}", lambda value: value in choices


_AT_LEAST_1: Check = "at least 1", lambda value: value >= 1
_AT_LEAST_0: Check = "at least 0", lambda value: 0 <= value < math.inf
_POSITIVE: Check = "greater than 0", lambda value: 0 < value < math.inf
_FRACTION: Check = "in [0, 1)", lambda value: 0 <= value < 1


def _is_group_pattern(text: str) -> bool:
    try:
        return text == "" or re.compile(text).groups > 0
    except re.error:
        return False


def _is_image_size(size: object) -> bool:
    sides = size if isinstance(size, tuple | list) else (size, size)
    return len(sides) == 2 and all(type(side) is int and side >= 1 for side in sides)


CHECKS: dict[str, Check] = {
    "seed": ("an integer from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64),
    "compile": _one_of("none", "default", "reduce-overhead", "max-autotune"),
    "distributed_timeout_minutes": _POSITIVE,
    "training.batch_size": _AT_LEAST_1,
    "training.accumulation_steps": _AT_LEAST_1,
    "training.n_iters": _AT_LEAST_1,
    "training.log_freq": _AT_LEAST_1,
    "training.eval_freq": _AT_LEAST_1,
    "training.sampling_freq": _AT_LEAST_1,
    "training.num_samples": _AT_LEAST_1,
    "training.noise_images": ("at least 2", lambda value: value >= 2),
    "training.snapshot_freq": _AT_LEAST_1,
    "training.keep_snapshots": _AT_LEAST_0,
    "training.snapshot_freq_for_preemption": _AT_LEAST_1,
    "training.max_nonfinite_steps": _AT_LEAST_1,
    "eval.batch_size": _AT_LEAST_1,
    "eval.num_images": _AT_LEAST_0,
    "data.group_pattern": (
        "a regular expression with a group, such as '(sub-[0-9]+)'",
        _is_group_pattern,
    ),
    "data.image_size": (
        "a number of pixels for both sides, or (height, width), at least 1",
        _is_image_size,
    ),
    "data.fit": _one_of("crop", "pad", "stretch"),
    "data.num_channels": _AT_LEAST_1,
    "data.num_workers": ("at least 0, or -1", lambda value: value >= -1),
    "model.protocol": _one_of("paper", "released"),
    "model.K": _AT_LEAST_1,
    "model.blur_sigma_min": _POSITIVE,
    "model.sigma": _POSITIVE,
    "model.delta_over_sigma": _AT_LEAST_0,
    "model.ema_rate": _FRACTION,
    "model.dropout": _FRACTION,
    "optim.optimizer": _one_of("Adam", "AdamW"),
    "optim.lr": _POSITIVE,
    "optim.warmup": _AT_LEAST_0,
    "optim.schedule": _one_of("constant", "cosine"),
    "optim.beta1": _FRACTION,
    "optim.beta2": _FRACTION,
    "optim.eps": _POSITIVE,
    "optim.weight_decay": _AT_LEAST_0,
    "optim.grad_clip": _AT_LEAST_0,
    "optim.amp_dtype": _one_of("auto", "bfloat16", "float16"),
}
"""By "section.key". The network's own settings are checked where it is built."""


def validate(config: ConfigDict) -> None:
    """Raise UserError, naming key, value and what is expected, unless all values are in range.

    Whether process and network can be built is seen when they are, by `resolve`. Runs the file of
    a process that the command line names.
    """
    given = dict(flatten(config))
    refuse_unknown(given)
    for key, (expected, holds) in CHECKS.items():
        if not holds(given[key]):
            raise UserError(f"config.{key} = {given[key]!r}: must be {expected}")
    for key, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"config.{key} = {value!r}: must be a finite number")
    batch_size, steps = config.training.batch_size, config.training.accumulation_steps
    if batch_size % steps:
        raise UserError(
            f"config.training.accumulation_steps = {steps}: must be a divisor of "
            f"training.batch_size = {batch_size}"
        )
    if config.data.group_pattern and config.data.held_out_path:
        shown = f"config.data.group_pattern = {config.data.group_pattern!r}"
        raise UserError(
            f"{shown}: must be empty with config.data.held_out_path = {config.data.held_out_path!r}"
        )
    if config.model.protocol == "released":
        released = "with model.protocol = 'released'"
        if config.model.K < 2:
            raise UserError(f"config.model.K = {config.model.K}: must be at least 2 {released}")
        if config.model.chain:
            shown = f"config.model.chain = {config.model.chain!r}"
            raise UserError(f"{shown}: must be empty {released}")
    name = config.model.process
    if ".py:" in name and name in named_code and name not in PROCESSES:
        register_process(name)


def doubts(config: ConfigDict) -> list[str]:
    """A line for each key whose value is allowed, but has not the effect that it seems to have.

    Keys with another value than the default that the process does not read, and a warm-up that
    never ends.
    """
    given, defaults = (dict(flatten(c)) for c in (config, default.get_config()))
    name, warmup, n_iters = config.model.process, config.optim.warmup, config.training.n_iters
    keys = sorted(HEAT - PROCESSES[name].reads)
    changed = [key for key in keys if given[key] != defaults[key]]
    lines = [f"config.{key} = {given[key]}: not read by process {name}" for key in changed]
    if warmup > n_iters:
        share = f"{n_iters / warmup:.2g} of config.optim.lr is reached"
        reached = f"{share} in training.n_iters = {n_iters}"
        lines.append(f"config.optim.warmup = {warmup}: is longer than the run: {reached}")
    return lines


def register_process(name: str) -> None:
    """Run the file and enter its class. Raises UserError if that cannot be done.

    Only for a value in `named_code`: a checkpoint or JSON must never run code.
    """
    text, _, class_name = name.rpartition(":")
    path, shown = user_path(text, KEY), f"{KEY} = {name!r}"
    if not path.is_file():
        raise UserError(f"{shown}: there is no such file")
    try:
        found: Any = runpy.run_path(str(path)).get(class_name)
    except Exception as error:
        raise UserError(f"{shown}: {error_with_line(error, path)}") from error
    if not isinstance(found, type) or not issubclass(found, Process):
        raise UserError(f"{shown}: the file has no class {class_name}, a subclass of Process")

    factory: Any = found

    def build(config: ConfigDict) -> Process:
        process: Process = factory(config)
        process.chain = configured_chain(config)
        if isinstance(process, GaussianProcess):
            process.next_level = next_levels(process.chain, process.K)
        return process

    PROCESSES[name] = Preset(build)
    process_checksums[name] = zlib.crc32(path.read_bytes())
