"""From the name of a data set to its images, their labels, and which of them are held out."""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from configs import default
from model_code.unet import image_shape
from scripts.config.paths import user_path
from scripts.data.images import (
    FITS,
    ORIENTATION,
    ArrayImages,
    FolderImages,
    Images,
    ImageSource,
    LsunImages,
    Resize,
    Shape,
    UnreadableImage,
    all_frames,
    bilinear,
    channels_first,
    file_and_frame,
    is_deep,
    list_images,
    num_frames,
    numbers_of,
    opened_frame,
    spread_evenly,
)
from scripts.data.labels import KEY as LABELS
from scripts.data.labels import read_labels, relabel
from scripts.data.packs import PackedImages, pack_settings, read_pack
from scripts.data.values import EIGHT_BIT, Found, Values
from scripts.errors import UserError, one_line, printable
from scripts.runtime.progress import warn_once
from scripts.storage.files import lock, read_npz

Split = Literal["train", "held_out", "all"]
DATA = Path(__file__).resolve().parents[2] / "data"
MOST_HELD_OUT = 1000
UNDIVIDED = ("ffhq", "folder", "npy")
"""Data sets that come without a split: names or row numbers decide. Only these have the split
"all".
"""
FEW_LEVELS = 64
"""The brightest of 256 levels if a 16-bit file holds 14 bits or fewer."""
MOST_SHOWN = 3
"""Sizes and kinds of files that are listed, the most frequent ones."""
FAR = 2
"""Above this ratio of its sides, as multiples of those it is to have, an image counts as of another
shape: more than half of it is cut off, or of the result padding."""
FAR_TEXT = {
    "crop": "are of another shape: more than half of them is cut off",
    "pad": "are of another shape: more than half of what is read is padding",
    "stretch": "are of another shape: they are stretched to more than twice",
}
"""What happens to such images, by config.data.fit."""
LOST_TEXT = {"crop": "of their pixels are cropped", "pad": "of what is read is padding"}
"""What happens to others that are not quite of that shape."""


class DataSet(NamedTuple):
    """How a data set is opened: `open(path, split, shape, data)`, with any exception if that fails.

    data: config.data.
    """

    open: Callable[[Path, Split, Shape, ConfigDict], ImageSource]
    place: str | None  # below data/; None if only config.data.path can say
    content: str  # what should be in {place}, for messages


def load_images(data: ConfigDict, split: Split) -> ImageSource:
    """The images that `config.data` names, packed or not: those to train on, or those held out.

    Raises UserError, naming key and value, for a data set that is unknown, missing, damaged or too
    small.
    """
    name = data.dataset.lower()
    if name not in DATA_SETS:
        choices = ", ".join(DATA_SETS)
        raise UserError(f"config.data.dataset = {data.dataset!r}: must be one of {choices}")
    data_set, shape = DATA_SETS[name], image_shape(data)
    value = f"config.data.dataset = {data.dataset!r}"
    if data.path:
        value += f", config.data.path = {data.path!r}"
        place = user_path(data.path, "config.data.path")
    elif data_set.place is None:
        raise UserError(f"{value}: config.data.path is empty; set it to {data_set.content}")
    else:
        place = DATA / data_set.place
    of_files = data_set.open is _open_folder
    if data.group_pattern and not of_files:
        shown = f"config.data.group_pattern = {data.group_pattern!r}"
        raise UserError(f"{shown}: {value} is split otherwise; must be empty")
    if data.labels and data_set.open not in (_open_folder, _open_afhq, _open_npy):
        raise UserError(f"{LABELS} = {data.labels!r}: must be empty for {name}")
    if data.held_out_path and split == "held_out":
        return _held_out(data, shape)
    part = split
    if name in UNDIVIDED:
        part = "all"
        if data.held_out_path:
            _require_apart(data.held_out_path, place)
            split = "all"
    try:
        settings = {"dataset": name, "labels": data.labels} | pack_settings(shape, data)
        pack = read_pack(place, settings)
        if pack is None:
            source = data_set.open(place, part, shape, data)
            if data.labels:
                read_labels(source, data.labels, place)
        else:
            source = PackedImages(place, part, pack[part])
        if data.labels and split == part == "held_out":
            relabel(source, load_images(data, "train").classes, value)
        if data.uniform_dequantization and source.dtype != EIGHT_BIT:
            shown = "config.data.uniform_dequantization = True"
            raise UserError(f"{shown}: must be False, as images are stored in {source.dtype}")
        if split == part:
            return source
        assert isinstance(source, ArrayImages | FolderImages)
        names: Iterable[str] = map(str, range(len(source)))
        if of_files:
            assert isinstance(source, PackedImages | FolderImages)
            names = source.paths
        keys = _keys(names, data.group_pattern)
        if source.labels is not None and data.labels and not data.group_pattern:
            return source.part(split_by_class(keys, source.labels, split))
        return source.part(split_indices(keys, split))
    except UserError:
        raise
    # NumPy, torchvision, pickle and LMDB each have their own ways to say "damaged".
    except Exception as error:
        reason = one_line(error) or type(error).__name__
        needed = data_set.content.format(place=place)
        raise UserError(f"{value}: cannot be used ({reason}); expected: {needed}") from error


