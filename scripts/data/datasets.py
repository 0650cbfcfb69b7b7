"""From the name of a data set to its images, their labels, and which of them are held out."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from scripts.config.paths import user_path
from scripts.data.images import (
    ArrayImages,
    FolderImages,
    Images,
    ImageSource,
    LsunImages,
    UnreadableImage,
    bilinear,
    list_images,
    warn_of_losses,
)
from scripts.data.packs import PackedImages, pack_settings, read_pack
from scripts.errors import UserError, one_line, printable
from scripts.storage.files import lock, read_npz

Split = Literal["train", "held_out", "all"]
DATA = Path(__file__).resolve().parents[2] / "data"
LABELLED = ("mnist5k", "emoji32", "mnist", "cifar10")
"""Data sets whose images have classes."""
UNDIVIDED = ("ffhq", "folder", "npy")
"""Data sets that come without a split: names or row numbers decide. Only these have the split
"all".
"""


class DataSet(NamedTuple):
    """How a data set is opened: `open(path, split, image_size, num_channels)`, with any exception
    if it is not there.
    """

    open: Callable[[Path, Split, int, int], ImageSource]
    place: str | None  # below data/; None if only config.data.path can say
    expected: str  # what should be in {place}, for messages


def load_images(data: ConfigDict, split: Split) -> ImageSource:
    """The images that `config.data` names, packed or not: those to train on, or those held out.

    Raises UserError, naming key and value, for a data set that is unknown, missing, damaged or too
    small.
    """
    data_set = DATA_SETS.get(data.dataset.lower())
    if data_set is None:
        raise UserError(
            f"config.data.dataset = {data.dataset!r}: must be one of {', '.join(DATA_SETS)}"
        )
    value = f"config.data.dataset = {data.dataset!r}" + (
        f", config.data.path = {data.path!r}" if data.path else ""
    )
    if not data.path and data_set.place is None:
        raise UserError(f"{value}: config.data.path is empty; set it to {data_set.expected}")
    place = user_path(data.path, "config.data.path") if data.path else DATA / str(data_set.place)
    pattern, open_part, of_files = data.group_pattern, data_set.open, data_set.open is _open_folder
    if pattern and not of_files:
        raise UserError(
            f"config.data.group_pattern = {pattern!r}: {value} is split otherwise; must be empty"
        )
    if data.held_out_path:
        if split == "held_out":
            return open_images(
                data.held_out_path, "config.data.held_out_path", data.image_size, data.num_channels
            )
        if data.dataset.lower() in UNDIVIDED:
            _require_apart(data.held_out_path, place)
            split = "all"
    try:
        parts = read_pack(place, pack_settings(data))
        if parts is None:
            open_part = partial(_open_folder, group_pattern=pattern) if of_files else open_part
            return open_part(place, split, data.image_size, data.num_channels)
        if split in parts:
            return PackedImages(place, split, parts[split])
        keys = _keys(
            parts["all"]["names"] if of_files else range(parts["all"]["shape"][0]), pattern
        )
        return PackedImages(place, "all", parts["all"], split_indices(keys, split))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # NumPy, torchvision, pickle and LMDB each have their own ways to say "damaged"
        reason = one_line(error) or type(error).__name__
        expected = data_set.expected.format(place=place)
        raise UserError(f"{value}: cannot be used ({reason}); expected: {expected}") from error


def open_images(text: str, flag: str, size: int | None, channels: int) -> ImageSource:
    """All images of a folder, of a pack, of an array (.npy, or arr_0 of an .npz), or a single image
    file.

    They are resized as training images are; with size None, an array's stay as they are. Raises
    UserError naming `flag` for what is missing or no images.
    """
    path = user_path(text, flag)
    try:
        if path.suffix in (".npy", ".npz"):
            return ArrayImages(read_images(path), size, channels)
        assert size is not None
        if (parts := read_pack(path, {"image_size": size, "num_channels": channels})) is not None:
            if "all" not in parts:
                raise ValueError(f"{path} is a pack with a split of its own")
            return PackedImages(path, "all", parts["all"])
        if path.is_dir():
            if not (paths := list_images(path)):
                raise ValueError("no image files in it")
            warn_of_losses(path, paths)
            return FolderImages(path, paths, size, channels)
        source = FolderImages(path.parent, [path.name], size, channels)
        source[0]  # raises UnreadableImage
        warn_of_losses(path.parent, [path.name])
        return source
    except (OSError, ValueError, UnreadableImage) as error:
        right = (
            "a folder of images, a pack, an image file, or uint8 (N, H, W[, C]) as .npy or as "
            "arr_0 of an .npz"
        )
        raise UserError(
            f"{flag}={text}: cannot be used ({one_line(error)}); expected: {right}"
        ) from None


def read_images(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped, or `arr_0` of an .npz: uint8 (N, H, W[, C]). Raises ValueError
    for other arrays.
    """
    array = (
        read_npz(path).get("arr_0")
        if path.suffix == ".npz"
        else np.load(path, mmap_mode="r", allow_pickle=False)
    )
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays (.npz) without arr_0")
    if (
        array.dtype != np.uint8
        or not (array.ndim == 3 or (array.ndim == 4 and array.shape[-1] in (1, 3)))
        or len(array) == 0
    ):
        raise ValueError(f"{path} holds {array.dtype} {array.shape}")
    return array


