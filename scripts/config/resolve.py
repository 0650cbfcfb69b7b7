"""What a configuration stands for: checked, with blur levels as numbers, process and network; also
with those of a checkpoint that it has to agree with.
"""

import json
import math
import re
import runpy
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch.nn import Module

from configs import default
from model_code import (
    HEAT,
    PROCESS_KEY,
    PROCESSES,
    Preset,
    build_model,
    build_process,
    configured_chain,
)
from model_code.gaussian import GaussianProcess
from model_code.process import Process, next_levels
from model_code.unet import image_shape
from scripts.config.load import (
    error_with_line,
    flatten,
    refuse_unknown,
    saved_values,
    to_json,
    trusted_processes,
)
from scripts.config.paths import user_path
from scripts.config.release import log_levels
from scripts.errors import UserError, one_line

SCHEDULE_KEY = "config.model.blur_schedule"
LOG, MATCHED = "log", "matched"

TRAINING_ONLY = {"model.dropout", "model.ema_rate"}
"""Keys that act during training only: their effect is in the weights."""
# Those of optim and training are always free. Blur schedules are compared by their levels.
FREE = {
    "model.delta_over_sigma",
    "model.sampling_noise",
    "model.blur_schedule",
    "data.num_workers",
    "data.path",
}
"""Keys of model and data that may change between a checkpoint and its continued training."""
READING = {"data.value_range", "data.value_clip", "data.frames"}
"""Keys that say what numbers in images mean: of others a line and the record say so."""
FREE_IN_INFERENCE = (
    FREE
    | TRAINING_ONLY
    | READING
    | {"model.protocol", "data.uniform_dequantization", "data.random_flip"}
)
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


def _is_range(value: tuple[Any, ...]) -> bool:
    if len(value) != 2 or not all(type(number) in (int, float) for number in value):
        return value == ()
    return -math.inf < value[0] < value[1] < math.inf


