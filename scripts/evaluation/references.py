"""What generated images are compared with: clean-fid's statistics, an .npz of features or images, a
folder, or a data set.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cleanfid
import cleanfid.features
import numpy as np
from ml_collections import ConfigDict

from model_code.unet import image_shape
from scripts.config.paths import plain_name, user_path
from scripts.data.datasets import open_images
from scripts.data.images import Images, UnreadableImage, checksum, checksums, list_images
from scripts.data.loader import NAMED, UnreadableImages
from scripts.errors import UserError
from scripts.evaluation.distances import Gaussian, Reference
from scripts.evaluation.features import (
    Extractor,
    NativeFolder,
    cached_features,
    data_set_images,
    image_features,
)
from scripts.evaluation.metrics import Metric
from scripts.runtime import distributed
from scripts.runtime.progress import warn
from scripts.storage.files import atomic_write, make_directory, read_npz
from scripts.storage.record import Record

CLEANFID = "cleanfid:"
"""Before a name: that of clean-fid's statistics, whatever folder has the same name."""
Arrays = dict[str, np.ndarray]
"""Mean and covariance of features, `mu` (d,) and `sigma` (d, d), the features `feats` (M, d), or
all three.
"""


def find_reference(
    name: str,
    split: str,
    data: ConfigDict,
    directory: Path,
    metrics: Sequence[Metric],
    k: int,
    extractor: Extractor,
    batch_size: int,
) -> Reference:
    """What `--dataset_name_cleanfid=name` stands for, with what the metrics need of it.

    name: of clean-fid's statistics or, with split "custom", of custom ones; the path of an .npz or
    of a folder; or "" for the split of the configuration's own data set. Features of images are
    cached in `directory`. Raises UserError for whatever is missing, and if there are fewer
    images than a metric needs.
    """
    path = user_path(name, "--dataset_name_cleanfid")
    if name and path.is_dir() and "/" not in name and split != "custom":
        raise UserError(
            f"--dataset_name_cleanfid={name}: a folder here, and perhaps a name of clean-fid's; "
            f"write ./{name} for the folder, or {CLEANFID}{name} for clean-fid's statistics"
        )

    def of_images(description: str, images: Images, labels: np.ndarray | None = None) -> Reference:
        """Features of images with labels (N,), those that can be read, as a reference."""
        rows = readable_features(directory, images, extractor, batch_size, "reference images")
        return Reference(
            description,
            rows["features"],
            size=first_size(images),
            crc32=checksum(rows["crc32"]),
            labels=None if labels is None else labels[rows["index"]],
        )

    if name == "":
        images = data_set_images(data, split)
        reference = of_images(f"{data.dataset} {split}", images, images.labels)
    elif path.suffix == ".npz":
        arrays = _read(path)
        if "arr_0" in arrays:
            reference = of_images(name, open_images(name, "--dataset_name_cleanfid", None, data))
        else:
            reference = _reference(name, arrays, extractor.num_features, metrics)
    elif "/" in name:
        reference = of_images(name, folder_images(path))
    elif "mode" not in extractor.settings:
        raise UserError(
            f"--dataset_name_cleanfid={name}: clean-fid's statistics are of Inception's features; "
            "give a folder"
        )
    else:
        _, height, width = image_shape(data)
        if height != width and split != "custom":
            raise UserError(
                f"--dataset_name_cleanfid={name}: clean-fid's statistics are of squares, and "
                f"config.data.image_size = {data.image_size}; give a folder"
            )
        arrays = named_statistics(
            name.removeprefix(CLEANFID), extractor.settings["mode"], split, height, metrics
        )
        reference = _reference(
            f"{name} {split}, clean-fid's statistics", arrays, extractor.num_features, metrics
        )
    for metric in metrics:
        fewest, features = metric.fewest(k), reference.features
        if features is not None and len(features) < fewest:
            raise UserError(
                f"{reference.description}: {len(features)} images, where {metric.name} needs at "
                f"least {fewest}"
            )
    return reference


