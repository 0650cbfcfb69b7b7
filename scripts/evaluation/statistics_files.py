"""Files of reference statistics: clean-fid's by name, custom ones, and any .npz with mean and covariance or features."""

from dataclasses import dataclass
from pathlib import Path

import cleanfid
import cleanfid.features
import numpy as np

from scripts.errors import UserError
from scripts.evaluation.distances import Gaussian
from scripts.io import atomic_write, make_directory, plain_name, read_npz


@dataclass(frozen=True)
class Reference:
    """What is known of a reference set: mean and covariance of its features, the features, or both."""

    description: str
    gaussian: Gaussian | None
    features: np.ndarray | None
    """(M, d)"""

    @property
    def num_features(self) -> int:
        """d"""
        if self.features is not None:
            return self.features.shape[1]
        assert self.gaussian is not None
        return len(self.gaussian.mu)

    @classmethod
    def of(cls, description: str, features: np.ndarray) -> "Reference":
        """Of features (M, d). Raises UserError if M is less than 2."""
        if len(features) < 2:
            raise UserError(f"{description}: {len(features)} reference images, where at least 2 are needed")
        return cls(description, Gaussian.of(features), features)


def statistics_folder() -> Path:
    """Where clean-fid keeps its statistics; custom ones go there too."""
    return Path(cleanfid.__file__).parent / "stats"


def named_statistics(name: str, mode: str, split: str, image_size: int, *, moments: bool, features: bool) -> Reference:
    """clean-fid's statistics of a data set, downloaded if necessary: mean and covariance, features, or both.

    With split "custom" those that `--save_stats` or clean-fid made, possibly with a resolution in the file's name. Raises
    UserError if they do not exist.
    """
    plain_name("--dataset_name_cleanfid", name)
    plain_name("--dataset_split", split)
    metrics = {"FID": moments, "KID": features}
    if split == "custom":
        file = _custom_file(name, mode, image_size)
        files = {"FID": file, "KID": file.with_name(f"{file.stem}_kid.npz")}
        arrays = [_read(files[metric]) for metric, needed in metrics.items() if needed]
    else:
        arrays = [_published(name, mode, split, image_size, metric) for metric, needed in metrics.items() if needed]
    together = {key: array for found in arrays for key, array in found.items()}
    return _reference(f"{name} {split}, clean-fid's statistics", together, moments=moments, features=features)


def _custom_file(name: str, mode: str, image_size: int) -> Path:
    prefix = f"{name}_{mode}_custom_".lower()
    for size in ("na", image_size):
        if (file := statistics_folder() / f"{prefix}{size}.npz").is_file():
            return file
    found = sorted(path.stem for path in statistics_folder().glob("*_custom_*.npz") if not path.stem.endswith("_kid"))
    raise UserError(
        f"--dataset_name_cleanfid={name}: {statistics_folder()} has no {prefix}na.npz or {prefix}{image_size}.npz (it has: "
        f"{', '.join(found) or 'none'}); make it with --save_stats --custom_name={name} --cleanfid_mode={mode} "
        "--dataset_path=FOLDER"
    )


def _published(name: str, mode: str, split: str, image_size: int, metric: str) -> dict[str, np.ndarray]:
    try:
        found = cleanfid.features.get_reference_statistics(name, image_size, mode=mode, split=split, metric=metric)
    except Exception as error:  # of the network, or of NumPy for a file that was cut short
        raise UserError(
            f"--dataset_name_cleanfid={name} --dataset_split={split}: clean-fid's {metric} statistics for {image_size} pixels "
            f"cannot be read from {statistics_folder()} or downloaded ({' '.join(str(error).split())}); give a folder of "
            "images instead, or make custom statistics with --save_stats"
        ) from None
    return {"feats": found} if metric == "KID" else {"mu": found[0], "sigma": found[1]}


def statistics_from_file(file: Path, *, moments: bool, features: bool) -> Reference:
    """An .npz with `mu` and `sigma`, `feats` (as clean-fid's KID files) or both. Raises UserError for what it lacks."""
    if not file.is_file():
        raise UserError(f"--dataset_name_cleanfid={file}: there is no such file")
    return _reference(str(file), _read(file), moments=moments, features=features)


def _read(file: Path) -> dict[str, np.ndarray]:
    try:
        return read_npz(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not an .npz of arrays ({error})") from None


def _reference(where: str, arrays: dict[str, np.ndarray], *, moments: bool, features: bool) -> Reference:
    """What is asked for of mu (d,), sigma (d, d) and feats (M, d)."""
    mu, sigma, feats = (arrays.get(name) for name in ("mu", "sigma", "feats"))
    fit = all(array.dtype.kind == "f" and np.isfinite(array).all() for array in (mu, sigma, feats) if array is not None)
    if mu is not None:
        fit = fit and mu.ndim == 1 and len(mu) > 0 and sigma is not None and sigma.shape == (len(mu), len(mu))
    if feats is not None:
        fit = fit and feats.ndim == 2 and feats.shape[0] >= 2 and feats.shape[1] >= 1
    has = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
    if not fit or (mu is None and feats is None):
        raise UserError(f"{where}: must hold finite mu (d,) and sigma (d, d), or feats (M, d), M at least 2; it has {has}")
    if features and feats is None:
        raise UserError(f"{where}: KID and PRDC need reference features (feats), it has only {has}; use --mode=fid")
    gaussian = None
    if mu is not None and sigma is not None:
        gaussian = Gaussian(mu.astype(np.float64), sigma.astype(np.float64))
    elif moments and feats is not None:
        gaussian = Gaussian.of(feats)
    return Reference(where, gaussian, None if feats is None else feats.astype(np.float32, copy=False))


def write_custom_statistics(name: str, mode: str, reference: Reference) -> Path:
    """Write both of clean-fid's files for a reference with features. Returns that of mean and covariance.

    Raises UserError if they exist or cannot be written.
    """
    file, kid_file = custom_files(name, mode)
    assert reference.gaussian is not None
    assert reference.features is not None
    make_directory(file.parent, "clean-fid's statistics")
    with atomic_write(kid_file) as temporary:
        np.savez_compressed(temporary, feats=reference.features)
    with atomic_write(file) as temporary:
        np.savez_compressed(temporary, mu=reference.gaussian.mu, sigma=reference.gaussian.sigma)
    return file


def custom_files(name: str, mode: str) -> tuple[Path, Path]:
    """Files for custom statistics and features, in lower case as clean-fid's. Raises UserError for a bad or taken name."""
    stem = f"{plain_name('--custom_name', name)}_{mode}_custom_na".lower()
    files = statistics_folder() / f"{stem}.npz", statistics_folder() / f"{stem}_kid.npz"
    for file in files:
        if file.exists():
            raise UserError(f"--custom_name={name}: there are statistics of that name; choose another, or delete {file}")
    return files