def _held_out(data: ConfigDict, shape: Shape) -> ImageSource:
    """Held-out images of their own, of the classes of those to train on."""
    flag, text = "config.data.held_out_path", data.held_out_path
    source = open_images(text, flag, shape, data, as_exported=False)
    if data.labels:
        if not isinstance(source, PackedImages):
            read_labels(source, data.labels, user_path(text, flag))
        relabel(source, load_images(data, "train").classes, f"{flag} = {text!r}")
    return source


def open_images(
    text: str,
    flag: str,
    shape: Shape | None,
    data: ConfigDict | None = None,
    as_exported: bool = True,
) -> ImageSource:
    """All images of a folder, of a pack, of an array (.npy, or arr_0 of an .npz), or a single image
    file.

    They are read as training images are, by config.data or by its defaults; with shape None, an
    array's keep their shape; as_exported: values of 8 bits are 0 to 255, as in samples that were
    exported, whatever data.value_range says of the training images. Raises UserError naming `flag`
    for what is missing or no images.
    """
    path = user_path(text, flag)
    data = default.get_config().data if data is None else data
    try:
        if path.suffix in (".npy", ".npz"):
            return _array_images(read_images(path), shape, data, path, as_exported=as_exported)
        assert shape is not None
        pack = read_pack(path, pack_settings(shape, data))
        if pack is not None and "all" not in pack:
            raise ValueError(f"{path} is a pack with a split of its own")
        if pack is not None:
            return PackedImages(path, "all", pack["all"])
        if path.is_dir():
            return _files_below(path, shape, data, 1, as_exported)
        source = _files(path.parent, [path.name], shape, data, as_exported)
        source[0]  # raises UnreadableImage
        return source
    except UserError as error:
        raise UserError(f"{flag}={text}: {error}") from None
    except (OSError, ValueError, UnreadableImage) as error:
        right = (
            "a folder of images, a pack, an image file, or (N, H, W[, C]) as .npy or as arr_0 of "
            "an .npz"
        )
        reason = one_line(error)
        raise UserError(f"{flag}={text}: cannot be used ({reason}); expected: {right}") from None


def read_images(path: Path) -> np.ndarray:
    """A .npy file, memory-mapped, or `arr_0` of an .npz: numbers (N, H, W[, C]). Raises ValueError
    for other arrays.
    """
    if path.suffix == ".npz":
        array = read_npz(path).get("arr_0")
    else:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive of arrays (.npz) without arr_0")
    if array.dtype.kind not in "buif" or array.ndim not in (3, 4) or array.size == 0:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}")
    return array


def load_whole(data: ConfigDict) -> dict[str, ImageSource]:
    """All images of a data set: {"all": ...}, or {"train": ..., "held_out": ...} where it comes
    with that split.

    Held-out images of their own are none of them. Raises UserError as `load_images` does.
    """
    data = ConfigDict({**data.to_dict(), "held_out_path": ""})
    parts: tuple[Split, ...] = ("train", "held_out")
    if data.dataset.lower() in UNDIVIDED:
        parts = ("all",)
    return {part: load_images(data, part) for part in parts}


