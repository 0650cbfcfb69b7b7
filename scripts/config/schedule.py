"""Where a blur schedule's levels come from: a formula, an array, a file, the training images, or a
checkpoint.
"""

import json
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from scripts.config.paths import user_path
from scripts.errors import UserError, one_line

KEY = "config.model.blur_schedule"
LOG, MATCHED = "log", "matched"


def with_schedule(config: ConfigDict, schedule: str | Sequence[float]) -> ConfigDict:
    """A copy of a configuration with another model.blur_schedule."""
    changed = config.copy_and_resolve_references()
    with changed.unlocked(), changed.ignore_type():
        changed.model.blur_schedule = schedule if isinstance(schedule, str) else tuple(schedule)
    return changed


def log_levels(K: int, sigma_min: float, sigma_max: float) -> tuple[float, ...]:
    """As `model_code.blur.blur_schedule`, to rounding, without PyTorch."""
    return (0.0, *np.geomspace(sigma_min, sigma_max, K).tolist())


def known_levels(config: ConfigDict) -> tuple[float, ...] | None:
    """sigma_B[0..K] as a configuration gives them; None for "matched", which the training images
    decide.

    Raises UserError for what is no schedule, and for a file that is not there.
    """
    schedule, K = config.model.blur_schedule, config.model.K
    if schedule == MATCHED:
        return None
    if schedule == LOG:
        return log_levels(K, config.model.blur_sigma_min, config.model.blur_sigma_max)
    shown, array = f"{KEY} = {one_line(repr(schedule))[:100]}", schedule
    if isinstance(schedule, str):
        if not schedule.endswith(".npy"):
            raise UserError(
                f"{shown}: must be 'log', 'matched', a .npy file or the K + 1 numbers themselves"
            )
        try:
            array = np.load(user_path(schedule, KEY), allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{shown}: cannot be read ({one_line(error)}); must be a .npy file by numpy.save"
            ) from None
    found = np.asarray(array)
    right = found.shape == (K + 1,) and found.dtype.kind in "iuf" and found[0] == 0
    if not (right and np.isfinite(found).all() and (np.diff(found) > 0).all()):
        needed = f"must be sigma_B[0..K], with model.K = {K} these are {K + 1} numbers, 0 first, strictly increasing"
        raise UserError(f"{shown}: {needed}; it is {found.dtype} {found.shape}")
    return tuple(found.tolist())


def _is_missing_file(schedule: object) -> bool:
    return (
        isinstance(schedule, str)
        and schedule.endswith(".npy")
        and not user_path(schedule, KEY).is_file()
    )


def check_schedule(config: ConfigDict) -> None:
    """Raise UserError for a model.blur_schedule that cannot be.

    A file that is missing may not be needed: see `as_saved`.
    """
    model = config.model
    if model.blur_schedule != LOG and not _is_missing_file(model.blur_schedule):
        known_levels(config)
    if model.blur_schedule == MATCHED and not model.blur_sigma_min < model.blur_sigma_max:
        needed = f"must be greater than config.model.blur_sigma_min = {model.blur_sigma_min}"
        raise UserError(
            f"config.model.blur_sigma_max = {model.blur_sigma_max}: {needed} with {KEY} = 'matched'"
        )


def settled(config: ConfigDict) -> ConfigDict:
    """The configuration with the levels themselves in place of a file's name.

    Raises UserError as `known_levels` does.
    """
    levels = None if config.model.blur_schedule == LOG else known_levels(config)
    return config if levels is None else with_schedule(config, levels)


def as_saved(
    config: ConfigDict, saved: str, sigma_B: Sequence[float] | None, where: str
) -> ConfigDict:
    """The configuration with the levels that the checkpoint `where` holds: no file and no training
    image is needed.

    saved: the checkpoint's own configuration as JSON, of the same K and ends; sigma_B: its levels,
    None for "log". Raises UserError if `config` asks for others.
    """
    asked, before = config.model.blur_schedule, json.loads(saved)["model"].get("blur_schedule", LOG)
    if sigma_B is None and asked == LOG:
        return config
    held = known_levels(with_schedule(config, LOG)) if sigma_B is None else tuple(sigma_B)
    assert held is not None
    by_name = asked == before and (asked == MATCHED or _is_missing_file(asked))
    found = held if by_name else known_levels(config)
    if found is None or not np.allclose(found, held, rtol=1e-6, atol=0):
        names = [
            repr(name) if isinstance(name, str) else f"{len(name)} numbers"
            for name in (before, asked)
        ]
        change = f"{KEY} was {names[0]}, now {names[1]}"
        if found is not None:
            k = int(np.argmax(~np.isclose(found, held, rtol=1e-6, atol=0)))
            change += f" (sigma_B[{k}] was {held[k]:.6g}, now {found[k]:.6g})"
        raise UserError(f"{where} was made with another configuration: {change}")
    return with_schedule(config, held)
