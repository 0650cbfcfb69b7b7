"""What a configuration stands for: blur levels as numbers, process and network; also those of a
checkpoint that it has to agree with.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from torch.nn import Module

from configs import default
from model_code import PROCESSES, build_meta_model, build_process
from model_code.process import Process
from model_code.unet import image_shape
from scripts.config.checks import validate
from scripts.config.load import flatten, to_json
from scripts.config.paths import user_path
from scripts.config.release import log_levels
from scripts.errors import UserError, one_line

KEY = "config.model.blur_schedule"
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
FREE_IN_INFERENCE = (
    FREE | TRAINING_ONLY | {"model.protocol", "data.uniform_dequantization", "data.random_flip"}
)


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
    validate(config)
    model = config.model
    if model.blur_schedule == MATCHED:
        check_matched(model)
    if checkpoint is None or "config" not in checkpoint:
        levels = read_levels(config) if matched is None else matched
        if checkpoint is not None and model.blur_schedule == MATCHED:
            raise UserError(f"{where}: its levels are not known, as {KEY} = 'matched'; list them")
    else:
        refuse_differences(checkpoint["config"], config, free, where)
        levels = _levels_of_checkpoint(config, checkpoint, where)
    complete = config.copy_and_resolve_references()
    with complete.unlocked(), complete.ignore_type():
        complete.model.blur_schedule = LOG if levels is None else levels
    try:
        process, network = build_process(complete), build_meta_model(config)
    except ValueError as error:
        raise UserError(str(error)) from None
    power = config.training.level_weighting
    if not process.level_weights(power).isfinite().all():
        needed = "must be nearer to 0, so that no weight overflows"
        raise UserError(f"config.training.level_weighting = {power!r}: {needed}")
    if model.blur_schedule != LOG and "model.blur_schedule" not in PROCESSES[model.process].reads:
        shown = f"{KEY} = {one_line(repr(model.blur_schedule))[:100]}"
        other = f"process {model.process!r} has a blur schedule of its own"
        raise UserError(f"{shown}: {other}; must be left at 'log'")
    return Experiment(config, levels, process, network)


def check_matched(model: ConfigDict) -> None:
    """Raise UserError unless levels can be matched between the ends that a configuration names."""
    if not model.blur_sigma_min < model.blur_sigma_max:
        needed = f"must be greater than config.model.blur_sigma_min = {model.blur_sigma_min}"
        shown = f"config.model.blur_sigma_max = {model.blur_sigma_max}"
        raise UserError(f"{shown}: {needed} with {KEY} = 'matched'")


def read_levels(config: ConfigDict) -> tuple[float, ...] | None:
    """Return the levels that model.blur_schedule lists or has in a file; None for "log" and
    "matched".

    Raises UserError for what is no schedule, and for a file that cannot be read.
    """
    schedule, K = config.model.blur_schedule, config.model.K
    if schedule in (LOG, MATCHED):
        return None
    shown, array = f"{KEY} = {one_line(repr(schedule))[:100]}", schedule
    if isinstance(schedule, str):
        if not schedule.endswith(".npy"):
            choices = "'log', 'matched', a .npy file or the K + 1 numbers themselves"
            raise UserError(f"{shown}: must be {choices}")
        try:
            array = np.load(user_path(schedule, KEY), allow_pickle=False)
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
    return is_file_name and not user_path(str(schedule), KEY).is_file()


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
    change = f"{KEY} was {_shown_schedule(before)}, now {_shown_schedule(asked)}"
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
    values = dict(flatten(json.loads(text)))
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