def load_whole(data: ConfigDict) -> dict[str, ImageSource]:
    """All images of a data set: {"all": ...}, or {"train": ..., "held_out": ...} where it comes
    with that split.

    Held-out images of their own are none of them. Raises UserError as `load_images` does.
    """
    data = ConfigDict({**data.to_dict(), "held_out_path": ""})
    parts: tuple[Split, ...] = (
        ("all",) if data.dataset.lower() in UNDIVIDED else ("train", "held_out")
    )
    return {part: load_images(data, part) for part in parts}


def load_labelled(data: ConfigDict, split: Split) -> tuple[ImageSource, np.ndarray]:
    """As `load_images`, with the images' classes, int64 (N,) from 0.

    Raises UserError for a data set without.
    """
    if data.dataset.lower() not in LABELLED:
        raise UserError(
            f"--feature_extractor=classifier: config.data.dataset = {data.dataset!r} has no "
            f"labels, {', '.join(LABELLED)} have; use --feature_extractor=inception"
        )
    if data.held_out_path and split == "held_out":
        shown = f"config.data.held_out_path = {data.held_out_path!r}"
        raise UserError(f"{shown}: has no labels; use --feature_extractor=inception")
    source = load_images(data, split)
    assert isinstance(source, ArrayImages)
    assert source.labels is not None
    return source, source.labels


