"""Whether two configurations describe the same weights and data."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import default
from scripts.config.load import flatten, to_json
from scripts.config.schedule import as_saved
from scripts.errors import UserError, one_line

# Keys of model and data; those of optim and training are always free.
TRAINING_ONLY = {"model.dropout", "model.ema_rate"}
"""They act during training only: their effect is in the weights."""
# Blur schedules are compared by their levels, in `schedule.as_saved`.
FREE_ON_RESUME = {
    *(
        "model.delta_over_sigma",
        "model.sampling_noise",
        "model.blur_schedule",
        "data.num_workers",
        "data.path",
    )
}
FREE_IN_INFERENCE = (
    FREE_ON_RESUME
    | TRAINING_ONLY
    | {"model.protocol", "data.uniform_dequantization", "data.random_flip"}
)


def differences(saved: str, config: ConfigDict) -> dict[str, str]:
    """Keys whose value in the JSON `saved` is another than in `config`: {"model.K": "50, now 100"}.

    Keys that a `saved` of an earlier version lacks had the behaviour of today's defaults.
    """
    defaults, now = (dict(flatten(json.loads(to_json(c)))) for c in (default.get_config(), config))
    before = defaults | dict(flatten(json.loads(saved)))
    return {
        key: f"{_shown(before, key)}, now {_shown(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }


def _shown(values: Mapping[str, Any], key: str) -> str:
    text = one_line(repr(values.get(key, "absent")))
    return text if len(text) <= 100 else f"{text[:100]}..."


def refuse_differences(saved: str, config: ConfigDict, free: set[str], where: str) -> None:
    """Raise UserError if `config` describes other weights or data than the JSON `saved` of the
    checkpoint `where`.
    """
    before = json.loads(saved)["data"].get("held_out_path", "")
    if bool(before) == bool(
        config.data.held_out_path
    ):  # data may move; which of them were held out may not change
        free = free | {"data.held_out_path"}
    changed = {
        key: change
        for key, change in differences(saved, config).items()
        if key.startswith(("model.", "data.")) and key not in free
    }
    if changed:
        listed = "; ".join(f"config.{key} was {change}" for key, change in changed.items())
        raise UserError(f"{where} was made with another configuration: {listed}")


def with_levels(
    config: ConfigDict, contents: Mapping[str, Any], free: set[str], where: str
) -> ConfigDict:
    """A configuration with a checkpoint's own blur levels. Raises UserError if it is one of other
    weights, data or levels.

    contents: of the checkpoint `where`; free: keys that may differ.
    """
    refuse_differences(contents["config"], config, free, where)
    sigma_B = contents.get("sigma_B")
    return as_saved(
        config, contents["config"], None if sigma_B is None else sigma_B.tolist(), where
    )
