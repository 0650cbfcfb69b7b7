"""What configuration files and command lines written for the original release have that this program does not need."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from scripts.config.schedule import log_levels
from scripts.errors import UserError, one_line

KEYS = {
    *("eval.enable_sampling", "eval.enable_loss", "eval.calculate_fids", "eval.num_samples", "data.centered"),
    *("model.conditional", "model.normalization", "model.nonlinearity", "model.skip_rescale", "model.blur_rate"),
    *("model.beta_min", "model.beta_max", "model.sigma_min", "model.sigma_max"),
    *("model.use_fp16", "model.num_heads_upsample"),
}
"""Keys of the release's configuration files that are not needed here: its programs read the last two only."""
UNREAD_FLAGS = {"final_noise": "sample.py", "eval_folder": "evaluate.py", "skip_noise_starting_from": "evaluate.py"}
"""Flags that the release's programs define and never read."""


def define_release_flags() -> None:
    """Accept the flags of the release that have no effect; `config.run` warns of them."""
    for name, script in UNREAD_FLAGS.items():
        flags.DEFINE_string(name, None, f"No effect; {script} of the original release defines this flag and does not read it.")


def warn_of_release_flags() -> None:
    """One warning that names the flags that were given and have no effect."""
    given = [f"--{name}" for name in UNREAD_FLAGS if name in flags.FLAGS and flags.FLAGS[name].present]
    if given:
        warnings.warn(f"{', '.join(given)}: no effect, as in the original release", stacklevel=2)


def check_release_keys(given: dict[str, Any], model: ConfigDict) -> None:
    """Name in one warning that the keys `given`, some of `KEYS`, are ignored; model: the configuration's section.

    Raises UserError for a value with which the release would have built a model that this program does not build.
    """
    for key, right, ok in (
        ("model.use_fp16", "False; config.optim.automatic_mp trains in mixed precision", lambda value: value is False),
        ("model.num_heads_upsample", f"-1 or {model.num_heads}", lambda value: value in (-1, model.num_heads)),
    ):
        if key in given and not ok(given[key]):
            raise UserError(f"config.{key} = {one_line(given[key])[:100]}: must be {right}")
    if given:
        listed = ", ".join(f"config.{key}" for key in sorted(given))
        warnings.warn(f"{listed}: ignored, keys of the original release that are not needed here", stacklevel=2)


def is_log(schedule: Sequence[float], model: ConfigDict) -> bool:
    """Whether a table of blur levels is the one that K and both ends give."""
    expected = np.array(log_levels(model.K, model.blur_sigma_min, model.blur_sigma_max))
    if np.shape(schedule) != expected.shape:
        return False
    found = np.array(schedule, float)
    if found[-1] == 0:  # the release's AFHQ-64 file overwrites its largest blur with 0, by mistake
        found[-1] = expected[-1]
    return np.allclose(found, expected, rtol=1e-5)