def split_indices(keys: Sequence[bytes], split: Split) -> np.ndarray:
    """Indices, ascending, of the keys that belong to `split`: a tenth is held out, at least one
    image and at most 1000.

    Images with equal keys stay together: a group that is larger than what is wanted is passed over,
    unless nothing else is left and more would be missing without it. Ranked by a hash of the key,
    so that neither seed nor order matters. A cryptographic hash, because the ranks of similar keys,
    such as row numbers, must be as good as random; those of a CRC are not.
    """
    if split == "all":
        return np.arange(len(keys))
    counts, held_out, wanted = Counter(keys), set[bytes](), min(max(1, len(keys) // 10), 1000)
    ranked = sorted(counts, key=lambda key: blake2b(key, digest_size=8).digest())
    for key in ranked:
        if counts[key] <= wanted:
            held_out.add(key)
            wanted -= counts[key]
    larger = [key for key in ranked if key not in held_out]
    smallest = min(larger, key=counts.__getitem__)
    if not held_out or counts[smallest] < 2 * wanted:
        held_out.add(smallest)
    return np.flatnonzero([(key in held_out) == (split == "held_out") for key in keys])


def num_groups(images: Images, group_pattern: str) -> int:
    """How many groups, such as subjects, one side of a split by `data.group_pattern` has."""
    matches = (re.search(group_pattern, images.name(i)) for i in range(len(images)))
    return len({match and match[1] for match in matches})


def _keys(names: Iterable[str | int], group_pattern: str = "") -> list[bytes]:
    """What `split_indices` takes of names of files or numbers of rows: themselves, or what the
    pattern's first group matches.

    Raises UserError for a name that does not match, and if there is only one subject.
    """
    keys, shown = [str(name) for name in names], f"config.data.group_pattern = {group_pattern!r}"
    for i, name in enumerate(keys if group_pattern else ()):
        match = re.search(group_pattern, name)
        if match is None or match[1] is None:
            raise UserError(f"{shown}: must match every file, but does not match {printable(name)}")
        keys[i] = match[1]
    if group_pattern and len(set(keys)) < 2:
        raise UserError(
            f"{shown}: must tell at least 2 subjects apart, but all files are of {keys[0]!r}"
        )
    return [key.encode("utf-8", "surrogateescape") for key in keys]


def _open_embedded(path: Path, split: Split, size: int, channels: int) -> ArrayImages:
    arrays = read_npz(path)
    indices = np.flatnonzero(arrays["held_out"] == (split == "held_out"))
    return ArrayImages(arrays["images"], size, channels, indices, labels=arrays["labels"])


def _open_torchvision(name: str, root: Path, split: Split, size: int, channels: int) -> ArrayImages:
    """A data set that torchvision keeps below `root`, downloaded if it is not there; archives that
    are there are used.
    """
    _require_folder(root)
    from torchvision import datasets  # takes two seconds to import

    def read(download: bool = False) -> ArrayImages:
        """Read the split as torchvision does."""
        found = getattr(datasets, name)(root, train=split == "train", download=download)
        return ArrayImages(
            np.asarray(found.data),
            size,
            channels,
            resize=bilinear,
            labels=np.asarray(found.targets),
        )

    try:
        return read()
    except RuntimeError:  # not there, or damaged
        with (root / f".{name}.lock").open("w") as file:
            lock(
                file, wait=True
            )  # torchvision writes in place, and all processes of a job start with this
            return read(download=True)


def _open_lsun_church(path: Path, split: Split, size: int, channels: int) -> LsunImages:
    folder = path / ("church_outdoor_train_lmdb" if split == "train" else "church_outdoor_val_lmdb")
    _require_folder(folder)
    source = LsunImages(folder, size, channels)
    if len(source) == 0:
        raise ValueError(f"{folder} has no images")
    return source


def _open_afhq(path: Path, split: Split, size: int, channels: int) -> FolderImages:
    folder = path / ("train" if split == "train" else "val")
    return FolderImages(folder, _images_below(folder), size, channels)


def _open_folder(
    path: Path, split: Split, size: int, channels: int, group_pattern: str = ""
) -> FolderImages:
    paths = _images_below(path)
    chosen = split_indices(_keys(paths, group_pattern), split)
    return FolderImages(path, [paths[i] for i in chosen], size, channels)


def _images_below(folder: Path) -> list[str]:
    _require_folder(folder)
    paths = list_images(folder)
    if len(paths) < 2:
        raise ValueError(
            f"{folder} has {len(paths) or 'no'} image files, where at least 2 are needed"
        )
    warn_of_losses(folder, paths)
    return paths


def _open_npy(path: Path, split: Split, size: int, channels: int) -> ArrayImages:
    array = read_images(path)
    if len(array) < 2:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}")
    return ArrayImages(array, size, channels, split_indices(_keys(range(len(array))), split))


def _require_apart(held_out_path: str, place: Path) -> None:
    """Raise UserError if held-out images would be trained on."""
    held_out, trained_on = (
        user_path(held_out_path, "config.data.held_out_path").resolve(),
        place.resolve(),
    )
    if held_out.is_relative_to(trained_on) or trained_on.is_relative_to(held_out):
        shown = f"config.data.held_out_path = {held_out_path!r}"
        raise UserError(
            f"{shown}: must be apart from config.data.path = {str(place)!r}, whose images are "
            "all trained on"
        )


def require_outside_data(place: Path, flag: str, data: ConfigDict, **read: str | None) -> None:
    """Raise UserError if pictures that are written to `place`, which `flag` names, would become
    images of a data set.

    read: further folders whose images are read, by the flags that name them.
    """
    folders = {f"--{name}": folder for name, folder in read.items()}
    folders["config.data.held_out_path"] = data.held_out_path
    data_set = DATA_SETS.get(data.dataset.lower())
    if data_set is not None and data_set.open in (_open_folder, _open_afhq):
        folders["config.data.path"] = data.path or str(DATA / str(data_set.place))
    for name, folder in folders.items():
        if folder and place.resolve().is_relative_to(user_path(folder, name).resolve()):
            advice = "choose a directory elsewhere, or move it there"
            raise UserError(
                f"{flag}={place}: pictures there would become images of {name} = {folder!r}; "
                f"{advice}"
            )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")


DATA_SETS = {
    "mnist5k": DataSet(_open_embedded, "mnist5k.npz", "{place} as it comes with the program"),
    "emoji32": DataSet(_open_embedded, "emoji32.npz", "{place} as it comes with the program"),
    "mnist": DataSet(
        partial(_open_torchvision, "MNIST"),
        "",
        "the four .gz files of https://ossci-datasets.s3.amazonaws.com/mnist/ in "
        "{place}/MNIST/raw, and nothing else there",
    ),
    "cifar10": DataSet(
        partial(_open_torchvision, "CIFAR10"),
        "",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz in {place}",
    ),
    "lsun_church": DataSet(
        _open_lsun_church,
        "lsun",
        "church_outdoor_train_lmdb and church_outdoor_val_lmdb, by the script of "
        "https://github.com/fyu/lsun, in {place}",
    ),
    "ffhq": DataSet(
        _open_folder,
        "ffhq-dataset/images1024x1024",
        "images1024x1024 of https://github.com/NVlabs/ffhq-dataset as {place}",
    ),
    "afhq": DataSet(
        _open_afhq,
        "afhq",
        "AFHQ's train and val, from https://github.com/clovaai/stargan-v2, in {place}",
    ),
    "folder": DataSet(
        _open_folder,
        None,
        "a folder with at least 2 images (.png, .jpg, ...), in subfolders or not",
    ),
    "npy": DataSet(
        _open_npy,
        None,
        "a .npy file by numpy.save: at least 2 images, uint8 (N, H, W) or (N, H, W, C) with "
        "C 1 or 3",
    ),
}
