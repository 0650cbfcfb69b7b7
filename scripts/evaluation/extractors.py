"""The feature extractors of scores: another one is a class, an entry in `EXTRACTORS` below and a
value of --feature_extractor in scripts/config/flags.py; what it needs of flags is in `Options`.

Imports nothing heavy: networks are imported where they are made.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from ml_collections import ConfigDict


class Extractor(Protocol):
    """From images to features."""

    settings: dict[str, Any]
    """Plain data that identify it: "extractor" its name; "mode" if clean-fid's statistics of that
    mode are of its features.
    """
    num_features: int
    """d"""
    own_data_only: bool
    """It takes images of the configuration's data set, not any RGB image."""

    def __call__(self, pixels: "torch.Tensor") -> "np.ndarray":
        """Images uint8 (B, C, H, W) to features float32 (B, d)."""


@dataclass(frozen=True)
class Options:
    """What an extractor may be made from."""

    data: "ConfigDict"
    """The configuration's section on data."""
    directory: "Path"
    """For what is trained."""
    device: "torch.device"
    cleanfid_mode: str
    inception_path: str
    dinov2_path: "Path | None"


def _inception(options: Options) -> Extractor:
    from scripts.evaluation.inception import InceptionFeatures

    return InceptionFeatures(options.cleanfid_mode, options.inception_path, options.device)


def _classifier(options: Options) -> Extractor:
    from scripts.evaluation.classifier import classifier_features

    classifier = classifier_features(options.directory, options.data, options.device)
    print(f"classifier: {classifier.accuracy:.2%} of held-out images right", flush=True)
    return classifier


def _dinov2(options: Options) -> Extractor:
    from scripts.evaluation.dinov2 import DINOv2Features

    return DINOv2Features(options.dinov2_path, options.device)


EXTRACTORS: dict[str, Callable[[Options], Extractor]] = {
    "inception": _inception,
    "classifier": _classifier,
    "dinov2": _dinov2,
}
"""Values of --feature_extractor."""
