"""Batches of images in [0, 1]. Which images come in which order, mirrored and with what noise, is a function of (seed, step):
a run goes on from any step as if it had never stopped.
"""

import atexit
import itertools
import multiprocessing
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from scripts import distributed
from scripts.data.images import ImageSource, UnreadableImage
from scripts.errors import UserError
from scripts.randomness import Purpose, stream


class ReadingFailed(UserError):
    """There will be no further batches, through no fault of those that came: what was done with them is worth saving."""


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


def first_readable(source: ImageSource, wanted: int, unreadable: list[str]) -> tuple[int, np.ndarray]:
    """The first readable image from `wanted` on, with its index; names of the others are appended to `unreadable`.

    Raises ReadingFailed if there is none.
    """
    failed: list[str] = []
    for index in itertools.chain(range(wanted, len(source)), range(wanted)):
        try:
            image = source[index]
        except UnreadableImage as error:
            failed.append(error.name)
        else:
            unreadable += failed
            return index, image
    raise none_readable(failed)


class TrainBatches(Dataset[Batch]):
    """`batches[step]` is the whole batch of optimizer step `step` = 0, 1, ..., whatever was or was not asked for before.

    Every epoch is a permutation of all images; a batch may straddle epochs. An unreadable image is replaced by the next
    readable one of the source. Raises UserError if there is none.
    """

    def __init__(
        self,
        source: ImageSource,
        seed: int,
        batch_size: int,
        random_flip: bool,
        uniform_dequantization: bool,
        positions: range | None = None,
    ) -> None:
        """positions: those of the batch that are read, where other processes read the others; by default all."""
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.positions = range(batch_size) if positions is None else positions
        self.random_flip, self.uniform_dequantization = random_flip, uniform_dequantization
        self._permutations: dict[int, np.ndarray] = {}

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size
        places = (divmod(first + position, len(self.source)) for position in self.positions)
        wanted = [int(self._permutation(epoch)[place]) for epoch, place in places]
        unreadable: list[str] = []
        indices, images = zip(*(first_readable(self.source, index, unreadable) for index in wanted), strict=True)
        pixels = np.stack(images)
        if self.random_flip:
            mirrored = stream(self.seed, Purpose.FLIP, step).random(self.batch_size)[self.positions] < 0.5
            pixels[mirrored] = pixels[mirrored, ..., ::-1]
        noise = None
        if self.uniform_dequantization:
            streams = (stream(self.seed, Purpose.DEQUANTIZE, step, i) for i in self.positions)
            noise = np.stack([_uniform_noise(generator, pixels.shape[1:]) for generator in streams])
        return Batch(to_unit_range(pixels, noise), torch.tensor(indices), tuple(dict.fromkeys(unreadable)))

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            if len(self._permutations) == 2:  # those of the epochs that one batch straddles
                del self._permutations[next(iter(self._permutations))]
            order = stream(self.seed, Purpose.DATA_ORDER, step=epoch)
            self._permutations[epoch] = order.permutation(len(self.source))
        return self._permutations[epoch]


class _OrderedBatches(Dataset[Batch]):
    """`num_images` images (0: all) spread evenly over the source, in order, unreadable ones left out.

    Evenly, because many data sets are sorted by class: the first images would be of one kind. What noise is added, a subclass
    says.

    Iterating skips batches of which nothing is left, so that there may be fewer than `len`, and raises UserError if no image
    at all can be read. Of several processes each iterates over its own part of the images; a part that is empty, or of which
    nothing can be read, is one batch without images.
    """

    def __init__(self, source: ImageSource, batch_size: int, num_images: int, num_workers: int) -> None:
        self.source, self.batch_size, self.num_workers = source, batch_size, num_workers
        self.num_images = min(num_images, len(source)) or len(source)
        self.chosen = distributed.shard([i * len(source) // self.num_images for i in range(self.num_images)])

    def __len__(self) -> int:
        return -(-len(self.chosen) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Batch `number`, possibly empty."""
        first = number * self.batch_size
        indices, images, unreadable = [], [], []
        for index in self.chosen[first : first + self.batch_size]:
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
        if held is None:  # more processes than images
            held = self[0]
        if len(held.indices) == 0 and distributed.world_size() == 1:
            raise none_readable(held.unreadable)
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

    Unreadable images are left out and named; no batch is empty. Raises UserError if no image can be read. Of several processes
    each gets its part: see `_OrderedBatches`.
    """
    return iter(_CleanBatches(source, batch_size, num_workers, uniform_dequantization))


def train_loader(
    batches: TrainBatches, first_step: int, n_iters: int, num_workers: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """The batches of steps first_step, ..., n_iters - 1 in order, the same for any number of worker processes.

    pin_memory: for a GPU, which then copies while it computes. Closing the generator ends the workers.
    """
    return _read_batches(batches, range(first_step, n_iters), num_workers, pin_memory)


def _read_batches(
    batches: Dataset[Batch], numbers: range, num_workers: int, pin_memory: bool = False
) -> Generator[Batch, None, None]:
    """batches[n] for n in `numbers`, read ahead by worker processes if there are any."""
    loader = DataLoader(
        _ErrorsAsValues(batches),
        batch_size=None,
        sampler=numbers,
        num_workers=num_workers,
        pin_memory=pin_memory,
        # Workers only read images. Forked, they share arrays and memory maps with this process; spawned, they would get copies.
        multiprocessing_context="fork" if num_workers > 0 else None,
        worker_init_fn=_leave_signals_to_the_parent,
        generator=torch.Generator(),  # DataLoader draws a seed that nothing here uses; not from the global generator, please
    )
    # With its first worker DataLoader sets a handler that raises wherever the training is when a worker dies, be it between
    # weights and averages. Without that, waiting for the next batch finds out, within seconds.
    handler = signal.getsignal(signal.SIGCHLD)
    items = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, handler)
    try:
        for item in items:
            if isinstance(item, UserError):
                raise item
            yield item
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise ReadingFailed(
            "a process that reads images died, killed for using too much memory, most likely: "
            f"lower config.data.num_workers = {num_workers}"
        ) from None
    finally:
        del items  # ends the workers now; an error's traceback would hold on to it


@atexit.register
def _end_workers() -> None:
    """multiprocessing ends them at exit by SIGTERM, which they ignore, and would wait forever for any that are left."""
    for worker in multiprocessing.active_children():
        if worker.daemon:
            worker.kill()


def _leave_signals_to_the_parent(worker: int) -> None:
    """Schedulers and terminals signal a whole group of processes: the parent finishes its step, and needs its workers for that.

    Workers end when the parent says so, or within seconds of its death.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


def none_readable(names: Sequence[str]) -> ReadingFailed:
    """The error for a data set of which nothing is left. names: of its images, at least one."""
    return ReadingFailed(
        f"config.data.dataset, config.data.path: none of the {len(names)} images can be read, such as {names[0]}"
    )