def load_labelled(data: ConfigDict, split: Split) -> tuple[ImageSource, np.ndarray]:
    """As `load_images`, with the images' classes, int64 (N,) from 0.

    Raises UserError for a data set without.
    """
    source = load_images(data, split)
    if source.labels is None:
        key = "held_out_path" if data.held_out_path and split == "held_out" else "dataset"
        raise UserError(
            f"--feature_extractor=classifier: config.data.{key} = {data[key]!r}: has no labels, "
            "mnist5k, emoji32, mnist, cifar10 have; set config.data.labels, or use "
            "--feature_extractor=inception"
        )
    return source, source.labels


def split_indices(keys: Sequence[bytes], split: Split, most: int = MOST_HELD_OUT) -> np.ndarray:
    """Indices, ascending, of the keys that belong to `split`: a tenth is held out, at least one
    image and at most `most`.

    Images with equal keys are on one side: a group larger than what is wanted is passed over,
    unless nothing else is left and more would be missing without it. Ranked by a hash of the key,
    so that neither seed nor order matters. A cryptographic hash, because the ranks of similar keys,
    such as row numbers, must be as good as random; those of a CRC are not.
    """
    if split == "all":
        return np.arange(len(keys))
    counts, held_out, wanted = Counter(keys), set[bytes](), min(max(1, len(keys) // 10), most)
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


def split_by_class(keys: Sequence[bytes], labels: np.ndarray, split: Split) -> np.ndarray:
    """As `split_indices`, of each class; at most 1000 in all, and none of a class of one image."""
    rows = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(1, MOST_HELD_OUT // len(rows))
    held_out = [
        of_class[split_indices([keys[i] for i in of_class.tolist()], "held_out", most)]
        for of_class in rows
        if len(of_class) > 1
    ]
    if not held_out:
        raise UserError(f"{LABELS}: every class has one image; must have several")
    is_held_out = np.isin(np.arange(len(keys)), np.concatenate(held_out))
    return np.flatnonzero(is_held_out == (split == "held_out"))


def num_groups(images: Images, group_pattern: str) -> int:
    """How many groups, such as subjects, one side of a split by `data.group_pattern` has."""
    names = (file_and_frame(images.name(i))[0] for i in range(len(images)))
    matches = (re.search(group_pattern, name) for name in names)
    return len({match and match[1] for match in matches})


def _keys(names: Iterable[str], group_pattern: str) -> list[bytes]:
    """What `split_indices` takes of names of files or numbers of rows: themselves, without the
    frame, or what the pattern's first group matches.

    Raises UserError for a name that does not match, and if there is only one subject.
    """
    keys = [file_and_frame(name)[0] for name in names]
    shown = f"config.data.group_pattern = {group_pattern!r}"
    if group_pattern:
        for i, name in enumerate(keys):
            match = re.search(group_pattern, name)
            if match is None or match[1] is None:
                which = f"must match every file, but does not match {printable(name)}"
                raise UserError(f"{shown}: {which}")
            keys[i] = match[1]
        if len(set(keys)) < 2:
            which = f"must tell at least 2 subjects apart, but all files are of {keys[0]!r}"
            raise UserError(f"{shown}: {which}")
    return [key.encode("utf-8", "surrogateescape") for key in keys]


def _array_images(
    array: np.ndarray,
    shape: Shape | None,
    data: ConfigDict,
    place: Path,
    resize: Resize | None = None,
    labels: np.ndarray | None = None,
    as_exported: bool = False,
) -> ArrayImages:
    """The images of an array, of the file `place`, once they have been looked at."""
    values, found = survey_array(array, shape, data, place, as_exported)
    images = ArrayImages(array, shape, resize or FITS[data.fit], labels, values)
    images.found = found
    return images


def _open_embedded(path: Path, split: Split, shape: Shape, data: ConfigDict) -> ArrayImages:
    arrays = read_npz(path)
    labels = arrays["labels"].astype(np.int64)
    images = _array_images(arrays["images"], shape, data, path, labels=labels)
    images.classes = tuple(map(str, arrays.get("categories", range(labels.max() + 1))))
    return images.part(np.flatnonzero(arrays["held_out"] == (split == "held_out")))


def _bilinear_or(how: str) -> Resize:
    """The release's way to crop some data sets, or one of the others."""
    return bilinear if how == "crop" else FITS[how]


def _open_torchvision(
    name: str, root: Path, split: Split, shape: Shape, data: ConfigDict
) -> ArrayImages:
    """A data set that torchvision keeps below `root`, downloaded if it is not there; archives that
    are there are used.
    """
    _require_folder(root)
    from torchvision import datasets  # takes two seconds to import

    read = partial(getattr(datasets, name), root, train=split == "train")
    try:
        data_set = read()
    except RuntimeError:  # not there, or damaged
        with (root / f".{name}.lock").open("w") as file:
            # torchvision writes in place, and all processes of a job start with this.
            lock(file, wait=True)
            data_set = read(download=True)
    labels = np.array(data_set.targets, np.int64)
    array = np.asarray(data_set.data)
    images = _array_images(array, shape, data, root, _bilinear_or(data.fit), labels)
    images.classes = tuple(name.partition(" - ")[0] for name in data_set.classes)  # "0 - zero"
    return images


def _open_lsun_church(path: Path, split: Split, shape: Shape, data: ConfigDict) -> LsunImages:
    folder = path / ("church_outdoor_train_lmdb" if split == "train" else "church_outdoor_val_lmdb")
    _require_folder(folder)
    if data.value_range:
        shown = f"config.data.value_range = {data.value_range}"
        raise UserError(f"{shown}: must be empty for lsun_church, which has 8-bit values")
    source = LsunImages(folder, shape, _bilinear_or(data.fit))
    if len(source) == 0:
        raise ValueError(f"{folder} has no images")
    return source


def _open_afhq(path: Path, split: Split, shape: Shape, data: ConfigDict) -> FolderImages:
    return _files_below(path / ("train" if split == "train" else "val"), shape, data)


def _open_folder(path: Path, split: Split, shape: Shape, data: ConfigDict) -> FolderImages:
    return _files_below(path, shape, data)


def _files_below(
    folder: Path, shape: Shape, data: ConfigDict, fewest: int = 2, as_exported: bool = False
) -> FolderImages:
    _require_folder(folder)
    paths = list_images(folder)
    if len(paths) < fewest:
        there = len(paths) or "no"
        raise ValueError(f"{folder} has {there} image files, where at least {fewest} are needed")
    return _files(folder, paths, shape, data, as_exported)


def _files(
    root: Path, paths: Sequence[str], shape: Shape, data: ConfigDict, as_exported: bool
) -> FolderImages:
    """Image files, or all frames of them, once they have been looked at."""
    names = all_frames(root, paths) if data.frames == "all" else paths
    values, found = survey_files(root, names, shape, data, as_exported)
    images = FolderImages(root, names, shape, FITS[data.fit], values)
    images.found = found
    return images


def _open_npy(path: Path, split: Split, shape: Shape, data: ConfigDict) -> ArrayImages:
    array = read_images(path)
    if len(array) < 2:
        raise ValueError(f"{path} holds {array.dtype} {array.shape}")
    return _array_images(array, shape, data, path)


def _require_apart(held_out_path: str, place: Path) -> None:
    """Raise UserError if held-out images would be trained on."""
    held_out = user_path(held_out_path, "config.data.held_out_path").resolve()
    if held_out.is_relative_to(place.resolve()) or place.resolve().is_relative_to(held_out):
        raise UserError(
            f"config.data.held_out_path = {held_out_path!r}: must be apart from config.data.path = "
            f"{str(place)!r}, whose images are all trained on"
        )


def require_outside_data(
    place: Path, flag: str, data: ConfigDict, **read: str | Path | None
) -> None:
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
        if folder and place.resolve().is_relative_to(user_path(str(folder), name).resolve()):
            advice = "choose a directory elsewhere, or move it there"
            raise UserError(
                f"{flag}={place}: pictures there would become images of {name} = {folder!r}; "
                f"{advice}"
            )


def _require_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")


# --- what is in a set of images: up to 64 are looked at, spread evenly, before any is read ---


def survey_files(
    root: Path, names: Sequence[str], shape: Shape, data: ConfigDict, as_exported: bool
) -> tuple[Values | None, str]:
    """Return how the numbers in image files become [0, 1], see `Found.values`, and what was found,
    in words.

    Warns of pages, levels of grey and parts of images that are not read; data: config.data. Raises
    UserError for values that need a range, or are out of it.
    """
    looked_at = spread_evenly(len(names))
    kind = "frames" if data.frames == "all" else "files"
    sizes, modes, counts = Counter[str](), Counter[str](), Counter[str]()
    found, kept = Found(), []
    for i in looked_at:
        with contextlib.suppress(UnreadableImage), opened_frame(root, names[i]) as image:
            # Pillow's name for how pixels are stored, while they are not read.
            halved = not is_deep(image) and ";16" in str(getattr(image, "tile", ""))
            height, width = _upright_size(image)
            sizes[f"{width} x {height}"] += 1
            kept.append(_kept(height, width, shape))
            counts["several"] += num_frames(image) > 1
            counts["transparent"] += image.has_transparency_data
            modes[f"{image.mode} in 16 bits, read in 8" if halved else image.mode] += 1
            if halved:
                counts["dark"] += 0 < np.asarray(image.convert("L")).max() <= FEW_LEVELS
            if is_deep(image) or data.value_range:
                found.add(numbers_of(image, shape[0]), data.value_range)
            else:
                found.types.add(EIGHT_BIT)
    counts["far"] = sum(part < 1 / FAR for part in kept)
    _warn_of_losses(f"{root}: of {len(looked_at)} {kind} that were looked at", counts, data)
    looked = f"{len(looked_at)} of {len(names)} {kind} looked at"
    values = found.values(data, f"{root} ({looked})", as_exported)
    lines = [f"{looked}: {_most(sizes)} pixels"]
    lines.append(f"{_most(modes)}, {found.describe(values)}")
    if unreadable := len(looked_at) - sizes.total():
        lines.append(f"{unreadable} cannot be read")
    if counts["transparent"]:
        where = "over white" if shape[0] in (1, 3) else "a channel of its own"
        lines.append(f"{counts['transparent']} with transparency, {where}")
    lost = 1 - float(np.mean(kept or [1]))
    if lost > 0.005 and data.fit in LOST_TEXT:
        lines.append(f"{lost:.0%} {LOST_TEXT[data.fit]}")
    return values, "; ".join(lines)


def _warn_of_losses(looked: str, counts: Counter[str], data: ConfigDict) -> None:
    if counts["dark"]:
        warn_once(
            f"{looked} {counts['dark']} use few of their 16 bits, and are read as nearly black "
            "(12 bits as 17 grey levels): scale them"
        )
    if counts["several"] and data.frames == "first":
        warn_once(
            f"{looked} {counts['several']} have several pages or frames: only the first is read "
            "(data.frames)"
        )
    if counts["far"]:
        warn_once(f"{looked} {counts['far']} {FAR_TEXT[data.fit]} (data.fit)")


def survey_array(
    array: np.ndarray, shape: Shape | None, data: ConfigDict, place: Path, as_exported: bool
) -> tuple[Values | None, str]:
    """Return the same of an array (N, H, W[, C]), the file `place`."""
    looked_at = spread_evenly(len(array))
    deep = array.dtype != EIGHT_BIT or data.value_range
    found = Found({array.dtype})
    for i in looked_at if deep else []:
        found.add(np.asarray(array[i]), data.value_range)
    looked = f"{len(looked_at)} of {len(array)} images looked at"
    values = found.values(data, f"{place} ({looked})", as_exported)
    _, height, width = channels_first(array[0]).shape
    if shape is not None and _kept(height, width, shape) < 1 / FAR:
        which = f"{len(array)} images of {width} x {height} pixels"
        warn_once(f"{place}: {which} {FAR_TEXT[data.fit]} (data.fit)")
    size = f"{array.dtype.name} {width} x {height} pixels"
    return values, f"{looked}: {size}, {found.describe(values)}"


def _kept(height: int, width: int, shape: Shape) -> float:
    """Return the part of an image that a crop to (C, H, W) keeps, or of the result that is not
    padding.
    """
    ratio = height * shape[2] / (width * shape[1])
    return min(ratio, 1 / ratio)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width as it is shown."""
    turned = image.getexif().get(ORIENTATION, 1) > 4
    return (image.width, image.height) if turned else (image.height, image.width)


def _most(counts: Counter[str]) -> str:
    """Return the most frequent, such as "64 x 48 (12), 5 more"."""
    shown = [f"{name} ({count})" for name, count in counts.most_common(MOST_SHOWN)]
    if len(counts) > MOST_SHOWN:
        shown.append(f"{len(counts) - MOST_SHOWN} more")
    return ", ".join(shown)


# --- by name ---


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
        "a .npy file by numpy.save: at least 2 images, (N, H, W) or (N, H, W, C) with "
        "C = config.data.num_channels",
    ),
}