def folder_images(folder: Path) -> NativeFolder:
    """All images below a folder, at their own sizes, as clean-fid takes them.

    Raises UserError if there are none.
    """
    paths = list_images(folder) if folder.is_dir() else []
    if not paths:
        raise UserError(
            f"{folder}: {'no image files in it' if folder.is_dir() else 'no such folder'}"
        )
    return NativeFolder(folder, paths)


def first_size(images: Images) -> tuple[int, int] | None:
    """(H, W) of the first image that can be read."""
    for i in range(len(images)):
        with contextlib.suppress(UnreadableImage):
            height, width = images[i].shape[1:]
            return height, width
    return None


def readable_features(
    directory: Path, images: Images, extractor: Extractor, batch_size: int, what: str
) -> np.ndarray:
    """Rows of `features_of` all images (M,) that can be read, with their "index" among all, cached
    in `directory`; `what` they are in messages."""
    record = Record(metric=extractor.settings, files={"images": images.version()})

    def compute(indices: range) -> np.ndarray:
        return image_features(images, indices, extractor)

    rows = cached_features(
        directory, record.key, len(images), batch_size, compute, f"features of {what}"
    )
    unreadable, missing = UnreadableImages(), np.isnan(rows["features"][:, 0])
    for i in np.flatnonzero(missing).tolist():
        reason = f"{images.name(i)}: could not be read when its features were computed"
        if len(unreadable) < NAMED:  # the cache has no reasons
            try:
                images[i]
            except UnreadableImage as error:
                reason = str(error)
        unreadable.add(reason)
    unreadable.report(len(images), what)
    if isinstance(images, NativeFolder) and images.altered.total():
        altered = [f"{n} with {kind}" for kind, n in images.altered.most_common() if n]
        warn(f"{what} are read as clean-fid reads them: {'; '.join(altered)}")
    readable = np.empty(len(rows), [*rows.dtype.descr, ("index", np.int64)])
    for name in ("features", "crc32"):
        readable[name] = rows[name]
    readable["index"] = np.arange(len(rows))
    return readable[~missing]


# --- files of statistics ---


def statistics_folder() -> Path:
    """Where clean-fid keeps its statistics; custom ones go there too."""
    return Path(cleanfid.__file__).parent / "stats"


def named_statistics(
    name: str, mode: str, split: str, image_size: int, metrics: Sequence[Metric]
) -> Arrays:
    """What the metrics need of clean-fid's statistics of a data set, downloaded if necessary.

    With split "custom" those that `--save_stats` or clean-fid made, possibly with a resolution in
    the file's name. Raises UserError if they do not exist.
    """
    plain_name("--dataset_name_cleanfid", name)
    plain_name("--dataset_split", split)
    needs = {metric.needs for metric in metrics}
    arrays: Arrays = {}
    if split == "custom":
        files = [
            statistics_folder() / f"{name}_{mode}_custom_{size}.npz".lower()
            for size in ("na", image_size)
        ]
        file = next((file for file in files if file.is_file()), None)
        if file is None:
            raise UserError(
                f"--dataset_name_cleanfid={name}: there is no {files[0]}; "
                f"make it with --save_stats --custom_name={name} --cleanfid_mode={mode} "
                "--dataset_path=FOLDER"
            )
        return _read(file) | (
            _read(file.with_name(f"{file.stem}_kid.npz")) if "features" in needs else {}
        )
    try:
        with distributed.main_first():
            if "moments" in needs:
                arrays["mu"], arrays["sigma"] = cleanfid.features.get_reference_statistics(
                    name, image_size, mode=mode, split=split, metric="FID"
                )
            if "features" in needs:
                arrays["feats"] = cleanfid.features.get_reference_statistics(
                    name, image_size, mode=mode, split=split, metric="KID"
                )
    except (OSError, ValueError) as error:  # ValueError: a download that was cut short
        raise UserError(
            f"--dataset_name_cleanfid={name} --dataset_split={split}: clean-fid's statistics for "
            f"{image_size} pixels cannot be "
            f"read from {statistics_folder()} or downloaded ({error}); give a folder of images, or "
            "make custom statistics with "
            "--save_stats"
        ) from None
    return arrays


