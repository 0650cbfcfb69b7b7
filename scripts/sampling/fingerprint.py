"""What samples depend on, as plain data: cached features, exports and sweeps are reused only where all of it agrees."""

import json
import zlib
from typing import Any

import torch
from ml_collections import ConfigDict

RANDOMNESS_VERSION = 1
"""Raise it when the same seed no longer gives the same random numbers."""

TRAINING_ONLY = {"dropout", "ema_rate"}
"""Keys of config.model that act during training only: their effect is in the weights."""


def sample_settings(
    config: ConfigDict,
    *,
    weights: int,
    step: int,
    seed: int,
    delta: float | str,
    precision: str,
    prior_images: int | None = None,
) -> dict[str, Any]:
    """Everything that sample i of a checkpoint depends on besides i.

    weights: `weights_checksum`; step: training steps in the checkpoint; delta: the sampling noise, a number or a label;
    precision: in words; prior_images: training images that prior states are drawn from, where that is known.
    """
    model = {key: value for key, value in config.model.to_dict().items() if key not in TRAINING_ONLY}
    return {
        "checkpoint_step": step,
        "weights_crc32": weights,
        "seed": seed,
        "delta": delta,
        "precision": precision,
        "prior_images": prior_images,
        "shape": [config.data.num_channels, config.data.image_size, config.data.image_size],
        "model": json.loads(json.dumps(model)),  # tuples become lists, as they do in files
        "randomness_version": RANDOMNESS_VERSION,
    }


def weights_checksum(model: torch.nn.Module) -> int:
    """A number that tells one set of weights from another."""
    checksum = 0
    for weight in model.parameters():
        checksum = zlib.crc32(weight.detach().cpu().numpy().tobytes(), checksum)
    return checksum
