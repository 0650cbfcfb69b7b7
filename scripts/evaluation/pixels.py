"""What measures of the images themselves are made from, and the bootstrap. All images are uint8 (N, C, H, W)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.data.datasets import Split, load_images
from scripts.data.loader import HeldOutBatches, clean_batches
from scripts.evaluation.given import GivenSamples
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar
from scripts.runtime.randomness import Purpose, stream
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import Sampler

MOST_BYTES = 1 << 30
"""Of a split in memory: so many of its images, spread evenly."""
BLOCK_BYTES = 1 << 25
"""Images in float32 at a time; a few times as much memory is used."""
REPLICATES = 1000


@dataclass(frozen=True)
class PixelInputs:
    """What a metric that needs pixels or seeds may use. Every process has all of it."""

    samples: np.ndarray
    sampler: Sampler | GivenSamples
    data: ConfigDict

    def in_memory(self, split: Split) -> np.ndarray:
        """The images of a split, at most 1 GiB of them. A collective function."""
        source = load_images(self.data, split)
        count = min(len(source), MOST_BYTES // int(np.prod(source.shape)))
        batches = HeldOutBatches(source, 0, block_size(source.shape), count, False, self.data.num_workers)
        return distributed.gather_rows(torch.cat([to_uint8(batch.images) for batch in batches])).numpy()

    def training_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions and images of the training set, with mirror images if training mirrors them; each process has a part."""
        source, mirrored = load_images(self.data, "train"), self.data.random_flip
        with progress_bar(len(distributed.shard(range(len(source)))), "image", "comparing with training images") as bar:
            for batch in clean_batches(source, block_size(source.shape), self.data.num_workers, False, mirrored):
                yield batch.indices.numpy(), to_uint8(batch.images).numpy()
                bar.update(len(batch.indices) // (1 + mirrored))


def block_size(shape: tuple[int, ...]) -> int:
    """How many images of a shape (C, H, W) are little in memory."""
    return max(1, BLOCK_BYTES // (4 * int(np.prod(shape))))


def blocks(images: np.ndarray) -> Iterator[slice]:
    """Slices of images, of `block_size` each."""
    size = block_size(images.shape[1:])
    return (slice(start, start + size) for start in range(0, len(images), size))


def resampled_means(rows: np.ndarray, seed: int, number: int = 0) -> np.ndarray:
    """Means of 1,000 sets drawn with replacement from rows (N, ...), a function of seed and number: float64 (1000, ...)."""
    N = len(rows)
    counts = stream(seed, Purpose.BOOTSTRAP, number).multinomial(N, np.full(N, 1 / N), size=REPLICATES)
    return np.tensordot(counts / N, rows, 1)


def resampled_medians(values: np.ndarray, seed: int, number: int = 0) -> np.ndarray:
    """As `resampled_means`, of values (N,), by the distribution of the median of N uniform ranks: float64 (1000,)."""
    half = (len(values) + 1) / 2
    ranks = stream(seed, Purpose.BOOTSTRAP, number).beta(half, half, REPLICATES)
    return np.sort(values)[(ranks * len(values)).astype(int)]


def interval(replicates: np.ndarray) -> Any:
    """Both ends of the 95% interval (percentiles) along the first axis."""
    return tuple(np.quantile(replicates, [0.025, 0.975], axis=0))
