"""From the name of a data set to its images, and which of them are held out."""

import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import lmdb
import numpy as np
from ml_collections import ConfigDict

from scripts.data.images import (
    ArrayImages,
    FolderImages,
    ImageSource,
    LsunImages,
    Unusable,
    list_images,
    require_folder,
    torchvision_array,
)
from scripts.errors import UserError
from scripts.io import read_npz, user_path

Split = Literal["train", "held_out"]
DATA = Path(__file__).resolve().parents[2] / "data"


def load_images(data: ConfigDict, split: Split) -> ImageSource:
    """The images that `config.data` names: those to train on, or those held out.

    Raises UserError, naming key and value, for a data set that is unknown, missing, damaged or too small.
    """
    data_set = DATA_SETS.get(data.dataset.lower())
    if data_set is None:
        raise UserError(f"config.data.dataset = {data.dataset!r}: must be one of {', '.join(DATA_SETS)}")
    value = f"config.data.dataset = {data.dataset!r}" + (f", config.data.path = {data.path!r}" if data.path else "")
    if data.path:
        place = user_path(data.path, "config.data.path")
    elif data_set.place is not None:
        place = DATA / data_set.place
    else:
        raise UserError(f"{value}: config.data.path is empty; set it to {data_set.right}")
    try:
        source = data_set.open(place, split, data.image_size, data.num_channels)
        if len(source) == 0:  # sources that come already split; the others have at least one image in each part
            raise Unusable(f"{place} has no images in this split")
    except (Unusable, OSError) as error:
        right = data_set.right.format(place=place)
        raise UserError(f"{value}: {' '.join(str(error).split())}; what would be right: {right}") from error
    return source


class DataSet(NamedTuple):
    """How a data set is opened: `open(place, split, image_size, num_channels)`, raising Unusable or OSError."""

    open: Callable[[Path, Split, int, int], ImageSource]
    place: str | None  # below data/; None if only config.data.path can say
    right: str  # what should be in {place}, for messages


def _open_mnist5k(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    try:
        arrays = read_npz(place)
    except ValueError as error:
        raise Unusable(f"{place} cannot be read: {error}") from error
    images, held_out = (arrays.get(name, np.empty(0)) for name in ("images", "held_out"))
    if images.dtype != np.uint8 or images.ndim != 3 or 0 in images.shape:
        raise Unusable(f"{place} holds images {images.dtype} {images.shape}")
    if held_out.dtype != np.bool_ or held_out.shape != images.shape[:1]:
        raise Unusable(f"{place} holds {len(images)} images and held_out {held_out.dtype} {held_out.shape}")
    return ArrayImages(images, size, channels, np.flatnonzero(held_out == (split == "held_out")))


def _open_mnist(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    return ArrayImages(torchvision_array("MNIST", place, split == "train"), size, channels)


def _open_cifar10(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    return ArrayImages(torchvision_array("CIFAR10", place, split == "train"), size, channels)


def _open_lsun_church(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    folder = place / f"church_outdoor_{'train' if split == 'train' else 'val'}_lmdb"
    require_folder(folder)
    try:
        return LsunImages(folder, size, channels)
    except lmdb.Error as error:
        raise Unusable(f"{folder} is not an LMDB: {error}") from error


def _open_afhq(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    folder = place / ("train" if split == "train" else "val")
    return FolderImages(folder, _images_below(folder), size, channels)


def _open_folder(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    paths = _images_below(place)
    chosen = split_indices([path.encode("utf-8", "surrogateescape") for path in paths], split)
    return FolderImages(place, [paths[i] for i in chosen], size, channels)


def _open_npy(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # NumPy's parser of headers raises whatever they lead it to
        raise Unusable(f"{place} is not an array that NumPy can map: {error}") from error
    if not isinstance(array, np.ndarray):
        raise Unusable(f"{place} is an archive of arrays (.npz), not one array")
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
        raise Unusable(f"{place} holds {array.dtype} {array.shape}")
    if len(array) < 2 or 0 in array.shape:
        raise Unusable(f"{place} holds {array.shape}, which is fewer than 2 images")
    # Numbers padded with zeros: the checksums of "9" and "10" would depend on their lengths.
    keys = [f"{i:010d}".encode() for i in range(len(array))]
    return ArrayImages(array, size, channels, split_indices(keys, split))


def _images_below(folder: Path) -> list[str]:
    require_folder(folder)
    paths = list_images(folder)
    if len(paths) < 2:
        raise Unusable(f"{folder} has {len(paths) or 'no'} image files, where at least 2 are needed")
    return paths


def split_indices(keys: Sequence[bytes], split: Split) -> np.ndarray:
    """Indices, ascending, of the keys that belong to `split`: a tenth is held out, at least one image and at most 1000.

    A checksum of each image's own key decides, neither seed nor order: a data set is split once and for all, and near
    neighbours, such as frames of a video, fall on either side alike.
    """
    ranked = sorted(range(len(keys)), key=lambda i: (zlib.crc32(keys[i]), keys[i]))
    num_held_out = min(max(1, len(keys) // 10), 1000)
    return np.sort(np.array(ranked[:num_held_out] if split == "held_out" else ranked[num_held_out:], dtype=np.int64))


DATA_SETS = {
    "mnist5k": DataSet(_open_mnist5k, "mnist5k.npz", "{place} as it comes with the program"),
    "mnist": DataSet(
        _open_mnist,
        "",
        "the four files train-images-idx3-ubyte.gz, ... of https://ossci-datasets.s3.amazonaws.com/mnist/ in {place}/MNIST/raw",
    ),
    "cifar10": DataSet(_open_cifar10, "", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in {place}"),
    "lsun_church": DataSet(
        _open_lsun_church,
        "lsun",
        "church_outdoor_train_lmdb and church_outdoor_val_lmdb, from the download script of https://github.com/fyu/lsun, "
        "unpacked in {place}",
    ),
    "ffhq": DataSet(
        _open_folder,
        "ffhq-dataset/images1024x1024",
        "the folder images1024x1024 of https://github.com/NVlabs/ffhq-dataset as {place}",
    ),
    "afhq": DataSet(_open_afhq, "afhq", "AFHQ's train and val, from https://github.com/clovaai/stargan-v2, in {place}"),
    "folder": DataSet(_open_folder, None, "a folder with at least 2 images (.png, .jpg, ...), in subfolders or not"),
    "npy": DataSet(
        _open_npy, None, "a .npy file by numpy.save: at least 2 images, uint8 (N, H, W) or (N, H, W, C) with C 1 or 3"
    ),
}
