"""From the name of a data set to batches of images in [0, 1]. Which images come in which order, mirrored and with what noise,
is a function of (seed, step): a run goes on from any step as if it had never stopped.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple
from zipfile import BadZipFile

import lmdb
import numpy as np
import torch
from ml_collections import ConfigDict
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import CIFAR10, MNIST

from scripts.errors import UserError
from scripts.image_sources import (
    ArrayImages,
    FolderImages,
    ImageSource,
    LsunImages,
    UnreadableImage,
    Unusable,
    list_images,
    require_folder,
    torchvision_array,
)
from scripts.randomness import Purpose, stream

Split = Literal["train", "held_out"]
DATA = Path(__file__).resolve().parent.parent / "data"


def load_images(data: ConfigDict, split: Split) -> ImageSource:
    """The images that `config.data` names: those to train on, or those held out.

    Raises UserError, naming key and value, for a data set that is unknown, missing, damaged or too small.
    """
    data_set = DATA_SETS.get(data.dataset.lower())
    if data_set is None:
        raise UserError(f"config.data.dataset = {data.dataset!r}: must be one of {', '.join(DATA_SETS)}")
    value = f"config.data.dataset = {data.dataset!r}" + (f", config.data.path = {data.path!r}" if data.path else "")
    if data.path:
        place = Path(data.path).expanduser()
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
        with np.load(place, allow_pickle=False) as file:
            images, held_out = file["images"], file["held_out"]
    except Exception as error:  # what a damaged or another file leads to has no common class
        raise Unusable(f"{place} cannot be read: {error}") from error
    return ArrayImages(images, size, channels, np.flatnonzero(held_out == (split == "held_out")))


def _open_mnist(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    return ArrayImages(torchvision_array(MNIST, place, split == "train"), size, channels)


def _open_cifar10(place: Path, split: Split, size: int, channels: int) -> ImageSource:
    return ArrayImages(torchvision_array(CIFAR10, place, split == "train"), size, channels)


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
    except (ValueError, EOFError, BadZipFile) as error:
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


@dataclass(frozen=True)
class Batch:
    """Images with where they come from.

    images: float32 (B, C, H, W) in [0, 1]; indices: int64 (B,), their places in the source; unreadable: names of images met on
    the way that cannot be decoded.
    """

    images: torch.Tensor
    indices: torch.Tensor
    unreadable: tuple[str, ...]

    def pin_memory(self) -> "Batch":
        """For DataLoader, which pins tensors but would pass over those in a class that it does not know."""
        return Batch(self.images.pin_memory(), self.indices, self.unreadable)


def to_unit_range(pixels: np.ndarray, noise: np.ndarray | float | None = None) -> torch.Tensor:
    """uint8 values v to float32: v / 255, or dequantised by noise in [0, 1) to (v + noise) / 256. Any shape, kept."""
    values = pixels.astype(np.float32)
    return torch.from_numpy(values / 255 if noise is None else (values + noise) / 256)


def _uniform_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """U[0, 1) in steps of 2^-16, float32. Added to 0..255 these are exact, so that no value is rounded up to the next level."""
    return generator.integers(1 << 16, size=shape, dtype=np.uint16).astype(np.float32) / np.float32(1 << 16)


class TrainBatches(Dataset[Batch]):
    """`batches[step]` is the whole batch of optimizer step `step` = 0, 1, ..., whatever was or was not asked for before.

    Every epoch is a permutation of all images; a batch may straddle epochs. An unreadable image is replaced by the next
    readable one of the source. Raises UserError if there is none.
    """

    def __init__(
        self, source: ImageSource, seed: int, batch_size: int, random_flip: bool, uniform_dequantization: bool
    ) -> None:
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.random_flip, self.uniform_dequantization = random_flip, uniform_dequantization
        self._permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size
        places = (divmod(position, len(self.source)) for position in range(first, first + self.batch_size))
        wanted = [int(self._permutation(epoch)[place]) for epoch, place in places]
        unreadable: list[str] = []
        indices, images = zip(*(self._read(index, unreadable) for index in wanted), strict=True)
        pixels = np.stack(images)
        if self.random_flip:
            mirrored = stream(self.seed, Purpose.FLIP, step).random(self.batch_size) < 0.5
            pixels[mirrored] = pixels[mirrored, ..., ::-1]
        noise = None
        if self.uniform_dequantization:
            streams = (stream(self.seed, Purpose.DEQUANTIZE, step, i) for i in range(self.batch_size))
            noise = np.stack([_uniform_noise(generator, pixels.shape[1:]) for generator in streams])
        return Batch(to_unit_range(pixels, noise), torch.tensor(indices), tuple(dict.fromkeys(unreadable)))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            if len(self._permutations) == 2:  # those of the epochs that one batch straddles
                del self._permutations[next(iter(self._permutations))]
            order = stream(self.seed, Purpose.DATA_ORDER, step=epoch)
            self._permutations[epoch] = order.permutation(len(self.source))
        return self._permutations[epoch]

    def _read(self, wanted: int, unreadable: list[str]) -> tuple[int, np.ndarray]:
        """The first readable image from `wanted` on, with its index; names of the others are appended to `unreadable`."""
        failed: list[str] = []
        for index in itertools.chain(range(wanted, len(self.source)), range(wanted)):
            try:
                image = self.source[index]
            except UnreadableImage as error:
                failed.append(error.name)
            else:
                unreadable += failed
                return index, image
        raise _none_readable(failed)


class _OrderedBatches(Dataset[Batch]):
    """The first `num_images` images (0: all) in their order, unreadable ones left out. What noise is added, a subclass says.

    Iterating skips batches of which nothing is left, so that there may be fewer than `len`, and raises UserError if no image
    at all can be read.
    """

    def __init__(self, source: ImageSource, batch_size: int, num_images: int, num_workers: int) -> None:
        self.source, self.batch_size, self.num_workers = source, batch_size, num_workers
        self.num_images = min(num_images, len(source)) or len(source)

    def __len__(self) -> int:
        return -(-self.num_images // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Batch `number`, possibly empty."""
        first = number * self.batch_size
        indices, images, unreadable = [], [], []
        for index in range(first, min(first + self.batch_size, self.num_images)):
            try:
                images.append(self.source[index])
                indices.append(index)
            except UnreadableImage as error:
                unreadable.append(error.name)
        pixels = np.stack(images) if images else np.empty((0, *self.source.shape), np.uint8)
        return Batch(to_unit_range(pixels, self._noise(indices)), torch.tensor(indices, dtype=torch.int64), tuple(unreadable))

    def __iter__(self) -> Iterator[Batch]:
        held: Batch | None = None  # not yielded before the next one is known to have images: names need a batch to travel with
        for batch in _read_batches(self, range(len(self)), self.num_workers):
            if held is not None and len(held.indices) > 0 and len(batch.indices) > 0:
                yield held
                held = batch
            else:
                held = batch if held is None else _joined(held, batch)
        assert held is not None  # a source has at least one image
        if len(held.indices) == 0:
            raise _none_readable(held.unreadable)
        yield held

    def _noise(self, indices: list[int]) -> np.ndarray | float | None:
        """What dequantises these images, as `to_unit_range` takes it."""
        raise NotImplementedError


