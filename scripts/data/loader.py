"""Batches of images in [0, 1]. Which images come in which order, mirrored and with what noise, is a
function of (seed, step): a run continues from any step as if it had never stopped.
"""

import functools
import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.data.images import ArrayImages, ImageSource, UnreadableImage, checksum, checksums
from scripts.data.values import TOP
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.progress import warn
from scripts.runtime.randomness import Purpose, stream

Item = TypeVar("Item")
Read = TypeVar("Read")
AHEAD = 4
"""Batches that are read ahead, as they are stored; one more waits in float32."""


class ReadingFailed(UserError):
    """No further batches can be read.

    Those before it were good, so what was learnt from them is worth saving.
    """


NAMED = 5
"""Unreadable images that are named in warnings; the others are counted."""


class UnreadableImages(set[str]):
    """Images that could not be read, each as "name: reason". Process 0 names the first few in
    warnings."""

    def note(self, images: Iterable[str]) -> None:
        """Add those that a training step came with, and name them at once."""
        for image in dict.fromkeys(images):
            if image not in self:
                self.add(image)
                if len(self) <= NAMED:
                    further = "; further ones are only counted" if len(self) == NAMED else ""
                    warn(f"skipped unreadable image {len(self)}: {image}{further}")

    def share(self) -> None:
        """Add those of the other processes. A collective function."""
        for images in distributed.gather(sorted(self)):
            self.note(images)

    def report(self, of: int, what: str) -> None:
        """Say how many of `of` images there are, which, and why, of all processes. A collective
        function."""
        self.update(*distributed.gather(sorted(self)))
        if self:
            shown = sorted(self)[:NAMED]
            if len(self) > NAMED:
                shown.append(f"and {len(self) - NAMED} more")
            warn(f"{len(self)} of {of} {what} cannot be read: {'; '.join(shown)}")


@dataclass(frozen=True)
class Batch:
    """Images with where they come from."""

    images: torch.Tensor
    """float32 (B, C, H, W) in [0, 1]."""
    indices: torch.Tensor
    """int64 (B,): their positions in the source."""
    unreadable: tuple[str, ...]
    """Images that could not be decoded, each as "name: reason"."""
    crc32: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint32))
    """`checksums` of the pixels (B,), of images to evaluate on."""
    labels: torch.Tensor | None = None
    """Classes, int64 (B,), where the source has them."""


@dataclass(frozen=True)
class Decoded:
    """One image as it is read."""

    index: int
    pixels: np.ndarray | None
    """(C, H, W) in the source's type, a copy; None if it cannot be read."""
    unreadable: list[str]
    """Images that could not be read, each as "name: reason"."""


def to_unit_range(pixels: np.ndarray, noise: np.ndarray | float | None = None) -> torch.Tensor:
    """Values v as they are stored to float32: v / 255 of 8 bits, or dequantised by noise in [0, 1)
    to (v + noise) / 256, and the same in the other types of `values.TOP`. Any shape.
    """
    values, top = pixels.astype(np.float32), TOP[pixels.dtype]
    if noise is None:
        return torch.from_numpy(values / top)
    return torch.from_numpy((values * np.float32(255 / top) + noise) / 256)