CHECKS: dict[str, Check] = {
    "seed": ("an integer from 0 to 2^64 - 1", lambda value: 0 <= value < 2**64),
    "compile": _one_of("none", "default", "reduce-overhead", "max-autotune"),
    "distributed_timeout_minutes": _POSITIVE,
    "training.batch_size": _AT_LEAST_1,
    "training.label_dropout": _FRACTION,
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
    "data.value_range": ("two numbers, low < high, or () for 8-bit images", _is_range),
    "data.frames": _one_of("first", "all"),
    "data.num_classes": _AT_LEAST_0,
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


@dataclass(frozen=True)
class Experiment:
    """A configuration with what follows from it."""

    config: ConfigDict
    """As the user gave it, complete and checked."""
    levels: tuple[float, ...] | None
    """sigma_B[0..K], None for those that the process computes itself and for matched levels that
    have not been computed yet."""
    process: Process
    """With these levels, on the CPU."""
    network: Module
    """On the meta device, without weights."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return image_shape(self.config.data)


def resolve(
    config: ConfigDict,
    checkpoint: Mapping[str, Any] | None = None,
    where: str = "the checkpoint",
    free: set[str] = FREE,
    matched: tuple[float, ...] | None = None,
) -> Experiment:
    """Check a configuration, and resolve it: with the blur levels of a checkpoint if one is given,
    and with `matched` ones once they have been computed.

    checkpoint: its contents, from `where`; those of the release have no configuration, and are not
    compared; free: keys that may differ. Raises UserError for values that cannot be used, for a
    file of levels that cannot be read, and for other weights, data or levels than the checkpoint's.
    """
    if checkpoint is not None and config.model.class_conditional and not config.data.num_classes:
        config = config.copy_and_resolve_references()
        saved = json.loads(checkpoint.get("config", "{}")).get("data", {})
        config.data.num_classes = saved.get("num_classes", 0)
    validate(config)
    model = config.model
    if model.blur_schedule == MATCHED:
        check_matched(model)
    if checkpoint is None or "config" not in checkpoint:
        levels = read_levels(config) if matched is None else matched
        if checkpoint is not None and model.blur_schedule == MATCHED:
            shown = f"{SCHEDULE_KEY} = 'matched'"
            raise UserError(f"{shown}: {where} does not hold the levels; list them")
    else:
        refuse_differences(checkpoint["config"], config, free, where)
        levels = _levels_of_checkpoint(config, checkpoint, where)
    complete = config.copy_and_resolve_references()
    with complete.unlocked(), complete.ignore_type():
        complete.model.blur_schedule = LOG if levels is None else levels
    try:
        process = build_process(complete)
        with torch.device("meta"):  # nothing is allocated
            network = build_model(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    power = config.training.level_weighting
    if not process.level_weights(power).isfinite().all():
        needed = "must be nearer to 0, so that no weight overflows"
        raise UserError(f"config.training.level_weighting = {power!r}: {needed}")
    if model.blur_schedule != LOG and "model.blur_schedule" not in PROCESSES[model.process].reads:
        shown = f"{SCHEDULE_KEY} = {one_line(repr(model.blur_schedule))[:100]}"
        other = f"process {model.process!r} has a blur schedule of its own"
        raise UserError(f"{shown}: {other}; must be left at 'log'")
    return Experiment(config, levels, process, network)


def validate(config: ConfigDict) -> None:
    """Raise UserError, naming key, value and what is expected, unless all values are in range.

    Whether process and network can be built is seen when they are, by `resolve`. Runs the file of
    a process that the command line names.
    """
    values = dict(flatten(config))
    refuse_unknown(values)
    for key, (expected, holds) in CHECKS.items():
        if not holds(values[key]):
            raise UserError(f"config.{key} = {values[key]!r}: must be {expected}")
    for key, value in values.items():
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
    if config.data.value_clip and not config.data.value_range:
        needed = "needs config.data.value_range, which says what is cut"
        raise UserError(f"config.data.value_clip = True: {needed}")
    if config.model.protocol == "released":
        released = "with model.protocol = 'released'"
        if config.model.K < 2:
            raise UserError(f"config.model.K = {config.model.K}: must be at least 2 {released}")
        if config.model.chain:
            shown = f"config.model.chain = {config.model.chain!r}"
            raise UserError(f"{shown}: must be empty {released}")
    name = config.model.process
    if ".py:" in name and name in trusted_processes and name not in PROCESSES:
        register_process(name)


def check_matched(model: ConfigDict) -> None:
    """Raise UserError unless levels can be matched between the ends that a configuration names."""
    if not model.blur_sigma_min < model.blur_sigma_max:
        needed = f"must be greater than config.model.blur_sigma_min = {model.blur_sigma_min}"
        shown = f"config.model.blur_sigma_max = {model.blur_sigma_max}"
        raise UserError(f"{shown}: {needed} with {SCHEDULE_KEY} = 'matched'")


def read_levels(config: ConfigDict) -> tuple[float, ...] | None:
    """Return the levels that model.blur_schedule lists or has in a file; None for "log" and
    "matched".

    Raises UserError for what is no schedule, and for a file that cannot be read.
    """
    schedule, K = config.model.blur_schedule, config.model.K
    if schedule in (LOG, MATCHED):
        return None
    shown, array = f"{SCHEDULE_KEY} = {one_line(repr(schedule))[:100]}", schedule
    if isinstance(schedule, str):
        if not schedule.endswith(".npy"):
            choices = "'log', 'matched', a .npy file or the K + 1 numbers themselves"
            raise UserError(f"{shown}: must be {choices}")
        try:
            array = np.load(user_path(schedule, SCHEDULE_KEY), allow_pickle=False)
        except (OSError, ValueError) as error:
            reason = f"cannot be read ({one_line(error)})"
            raise UserError(f"{shown}: {reason}; must be a .npy file by numpy.save") from None
    levels = np.asarray(array)
    right = levels.shape == (K + 1,) and levels.dtype.kind in "iuf" and levels[0] == 0
    if not (right and np.isfinite(levels).all() and (np.diff(levels) > 0).all()):
        numbers = f"these are {K + 1} numbers, 0 first, strictly increasing"
        needed = f"must be sigma_B[0..K], with model.K = {K} {numbers}"
        raise UserError(f"{shown}: {needed}; it is {levels.dtype} {levels.shape}")
    return tuple(levels.tolist())


def _is_missing_file(schedule: object) -> bool:
    is_file_name = isinstance(schedule, str) and schedule.endswith(".npy")
    return is_file_name and not user_path(str(schedule), SCHEDULE_KEY).is_file()


def _levels_of_checkpoint(
    config: ConfigDict, checkpoint: Mapping[str, Any], where: str
) -> tuple[float, ...] | None:
    """Return the levels that a checkpoint holds: no file and no training image is needed.

    Raises UserError if `config` asks for others.
    """
    model, sigma_B = config.model, checkpoint.get("sigma_B")
    asked = model.blur_schedule
    if sigma_B is None and asked == LOG:
        return None
    log = log_levels(model.K, model.blur_sigma_min, model.blur_sigma_max)
    saved = log if sigma_B is None else tuple(sigma_B.tolist())
    before = json.loads(checkpoint["config"])["model"].get("blur_schedule", LOG)
    if asked == before and (asked == MATCHED or _is_missing_file(asked)):
        return saved
    levels = log if asked == LOG else read_levels(config)
    if levels is not None and np.allclose(levels, saved, rtol=1e-6, atol=0):
        return saved
    change = f"{SCHEDULE_KEY} was {_shown_schedule(before)}, now {_shown_schedule(asked)}"
    if levels is not None:
        k = int(np.argmax(~np.isclose(levels, saved, rtol=1e-6, atol=0)))
        change += f" (sigma_B[{k}] was {saved[k]:.6g}, now {levels[k]:.6g})"
    raise UserError(f"{where} was made with another configuration: {change}")


def _shown_schedule(schedule: str | Sequence[float]) -> str:
    return repr(schedule) if isinstance(schedule, str) else f"{len(schedule)} numbers"


def differences(saved: str, config: ConfigDict) -> dict[str, str]:
    """Return the keys whose value in the JSON `saved` is another than in `config`, such as
    {"model.K": "50, now 100"}.

    Keys that a `saved` of an earlier version lacks had the behaviour of today's defaults.
    """
    defaults, now = (_values(to_json(c)) for c in (default.get_config(), config))
    before = defaults | _values(saved)
    return {
        key: f"{_shown(before, key)}, now {_shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def _values(text: str) -> dict[str, Any]:
    """Of the JSON of a configuration, by "section.key"; a square has one size, however written."""
    values = saved_values(json.loads(text))
    size = values.get("data.image_size")
    if isinstance(size, list) and len(set(size)) == 1:
        values["data.image_size"] = size[0]
    return values


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = one_line(repr(values.get(key, "absent")))
    return text if len(text) <= 100 else f"{text[:100]}..."


def refuse_differences(saved: str, config: ConfigDict, free: set[str], where: str) -> None:
    """Raise UserError if `config` describes other weights or data than the JSON `saved` of the
    checkpoint `where`.
    """
    had_held_out_path = bool(json.loads(saved)["data"].get("held_out_path", ""))
    if had_held_out_path == bool(config.data.held_out_path):
        # Data may move; which of them were held out may not change.
        free = free | {"data.held_out_path"}
    changed = {
        key: change
        for key, change in differences(saved, config).items()
        if key.startswith(("model.", "data.")) and key not in free
    }
    if changed:
        listed = "; ".join(f"config.{key} was {change}" for key, change in changed.items())
        raise UserError(f"{where} was made with another configuration: {listed}")


def config_warnings(config: ConfigDict) -> list[str]:
    """A line for each key whose value is allowed, but has not the effect that it seems to have.

    Keys with another value than the default that the process does not read, and a warm-up that
    does not end.
    """
    values, defaults = dict(flatten(config)), dict(flatten(default.get_config()))
    name, warmup, n_iters = config.model.process, config.optim.warmup, config.training.n_iters
    keys = sorted(HEAT - PROCESSES[name].reads)
    changed = [key for key in keys if values[key] != defaults[key]]
    lines = [f"config.{key} = {values[key]}: not read by process {name}" for key in changed]
    if warmup > n_iters:
        share = f"{n_iters / warmup:.2g} of config.optim.lr is reached"
        reached = f"{share} in training.n_iters = {n_iters}"
        lines.append(f"config.optim.warmup = {warmup}: is longer than the run: {reached}")
    return lines


def register_process(name: str) -> None:
    """Run the file and enter its class. Raises UserError if that cannot be done.

    Only for a value in `trusted_processes`: a checkpoint or JSON must never run code.
    """
    text, _, class_name = name.rpartition(":")
    path, shown = user_path(text, PROCESS_KEY), f"{PROCESS_KEY} = {name!r}"
    if not path.is_file():
        raise UserError(f"{shown}: there is no such file")
    try:
        factory: Any = runpy.run_path(str(path)).get(class_name)
    except Exception as error:
        raise UserError(f"{shown}: {error_with_line(error, path)}") from error
    is_process = isinstance(factory, type) and issubclass(factory, Process)
    if not is_process:
        raise UserError(f"{shown}: the file has no class {class_name}, a subclass of Process")

    def build(config: ConfigDict) -> Process:
        process: Process = factory(config)
        process.chain = configured_chain(config)
        if isinstance(process, GaussianProcess):
            process.next_level = next_levels(process.chain, process.K)
        return process

    PROCESSES[name] = Preset(build)
    process_checksums[name] = zlib.crc32(path.read_bytes())