class HeldOutBatches(_OrderedBatches):
    """Batches to evaluate on. An image's noise belongs to (seed, index): always the same, whatever the batch size."""

    def __init__(
        self,
        source: ImageSource,
        seed: int,
        batch_size: int,
        num_images: int,
        uniform_dequantization: bool,
        num_workers: int = 0,
    ) -> None:
        super().__init__(source, batch_size, num_images, num_workers)
        self.seed, self.uniform_dequantization = seed, uniform_dequantization

    def _noise(self, indices: list[int]) -> np.ndarray | None:
        if not self.uniform_dequantization:
            return None
        noise = np.empty((len(indices), *self.source.shape), np.float32)
        for row, index in zip(noise, indices, strict=True):
            row[:] = _uniform_noise(stream(self.seed, Purpose.HELD_OUT_DEQUANTIZE, position=index), row.shape)
        return noise


class _CleanBatches(_OrderedBatches):
    """All images with the mean of the dequantisation noise in place of noise."""

    def __init__(self, source: ImageSource, batch_size: int, num_workers: int, uniform_dequantization: bool) -> None:
        super().__init__(source, batch_size, 0, num_workers)
        self.uniform_dequantization = uniform_dequantization

    def _noise(self, indices: list[int]) -> float | None:
        return 0.5 if self.uniform_dequantization else None


def clean_batches(source: ImageSource, batch_size: int, num_workers: int, uniform_dequantization: bool) -> Iterator[Batch]:
    """All images in order and nothing random: v / 255, or with dequantisation its mean, (v + 0.5) / 256.

    Unreadable images are left out and named; no batch is empty. Raises UserError if no image can be read.
    """
    return iter(_CleanBatches(source, batch_size, num_workers, uniform_dequantization))


def train_loader(batches: TrainBatches, first_step: int, n_iters: int, num_workers: int) -> Iterator[Batch]:
    """The batches of steps first_step, ..., n_iters - 1 in order, the same for any number of worker processes."""
    return _read_batches(batches, range(first_step, n_iters), num_workers)


def _read_batches(batches: Dataset[Batch], numbers: range, num_workers: int) -> Iterator[Batch]:
    """batches[n] for n in `numbers`, read ahead by worker processes if there are any, pinned if there is a GPU."""
    loader = DataLoader(
        _ErrorsAsValues(batches),
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        # Workers only read images. Forked, they share arrays and memory maps with this process; spawned, they would get copies.
        multiprocessing_context="fork" if num_workers > 0 else None,
        generator=torch.Generator(),  # DataLoader draws a seed that nothing here uses; not from the global generator, please
    )
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


class _ErrorsAsValues(Dataset[Batch | UserError]):
    """DataLoader would put the traceback of a worker into the message of its exception; a UserError is to stay one line."""

    def __init__(self, batches: Dataset[Batch]) -> None:
        self.batches = batches

    def __getitem__(self, number: int) -> Batch | UserError:
        try:
            return self.batches[number]
        except UserError as error:
            return error


def _joined(a: Batch, b: Batch) -> Batch:
    return Batch(torch.cat([a.images, b.images]), torch.cat([a.indices, b.indices]), a.unreadable + b.unreadable)


def _none_readable(names: Sequence[str]) -> UserError:
    return UserError(f"config.data.dataset, config.data.path: none of the {len(names)} images can be read, such as {names[0]}")
