"""What generated images are compared with: published or own statistics, a folder of images, or a data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from scripts import distributed
from scripts.data.datasets import Split, load_images
from scripts.data.images import Images, fingerprint, list_images
from scripts.errors import UserError
from scripts.evaluation.features import Extractor, NativeFolder, cached_features, image_features
from scripts.evaluation.metrics import Metric
from scripts.evaluation.statistics_files import Reference, named_statistics, statistics_from_file
from scripts.io import user_path

SPLITS: dict[str, Split] = {"train": "train", "held_out": "held_out", "test": "held_out", "val": "held_out"}
"""Values of --dataset_split for the configuration's own data set."""


def find_reference(
    name: str,
    split: str,
    data: ConfigDict,
    metrics: Sequence[Metric],
    k: int,
    extractor: Extractor,
    directory: Path,
    batch_size: int,
) -> Reference:
    """What `--dataset_name_cleanfid=name` stands for, with what the metrics need of it.

    name: of clean-fid's statistics or, with split "custom", of custom ones; the path of an .npz or of a folder; or "" for the
    split of the configuration's own data set. Features of images are cached in `directory`. Raises UserError for whatever is
    missing, and if there are fewer images than a metric needs.
    """
    images = _images(name, split, data)
    if name and extractor.settings["extractor"] != "inception":
        raise UserError(
            f"--dataset_name_cleanfid={name}: the classifier compares with the configuration's own data set only; "
            "leave it empty, or use --feature_extractor=inception"
        )
    if images is not None:
        features = reference_features(directory, images, extractor, batch_size)
        found = Reference.of(name or f"{data.dataset} {split}", features)
    else:
        needs = {metric.needs for metric in metrics}
        needed = {"moments": "moments" in needs, "features": "features" in needs}
        if _is_file(name):
            found = statistics_from_file(user_path(name, "--dataset_name_cleanfid"), **needed)
        else:
            with distributed.main_first():  # it downloads them
                found = named_statistics(name, extractor.settings["mode"], split, data.image_size, **needed)
    if found.num_features != extractor.num_features:
        raise UserError(
            f"{found.description}: {found.num_features} features an image, where the samples have {extractor.num_features}"
        )
    for metric in metrics:
        if found.features is not None and len(found.features) < metric.fewest(k):
            raise UserError(
                f"{found.description}: {len(found.features)} images, where {metric.name} needs at least {metric.fewest(k)}"
            )
    return found


def _is_file(name: str) -> bool:
    return name.lower().endswith(".npz")


def _images(name: str, split: str, data: ConfigDict) -> Images | None:
    """None where `name` is that of statistics. A bare word may also be a folder, unless custom statistics are asked for."""
    if name == "":
        return data_set_images(data, split)
    folder = user_path(name, "--dataset_name_cleanfid")
    bare = len(folder.parts) == 1 and name != "."
    if _is_file(name) or (bare and (split == "custom" or not folder.is_dir())):
        return None
    return folder_images(folder)


def data_set_images(data: ConfigDict, split: str) -> Images:
    """The configuration's own images, at its size. Raises UserError for a split that does not exist."""
    if split not in SPLITS:
        raise UserError(f"--dataset_split={split}: the configuration's own data set has {', '.join(SPLITS)}")
    return load_images(data, SPLITS[split])


def folder_images(folder: Path) -> NativeFolder:
    """All images below a folder, at their own sizes, as clean-fid takes them. Raises UserError if there are fewer than 2."""
    paths = list_images(folder) if folder.is_dir() else []
    if len(paths) < 2:
        what = f"{len(paths)} image files in it" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {what}; a reference needs a folder with at least 2 images")
    return NativeFolder(folder, paths)


def reference_features(directory: Path, images: Images, extractor: Extractor, batch_size: int) -> np.ndarray:
    """Features (M, d) of all images that can be read, cached in `directory`."""
    settings: dict[str, Any] = {"images": "reference", **fingerprint(images), **extractor.settings}

    def compute(indices: range) -> np.ndarray:
        return image_features(images, indices, extractor)

    rows = cached_features(directory, settings, len(images), batch_size, compute, "reference features")
    return rows[~np.isnan(rows[:, 0])]