def _read(file: Path) -> Arrays:
    try:
        arrays = read_npz(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: cannot be read as an .npz of arrays ({error})") from None
    for name in arrays.keys() & {"mu", "sigma", "feats"}:
        if arrays[name].dtype.kind != "f" or not np.isfinite(arrays[name]).all():
            raise UserError(f"{file}: {name} must be finite numbers; make the statistics again")
    sigma = arrays.get("sigma", np.zeros((1, 1)))
    if sigma.ndim == 2 and sigma.shape[0] == sigma.shape[1] and not _is_covariance(sigma):
        raise UserError(
            f"{file}: sigma is no covariance, as it is not symmetric and positive semi-definite"
        )
    return arrays


def _is_covariance(sigma: np.ndarray) -> bool:
    """Whether a matrix is symmetric and positive semi-definite, within the rounding of float32."""
    tolerance = 1e-6 * np.abs(sigma).max()
    try:
        np.linalg.cholesky(sigma + len(sigma) * max(tolerance, 1e-12) * np.eye(len(sigma)))
    except np.linalg.LinAlgError:
        return False
    return np.allclose(sigma, sigma.T, atol=tolerance)


def _reference(where: str, arrays: Arrays, d: int, metrics: Sequence[Metric]) -> Reference:
    """Raises UserError if there is not what the metrics need, or if it is not of d features."""
    shapes = {name: array.shape for name, array in arrays.items()}
    has_moments = shapes.get("mu") == (d,) and shapes.get("sigma") == (d, d)
    has_features = len(shapes.get("feats", ())) == 2 and shapes["feats"][1] == d
    if not has_features and (
        not has_moments or any(metric.needs == "features" for metric in metrics)
    ):
        right = f"feats (M, {d}) or, for --mode=fid alone, mu ({d},) and sigma ({d}, {d})"
        raise UserError(f"{where}: must hold {right}; it has {shapes}")
    moments = Gaussian(arrays["mu"], arrays["sigma"]) if has_moments else None
    crc32 = checksum(checksums(arrays[name] for name in sorted(arrays)))
    return Reference(where, arrays["feats"] if has_features else None, moments, crc32=crc32)


def save_statistics(
    name: str, folder: Path, extractor: Extractor, mode: str, batch_size: int
) -> Path:
    """Make statistics of a folder of images, for `--dataset_name_cleanfid=<name>
    --dataset_split=custom`.

    They are stored where clean-fid keeps its own and under its naming scheme, so that it finds them
    too. Returns the file with mean and covariance; features are beside it. Raises UserError for
    whatever is missing or exists already.
    """
    stem = f"{plain_name('--custom_name', name)}_{mode}_custom_na".lower()
    directory = make_directory(statistics_folder(), "clean-fid's statistics")
    file = directory / f"{stem}.npz"
    if file.exists():
        raise UserError(
            f"--custom_name={name}: there are statistics of that name; choose another, or delete "
            f"{file}"
        )
    images = folder_images(folder)
    with tempfile.TemporaryDirectory() as temporary_directory:
        features = readable_features(
            Path(temporary_directory), images, extractor, batch_size, "images"
        )["features"]
    if len(features) < 2:
        raise UserError(
            f"--dataset_path={folder}: {len(features)} images can be read, where statistics need "
            "at least 2"
        )
    gaussian = Gaussian.of(features)
    with atomic_write(directory / f"{stem}_kid.npz") as temporary:
        np.savez_compressed(temporary, feats=features)
    with atomic_write(file) as temporary:
        np.savez_compressed(temporary, mu=gaussian.mu, sigma=gaussian.sigma)
    return file
