"""Files of statistics: clean-fid's own by name, custom ones, and any .npz with mean and covariance or features."""

from dataclasses import dataclass
from pathlib import Path

import cleanfid
import numpy as np

from scripts.downloads import fetch
from scripts.errors import UserError
from scripts.evaluation.distances import Gaussian
from scripts.io import atomic_write, make_directory, plain_name, read_npz

STATISTICS_URL = "https://www.cs.cmu.edu/~clean-fid/stats/"


@dataclass(frozen=True)
class Reference:
    """A reference set as far as it was asked for and is known."""

    description: str
    gaussian: Gaussian | None
    features: np.ndarray | None
    """(M, d); None where only mean and covariance are known."""

    @property
    def num_features(self) -> int:
        """d"""
        if self.features is not None:
            return self.features.shape[1]
        assert self.gaussian is not None
        return len(self.gaussian.mu)

    @classmethod
    def of(cls, description: str, features: np.ndarray) -> "Reference":
        """Of features (M, d), M at least 2. Raises UserError if there are fewer."""
        if len(features) < 2:
            raise UserError(f"{description}: {len(features)} reference images, where at least 2 are needed")
        return cls(description, Gaussian.of(features), features)


def statistics_folder() -> Path:
    """Where clean-fid keeps its statistics, ours among them."""
    return Path(cleanfid.__file__).parent / "stats"


def statistics_file(name: str, mode: str, split: str, image_size: int | str, suffix: str = "") -> Path:
    """clean-fid's file for a data set, in small letters whatever the name's are; suffix "_kid" for features."""
    size = "na" if split == "custom" else image_size
    return statistics_folder() / f"{name}_{mode}_{split}_{size}{suffix}.npz".lower()


def named_statistics(name: str, mode: str, split: str, image_size: int, *, moments: bool, features: bool) -> Reference:
    """clean-fid's statistics of a data set, fetched if they are not there: mean and covariance, features, or both.

    Raises UserError if there are none, or none with features.
    """
    gaussian = _gaussian(_named_file(name, mode, split, image_size, "")) if moments else None
    kept = _features(_named_file(name, mode, split, image_size, "_kid")) if features else None
    return Reference(f"{name} {split}, clean-fid's statistics", gaussian, kept)


def _named_file(name: str, mode: str, split: str, image_size: int, suffix: str) -> Path:
    plain_name("--dataset_name_cleanfid", name)
    plain_name("--dataset_split", split)
    file = statistics_file(name, mode, split, image_size, suffix)
    if file.is_file():
        return file
    if split == "custom":
        found = sorted(path.name.partition(f"_{mode}_")[0] for path in statistics_folder().glob(f"*_{mode}_custom_na.npz"))
        raise UserError(
            f"--dataset_name_cleanfid={name}: there are no custom statistics {file} (there are: {', '.join(found) or 'none'}); "
            f"make them with --save_stats --custom_name={name} --dataset_path=FOLDER --cleanfid_mode={mode}"
        )
    kind = "features for KID and PRDC" if suffix else "statistics"
    advice = (
        f"clean-fid may have no {kind} for --dataset_name_cleanfid={name} --dataset_split={split} at {image_size} pixels; "
        "give a folder of images instead, or make custom statistics with --save_stats"
    )
    fetch(STATISTICS_URL + file.name, file, advice)
    return file


def statistics_from_file(file: Path, *, moments: bool, features: bool) -> Reference:
    """An .npz with `mu` and `sigma`, `feats` (as clean-fid's KID files) or both. Raises UserError for what it lacks."""
    arrays = _load(file)
    kept = _features(file) if "feats" in arrays else None
    gaussian = None
    if moments:
        gaussian = Reference.of(str(file), kept).gaussian if kept is not None and "mu" not in arrays else _gaussian(file)
    if features and kept is None:
        raise UserError(
            f"{file}: KID and PRDC need reference features (feats), it has only {', '.join(arrays)}; use --mode=fid"
        )
    return Reference(str(file), gaussian, kept)


def _gaussian(file: Path) -> Gaussian:
    arrays = _load(file)
    mu, sigma = (arrays.get(key, np.empty(())) for key in ("mu", "sigma"))
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        found = ", ".join(f"{key} {value.shape}" for key, value in arrays.items())
        raise UserError(f"{file}: must hold mu (d,) and sigma (d, d), it has {found}")
    return Gaussian(_finite(file, mu).astype(np.float64), _finite(file, sigma).astype(np.float64))


def _features(file: Path) -> np.ndarray:
    feats = _load(file).get("feats", np.empty(0))
    if feats.ndim != 2 or len(feats) < 2:
        raise UserError(f"{file}: must hold feats (M, d) with at least 2 rows, it has {feats.shape}")
    return _finite(file, feats).astype(np.float32, copy=False)


def _finite(file: Path, array: np.ndarray) -> np.ndarray:
    if array.size == 0 or array.dtype.kind != "f" or not np.isfinite(array).all():
        raise UserError(f"{file}: its {array.dtype} {array.shape} must be finite floating-point numbers")
    return array


def _load(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise UserError(f"--dataset_name_cleanfid={file}: there is no such file")
    try:
        return read_npz(file)
    except (ValueError, OSError) as error:
        raise UserError(f"{file}: not an .npz of arrays ({error})") from None


def write_custom_statistics(name: str, mode: str, reference: Reference) -> Path:
    """Write both of clean-fid's files for a reference with features; the path of that with mean and covariance.

    Raises UserError if they are there already or cannot be written.
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
    """Where custom statistics and features go. Raises UserError for a name that does not do, or is taken."""
    plain_name("--custom_name", name)
    files = statistics_file(name, mode, "custom", "na"), statistics_file(name, mode, "custom", "na", "_kid")
    for file in files:
        if file.exists():
            raise UserError(f"--custom_name={name}: there are statistics of that name; choose another, or delete {file}")
    return files
