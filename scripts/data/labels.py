"""The classes of images, for the data sets that have them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from scripts.data.datasets import DATA, DATA_SETS, Split, load_images
from scripts.data.images import ImageSource, torchvision_class
from scripts.errors import UserError
from scripts.io import read_npz, user_path


def has_labels(data: ConfigDict) -> bool:
    """Whether the images of `config.data` have classes."""
    return data.dataset.lower() in _LABELS


def load_labelled(data: ConfigDict, split: Split) -> tuple[ImageSource, np.ndarray]:
    """The images of `config.data`, as `load_images` gives them, with their classes, int64 (N,) from 0.

    Raises UserError for a data set without classes.
    """
    name = data.dataset.lower()
    if not has_labels(data):
        raise UserError(
            f"--feature_extractor=classifier: config.data.dataset = {data.dataset!r} has no labels, {', '.join(_LABELS)} have; "
            "use --feature_extractor=inception"
        )
    source = load_images(data, split)  # first, as it explains a data set that is missing
    labels = _LABELS[name](
        user_path(data.path, "config.data.path") if data.path else DATA / (DATA_SETS[name].place or ""), split
    )
    if len(labels) != len(source):
        raise UserError(f"config.data.dataset = {data.dataset!r}: {len(labels)} labels for {len(source)} images")
    return source, np.asarray(labels, np.int64)


def _mnist5k(place: Path, split: Split) -> np.ndarray:
    arrays = read_npz(place)
    labels = arrays.get("labels", np.empty(0))
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != arrays["held_out"].shape or labels.min() < 0:
        raise UserError(f"{place}: must hold labels, whole numbers from 0, it has {labels.dtype} {labels.shape}")
    return labels[arrays["held_out"] == (split == "held_out")]


def _mnist(place: Path, split: Split) -> np.ndarray:
    return torchvision_class("MNIST")(place, train=split == "train").targets.numpy()


def _cifar10(place: Path, split: Split) -> np.ndarray:
    return np.asarray(torchvision_class("CIFAR10")(place, train=split == "train").targets)


_LABELS: dict[str, Callable[[Path, Split], np.ndarray]] = {"mnist5k": _mnist5k, "mnist": _mnist, "cifar10": _cifar10}
