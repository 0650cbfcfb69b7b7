"""What generated images are compared with: clean-fid's statistics, an .npz, a folder of images, or a data set."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import cleanfid
import numpy as np
from cleanfid.downloads_helper import check_download_url
from ml_collections import ConfigDict

from scripts import distributed
from scripts.data.images import Images, fingerprint, list_images
from scripts.errors import UserError
from scripts.evaluation.distances import Gaussian, Reference
from scripts.evaluation.features import Extractor, NativeFolder, cached_features, data_set_images, image_features
from scripts.evaluation.metrics import Metric
from scripts.io import atomic_write, make_directory, plain_name, read_npz, user_path

STATISTICS_URL = "https://www.cs.cmu.edu/~clean-fid/stats"


def find_reference(
    name: str,
    split: str,
    data: ConfigDict,
    metrics: Sequence[Metric],
    extractor: Extractor,
    directory: Path,
    batch_size: int,
) -> Reference:
    """What `--dataset_name_cleanfid=name` stands for, with what the metrics need of it.

    name: of clean-fid's statistics or, with split "custom", of custom ones; the path of an .npz or of a folder; or "" for the
    split of the configuration's own data set. Features of images are cached in `directory`. Raises UserError for whatever is
    missing.
    """
    if name and extractor.settings["extractor"] != "inception":
        raise UserError(
            f"--dataset_name_cleanfid={name}: the classifier compares with the configuration's own data set only; "
            "leave it empty, or use --feature_extractor=inception"
        )
    path = user_path(name, "--dataset_name_cleanfid")
    if name == "":
        images = data_set_images(data, split)
        return Reference(f"{data.dataset} {split}", reference_features(directory, images, extractor, batch_size))
    if path.suffix == ".npz":
        return _from_statistics(name, _read(path), extractor.num_features, metrics)
    if "/" in name or (path.is_dir() and split != "custom"):
        return Reference(name, reference_features(directory, folder_images(path), extractor, batch_size))
    arrays = _named_statistics(name, extractor.settings["mode"], split, data.image_size, metrics)
    return _from_statistics(f"{name} {split}, clean-fid's statistics", arrays, extractor.num_features, metrics)


def folder_images(folder: Path) -> NativeFolder:
    """All images below a folder, at their own sizes, as clean-fid takes them. Raises UserError if there are none."""
    paths = list_images(folder) if folder.is_dir() else []
    if not paths:
        raise UserError(f"{folder}: {'no image files in it' if folder.is_dir() else 'no such folder'}")
    return NativeFolder(folder, paths)


def reference_features(directory: Path, images: Images, extractor: Extractor, batch_size: int) -> np.ndarray:
    """Features (M, d) of all images that can be read, cached in `directory`."""
    settings = {"images": "reference", **fingerprint(images), **extractor.settings}

    def compute(indices: range) -> np.ndarray:
        return image_features(images, indices, extractor)

    rows = cached_features(directory, settings, len(images), batch_size, compute, "reference features")
    return rows[~np.isnan(rows[:, 0])]


# --- files of statistics: mean and covariance of features, `mu` (d,) and `sigma` (d, d), or the features `feats` (M, d) ---


def _statistics_file(name: str, mode: str, split: str, resolution: object) -> Path:
    """Where clean-fid keeps mean and covariance; its naming scheme, so that each finds what the other made or downloaded."""
    return Path(cleanfid.__file__).parent / "stats" / f"{name}_{mode}_{split}_{resolution}.npz".lower()


def _features_file(moments: Path) -> Path:
    return moments.with_name(f"{moments.stem}_kid.npz")


def _named_statistics(name: str, mode: str, split: str, image_size: int, metrics: Sequence[Metric]) -> dict[str, np.ndarray]:
    """Statistics of a data set, downloaded if necessary, with split "custom" those that `--save_stats` or clean-fid made."""
    plain_name("--dataset_name_cleanfid", name)
    plain_name("--dataset_split", split)
    is_custom = split == "custom"
    moments = _statistics_file(name, mode, split, "na" if is_custom else image_size)
    files = {_features_file(moments) if metric.needs_features else moments for metric in metrics}
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(files):
        try:
            with distributed.main_first():
                if not is_custom:
                    check_download_url(str(file.parent), f"{STATISTICS_URL}/{file.name}")
        except OSError as error:
            raise UserError(
                f"--dataset_name_cleanfid={name} --dataset_split={split}: clean-fid's statistics for {image_size} pixels "
                f"are not in {file.parent} and cannot be downloaded ({error}); give a folder of images, or make custom "
                "statistics with --save_stats"
            ) from None
        if is_custom and not file.is_file():
            raise UserError(
                f"--dataset_name_cleanfid={name}: there is no {file}; "
                f"make it with --save_stats --custom_name={name} --cleanfid_mode={mode} --dataset_path=FOLDER"
            )
        arrays |= _read(file)
    return arrays


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: cannot be read as an .npz of arrays ({error})") from None


def _from_statistics(where: str, arrays: dict[str, np.ndarray], d: int, metrics: Sequence[Metric]) -> Reference:
    """Raises UserError if there is not what is needed, or if it is not of d features."""
    shapes = {name: array.shape for name, array in arrays.items()}
    has_moments = shapes.get("mu") == (d,) and shapes.get("sigma") == (d, d)
    has_features = len(shapes.get("feats", ())) == 2 and shapes["feats"][1] == d
    if not has_features and not (has_moments and {metric.needs_features for metric in metrics} == {False}):
        right = f"feats (M, {d}) or, for --mode=fid alone, mu ({d},) and sigma ({d}, {d})"
        raise UserError(f"{where}: must hold {right}; it has {shapes}")
    moments = Gaussian(arrays["mu"], arrays["sigma"]) if has_moments else None
    return Reference(where, arrays["feats"] if has_features else None, moments)


def save_statistics(name: str, folder: Path, extractor: Extractor, mode: str, batch_size: int) -> Path:
    """Make statistics of a folder of images, for `--dataset_name_cleanfid=<name> --dataset_split=custom`.

    Returns the file with mean and covariance; features are beside it. Raises UserError for what is missing or exists already.
    """
    file = _statistics_file(plain_name("--custom_name", name), mode, "custom", "na")
    make_directory(file.parent, "clean-fid's statistics")
    if file.exists():
        raise UserError(f"--custom_name={name}: there are statistics of that name; choose another, or delete {file}")
    images = folder_images(folder)
    with tempfile.TemporaryDirectory() as temporary_directory:
        features = reference_features(Path(temporary_directory), images, extractor, batch_size)
    gaussian = Gaussian.of(features)
    with atomic_write(_features_file(file)) as temporary:
        np.savez_compressed(temporary, feats=features)
    with atomic_write(file) as temporary:
        np.savez_compressed(temporary, mu=gaussian.mu, sigma=gaussian.sigma)
    return file
