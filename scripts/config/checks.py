"""Whether a configuration can be used, asked once, before anything is made or read."""

import math
import re
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from configs import default
from scripts.config.load import flatten, named_code, refuse_unknown
from scripts.config.schedule import LOG, check_schedule, with_schedule
from scripts.errors import UserError, one_line

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
    "data.image_size": _AT_LEAST_1,
    "data.num_channels": _one_of(1, 3),
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
    """Raise UserError, naming key, value and what is expected, unless process and network can be
    built and trained.
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
            f"config.training.accumulation_steps = {steps}: must be a divisor of training.batch_size = {batch_size}"
        )
    if config.data.group_pattern and config.data.held_out_path:
        shown = f"config.data.group_pattern = {config.data.group_pattern!r}"
        raise UserError(
            f"{shown}: must be empty with config.data.held_out_path = {config.data.held_out_path!r}"
        )
    if config.model.protocol == "released" and config.model.K < 2:
        raise UserError(
            f"config.model.K = {config.model.K}: must be at least 2 with model.protocol = 'released'"
        )
    if config.model.protocol == "released" and config.model.chain:
        raise UserError(
            f"config.model.chain = {config.model.chain!r}: must be empty with model.protocol = 'released'"
        )
    from model_code import PROCESSES, build_process, check_buildable  # imports PyTorch
    from scripts.config import own_process

    process = config.model.process
    if ".py:" in process and process in named_code and process not in PROCESSES:
        own_process.register(process)

    try:
        check_buildable(with_schedule(config, LOG))
    except ValueError as error:
        raise UserError(str(error)) from None
    schedule, power = config.model.blur_schedule, config.training.level_weighting
    process = build_process(with_schedule(config, LOG))
    if not process.level_weights(power).isfinite().all():
        needed = "must be nearer to 0, so that no weight overflows"
        raise UserError(f"config.training.level_weighting = {power!r}: {needed}")
    if schedule != LOG and "model.blur_schedule" not in PROCESSES[config.model.process].reads:
        other = f"process {config.model.process!r} has a blur schedule of its own"
        raise UserError(
            f"config.model.blur_schedule = {one_line(repr(schedule))[:100]}: {other}; must be left at 'log'"
        )
    check_schedule(config)


def doubts(config: ConfigDict) -> list[str]:
    """A line for each key whose value is allowed, but has not the effect that it seems to have.

    Keys with another value than the default that the process does not read, and a warm-up that
    never ends.
    """
    from model_code import HEAT, PROCESSES  # imports PyTorch

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
