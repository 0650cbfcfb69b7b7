"""Evaluations of a small run, and features that cost nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.evaluation.bound import BoundEvaluation
from scripts.evaluation.metrics import MODES
from scripts.evaluation.scores import SampleEvaluation
from tests.tiny import tiny_config


class Recorder:
    """Mean and spread of an image as its features, and all batches that it was given."""

    settings: dict[str, Any] = {"extractor": "recorder"}  # noqa: RUF012
    num_features = 2

    def __init__(self) -> None:
        self.batches: list[torch.Tensor] = []

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        self.batches.append(pixels)
        x = pixels.float().flatten(1)
        return torch.stack([x.mean(1), x.std(1)], 1).numpy()


def of_samples(
    run: Path, config: ConfigDict | None = None, mode: str = "fid", **changes: Any
) -> SampleEvaluation:
    """By default of 11 samples, in batches of 8, against the training images."""
    options: dict[str, Any] = {"batch_size": 8, "num_gen": 11, "make_extractor": Recorder}
    options |= {"cache": run / "evaluation"} | changes
    return SampleEvaluation(config or tiny_config(), run, metrics=MODES[mode], **options)


def of_bound(run: Path, config: ConfigDict | None = None, **changes: Any) -> BoundEvaluation:
    """By default of 12 held-out images, at two levels each."""
    options: dict[str, Any] = {"split": "test", "num_images": 12, "num_levels_per_image": 2}
    options |= {"exact": False, "batch_size": 16} | changes
    return BoundEvaluation(config or tiny_config(), run, run / "bound", **options)
