"""What configuration files and command lines written for the original release have that this
program does not need.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scripts.errors import UserError, one_line

KEYS = {
    "eval.enable_sampling",
    "eval.enable_loss",
    "eval.calculate_fids",
    "eval.num_samples",
    "data.centered",
    "model.conditional",
    "model.normalization",
    "model.nonlinearity",
    "model.skip_rescale",
    "model.blur_rate",
    "model.beta_min",
    "model.beta_max",
    "model.sigma_min",
    "model.sigma_max",
    "model.use_fp16",
    "model.num_heads_upsample",
}
"""Keys of the release's configuration files that are not needed here: its programs read the last
two only.
"""


def check_release_keys(values: dict[str, Any], model: ConfigDict) -> None:
    """Name in one warning that the keys of `values`, some of `KEYS`, are ignored; model: the
    configuration's section.

    Raises UserError for a value with which the release would have built a model that this program
    does not build.
    """
    ours = {"model.use_fp16": (False,), "model.num_heads_upsample": (-1, model.num_heads)}
    for key, choices in ours.items():
        if key in values and values[key] not in choices:
            right = " or ".join(map(str, choices))
            raise UserError(f"config.{key} = {one_line(values[key])[:100]}: must be {right}")
    if values:
        listed = ", ".join(f"config.{key}" for key in sorted(values))
        warnings.warn(
            f"{listed}: ignored, keys of the original release that are not needed here",
            stacklevel=2,
        )


def log_levels(K: int, sigma_min: float, sigma_max: float) -> tuple[float, ...]:
    """Return what `model_code.blur.blur_schedule` does, to rounding, without PyTorch."""
    return (0.0, *np.geomspace(sigma_min, sigma_max, K).tolist())


def is_log(schedule: Sequence[float], model: ConfigDict) -> bool:
    """Return whether a table of blur levels is the one that K and both ends give."""
    expected = np.array(log_levels(model.K, model.blur_sigma_min, model.blur_sigma_max))
    if np.shape(schedule) != expected.shape:
        return False
    levels = np.array(schedule, float)
    if levels[-1] == 0:  # the release's AFHQ-64 file overwrites its largest blur with 0, by mistake
        levels[-1] = expected[-1]
    return np.allclose(levels, expected, rtol=1e-5)
