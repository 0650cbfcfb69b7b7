"""Weights that a new run starts from: those of another run, published ones, or the release's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from ml_collections import ConfigDict

from model_code import build_model
from model_code.unet import MODEL_KEYS
from scripts.config.comparison import differences, refuse_differences
from scripts.config.paths import user_path
from scripts.errors import UserError
from scripts.storage import checkpoint

NETWORK = {
    "data.num_channels",
    "model.network",
    *(f"model.{name}" for name in MODEL_KEYS if name != "dropout"),
}
"""Keys that say what is computed with the weights; not all of them show in shapes."""


@dataclass(frozen=True)
class InitialWeights:
    """Averages of a checkpoint, which both weights and averages of a new run start from."""

    weights: Mapping[str, torch.Tensor]
    """By name, on the CPU."""
    changes: Mapping[str, str]
    """Settings of model and data that were others there, as `differences` names them; none for the
    release's.
    """
    record: Mapping[str, Any]
    """Which checkpoint it was, as plain data."""

    @classmethod
    def read(cls, config: ConfigDict) -> "InitialWeights":
        """From the checkpoint, or the newest in the run directory, that config.training.init_from
        names.

        Raises UserError if there is none, or if it does not fit the network that `config`
        describes.
        """
        given = f"config.training.init_from = {config.training.init_from!r}"
        place = user_path(config.training.init_from, "config.training.init_from")
        path, contents = (
            (place, checkpoint.read(place))
            if place.is_file()
            else checkpoint.read_newest(place) or (None, None)
        )
        if path is None or contents is None:
            raise UserError(f"{given}: must be a checkpoint, or a run directory with one")
        changes: dict[str, str] = {}
        if "config" in contents:
            changes = differences(contents["config"], config)
            refuse_differences(
                contents["config"], config, changes.keys() - NETWORK, f"{given}: {path.name}"
            )
        with torch.device("meta"):
            model = build_model(config)
        checkpoint.load_averages(model, path, contents, assign=True)
        record = {
            "file": path.name,
            "step": contents["step"],
            "weights_crc32": checkpoint.weights_checksum(checkpoint.averages(contents)),
        }
        kept = {
            key: change for key, change in changes.items() if key.startswith(("model.", "data."))
        }
        return cls(model.state_dict(), kept, record)