def _uniform_noise(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """U[0, 1) in steps of 2^-16, float32: added to 0..255 these are exact, so that no value is
    rounded up to the next level.
    """
    sixteen_bits = generator.integers(1 << 16, size=shape, dtype=np.uint16)
    return sixteen_bits.astype(np.float32) / np.float32(1 << 16)


def read_image(source: ImageSource, index: int) -> Decoded:
    """An image, whether it can be read or not. Safe to call from several threads."""
    try:
        return Decoded(index, np.array(source[index]), [])
    except UnreadableImage as error:
        return Decoded(index, None, [str(error)])


def first_readable(source: ImageSource, wanted: int) -> Decoded:
    """The first readable image from `wanted` on, and the unreadable ones before it. Safe to call
    from several threads.

    Raises ReadingFailed if there is none.
    """
    unreadable: list[str] = []
    for index in itertools.chain(range(wanted, len(source)), range(wanted)):
        decoded = read_image(source, index)
        unreadable += decoded.unreadable
        if decoded.pixels is not None:
            return replace(decoded, unreadable=unreadable)
    raise none_readable(unreadable)


def readable_batch(source: ImageSource, wanted: Iterable[int], data: ConfigDict) -> Batch:
    """These images, each unreadable one replaced by the next readable one, dequantised on average
    where config.data says so. Raises ReadingFailed if there is none.
    """
    decoded = [first_readable(source, int(index)) for index in wanted]
    indices, pixels, unreadable = _stacked(decoded, source)
    noise = 0.5 if data.uniform_dequantization else None
    labels = _labels(source, indices)
    return Batch(to_unit_range(pixels, noise), indices, unreadable, labels=labels)


def none_readable(names: Sequence[str], kind: str = "") -> ReadingFailed:
    """The error for a data set of which no image can be read.

    names: of its images, at least one, perhaps with reasons; kind: as "held-out ".
    """
    where = "config.data.dataset, config.data.path"
    return ReadingFailed(
        f"{where}: none of the {len(names)} {kind}images can be read, such as {names[0]}"
    )


@dataclass(frozen=True)
class TrainBatches:
    """`batches[step]` is the whole batch of optimizer step `step` = 0, 1, ..., whatever was asked
    for before.

    Every epoch is a permutation of all images; a batch may straddle epochs. An unreadable image is
    replaced by the next readable one of the source. Raises ReadingFailed if there is none.
    """

    source: ImageSource
    seed: int
    batch_size: int
    random_flip: bool
    uniform_dequantization: bool
    positions: range | None = None
    """Those of the batch that are read, where other processes read the others; by default all."""

    def __getitem__(self, step: int) -> Batch:
        decoded = [first_readable(self.source, index) for index in self.indices(step)]
        return self.finish(step, decoded)

    def indices(self, step: int) -> list[int]:
        """The images of a step, before any is replaced."""
        num_images = len(self.source)
        indices = []
        for position in self._positions:
            epoch, place = divmod(step * self.batch_size + position, num_images)
            indices.append(int(_permutation(self.seed, epoch, num_images)[place]))
        return indices

    def finish(self, step: int, decoded: Sequence[Decoded]) -> Batch:
        """The batch of a step, mirrored and dequantised."""
        indices, images, unreadable = _stacked(decoded, self.source)
        if self.random_flip:
            throws = stream(self.seed, Purpose.FLIP, step).random(self.batch_size)
            mirrored = throws[self._positions] < 0.5
            images[mirrored] = images[mirrored, ..., ::-1]
        noise = None
        if self.uniform_dequantization:
            streams = [stream(self.seed, Purpose.DEQUANTIZE, step, i) for i in self._positions]
            noise = np.stack([_uniform_noise(each, self.source.shape) for each in streams])
        labels = _labels(self.source, indices)
        return Batch(to_unit_range(images, noise), indices, unreadable, labels=labels)

    @property
    def _positions(self) -> range:
        return range(self.batch_size) if self.positions is None else self.positions


@functools.lru_cache(maxsize=2)  # a batch mostly straddles two epochs at most
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return stream(seed, Purpose.DATA_ORDER, step=epoch).permutation(num_images)


def train_loader(
    batches: TrainBatches, first_step: int, n_iters: int, num_workers: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """The batches of steps first_step, ..., n_iters - 1 in order, the same for any number of
    threads.

    pin_memory: for a GPU, which then copies while it computes. Closing the generator ends the
    reading.
    """

    def finish(step: int, decoded: Sequence[Decoded]) -> Batch:
        batch = batches.finish(step, decoded)
        return replace(batch, images=batch.images.pin_memory()) if pin_memory else batch

    steps, threads = range(first_step, n_iters), num_threads(num_workers, batches.source)
    read = partial(first_readable, batches.source)
    return _read_batches(read, batches.indices, finish, steps, threads)


@dataclass(frozen=True)
class OrderedBatches:
    """`num_images` images (0: all) spread evenly over the source, in order, unreadable ones left
    out; evenly, because many data sets are sorted by class.

    Values v are v / 255, or dequantised to (v + noise) / 256. Of several processes each reads its
    part; a batch may be empty. Can be iterated over again and again.
    """

    source: ImageSource
    batch_size: int
    num_workers: int
    uniform_dequantization: bool
    num_images: int = 0
    seed: int | None = None
    """Of the noise, which belongs to (seed, index) whatever the batch size; without, its mean."""
    mirrored: bool = False
    """Each image is followed by its mirror image (left and right exchanged), with the same index,
    in batches that are twice as large."""

    @functools.cached_property
    def chosen(self) -> list[int]:
        """Indices of this process's images."""
        available = len(self.source)
        wanted = min(self.num_images, available) or available
        return distributed.shard([i * available // wanted for i in range(wanted)])

    def __iter__(self) -> Iterator[Batch]:
        starts = range(0, max(1, len(self.chosen)), self.batch_size)
        threads = num_threads(self.num_workers, self.source)
        read = partial(read_image, self.source)
        return _read_batches(read, self._indices, self._finish, starts, threads)

    def _indices(self, start: int) -> list[int]:
        return self.chosen[start : start + self.batch_size]

    def _finish(self, _: int, decoded: Sequence[Decoded]) -> Batch:
        indices, pixels, unreadable = _stacked(decoded, self.source)
        crc32 = checksums(pixels)
        images = torch.empty(pixels.shape)
        for row, index in enumerate(indices.tolist()):
            noise: np.ndarray | float | None = None
            if self.uniform_dequantization and self.seed is not None:
                generator = stream(self.seed, Purpose.HELD_OUT_DEQUANTIZE, position=index)
                noise = _uniform_noise(generator, self.source.shape)
            elif self.uniform_dequantization:
                noise = 0.5
            images[row] = to_unit_range(pixels[row], noise)
        if self.mirrored:
            images = torch.stack([images, images.flip(-1)], dim=1).flatten(0, 1)
            indices, crc32 = indices.repeat_interleave(2), crc32.repeat(2)
        return Batch(images, indices, unreadable, crc32, _labels(self.source, indices))


def _stacked(
    decoded: Sequence[Decoded], source: ImageSource
) -> tuple[torch.Tensor, np.ndarray, tuple[str, ...]]:
    """Indices int64 (n,), pixels (n, C, H, W) in the source's type, and what is unreadable."""
    readable = [image for image in decoded if image.pixels is not None]
    pixels = np.empty((len(readable), *source.shape), source.dtype)
    for row, image in zip(pixels, readable, strict=True):
        row[:] = image.pixels
    unreadable = dict.fromkeys(name for image in decoded for name in image.unreadable)
    indices = torch.tensor([image.index for image in readable], dtype=torch.int64)
    return indices, pixels, tuple(unreadable)


def _labels(source: ImageSource, indices: torch.Tensor) -> torch.Tensor | None:
    return None if source.labels is None else torch.from_numpy(source.labels[indices.numpy()])


def num_threads(num_workers: int, source: ImageSource) -> int:
    """config.data.num_workers, or for -1 what suits the source."""
    if num_workers >= 0:
        return num_workers
    if isinstance(source, ArrayImages):
        return int(source.on_disk)  # one hides the time of reading
    return distributed.cores()


def _read_batches(
    read: Callable[[int], Decoded],
    indices: Callable[[int], Sequence[int]],
    finish: Callable[[int, Sequence[Decoded]], Batch],
    numbers: range,
    num_workers: int,
) -> Generator[Batch, None, None]:
    """`finish` of each number and its images; with threads, one finishes the next batch while this
    one is used.
    """
    decoded = read_in_parts(read, map(indices, numbers), num_workers)
    return read_ahead(
        lambda number: finish(number, next(decoded)), numbers, min(1, num_workers), ahead=1
    )


def read_in_parts(
    read: Callable[[int], Decoded], batches: Iterable[Sequence[int]], num_workers: int
) -> Generator[list[Decoded], None, None]:
    """Each batch of indices as images, in order; `AHEAD` batches are read ahead by the threads."""
    n = max(1, num_workers)
    parts = (
        batch[len(batch) * i // n : len(batch) * (i + 1) // n]
        for batch in batches
        for i in range(n)
    )
    read_parts = read_ahead(lambda part: list(map(read, part)), parts, num_workers, AHEAD * n)
    for first in read_parts:
        yield list(itertools.chain(first, *itertools.islice(read_parts, n - 1)))


def read_ahead(
    read: Callable[[Item], Read], items: Iterable[Item], num_workers: int, ahead: int
) -> Generator[Read, None, None]:
    """read(item) for `items`, in order, `ahead` of them read ahead by `num_workers` threads.

    Threads rather than DataLoader's processes: decoding and copying release the interpreter's lock,
    and threads need no shared memory, no fork beside CUDA and MPI, and no care for signals and for
    workers that die.
    """
    if num_workers == 0:
        yield from map(read, items)
        return
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="reader")
    pending: deque[Future[Read]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(read, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Reading:
    """One pass over batches of all processes. At its end a line says which images could not be
    read, and `crc32` is the checksum of those that could."""

    def __init__(self, what: str) -> None:
        """what: the images are, in the line."""
        self.what, self.unreadable, self.crc32 = what, UnreadableImages(), 0

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches. A collective function, when all are read."""
        seen: dict[int, int] = {}
        for batch in batches:
            seen.update(zip(batch.indices.tolist(), batch.crc32.tolist(), strict=True))
            self.unreadable.update(batch.unreadable)
            yield batch
        for others in distributed.gather(dict(seen)):
            seen.update(others)
        self.crc32 = checksum(np.array([seen[index] for index in sorted(seen)]))
        number = len(seen) + sum(map(len, distributed.gather(self.unreadable)))
        self.unreadable.report(number, self.what)
