"""What measures of the images themselves are made from, and the bootstrap.

All images are uint8 (N, C, H, W).
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from model_code.prior import StandardNormal
from scripts.data.datasets import Split, load_images
from scripts.data.loader import Checksums, HeldOutBatches, UnreadableImages, clean_batches
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
    read: dict[str, int] = field(default_factory=dict)
    """Checksums of the images of each split that was read, under "train_crc32" and
    "held_out_crc32".
    """

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """`initial_images` of the samples."""
        return initial_images(self.sampler, self.data, len(self.samples))

    def in_memory(self, split: Split) -> np.ndarray:
        """The images of a split, at most 1 GiB of them. A collective function."""
        source = load_images(self.data, split)
        count = min(len(source), MOST_BYTES // int(np.prod(source.shape)))
        images, unreadable, seen = list[torch.Tensor](), UnreadableImages(), Checksums()
        for batch in HeldOutBatches(
            source, 0, block_size(source.shape), count, False, self.data.num_workers
        ):
            images.append(to_uint8(batch.images))
            unreadable.update(batch.unreadable)
            seen.note(batch)
        unreadable.report(count, f"{split} images")
        self.read[f"{split}_crc32"] = seen.total()
        return distributed.gather_rows(torch.cat(images)).numpy()

    def training_blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions and images of the training set, with mirror images if training mirrors them;
        each process has a part.

        A collective function, when all are read.
        """
        source, mirrored = load_images(self.data, "train"), self.data.random_flip
        unreadable, seen = UnreadableImages(), Checksums()
        with progress_bar(
            len(distributed.shard(range(len(source)))), "image", "comparing with training images"
        ) as bar:
            for batch in clean_batches(
                source, block_size(source.shape), self.data.num_workers, False, mirrored
            ):
                seen.note(batch)
                yield batch.indices.numpy(), to_uint8(batch.images).numpy()
                bar.update(len(batch.indices) // (1 + mirrored))
                unreadable.update(batch.unreadable)
        unreadable.report(len(source), "training images")
        self.read["train_crc32"] = seen.total()


def block_size(shape: tuple[int, ...]) -> int:
    """How many images of a shape (C, H, W) are little in memory."""
    return max(1, BLOCK_BYTES // (4 * int(np.prod(shape))))


def blocks(images: np.ndarray) -> Iterator[slice]:
    """Slices of images, of `block_size` each."""
    size = block_size(images.shape[1:])
    return (slice(start, start + size) for start in range(0, len(images), size))


def initial_images(
    sampler: Sampler | GivenSamples, data: ConfigDict, num_samples: int
) -> np.ndarray:
    """The initial image of each sample, int64 (N,), or its mirror image: samples that share one are
    not independent.

    Without initial images, and of samples that another program made, every sample has a number of
    its own.
    """
    if isinstance(sampler, GivenSamples):
        return sampler.origins[:num_samples]
    if isinstance(sampler.prior, StandardNormal):
        return np.arange(num_samples)
    origins = np.array(sampler.origins(range(num_samples)))
    return origins if sampler.initial_images is not None else origins // (1 + data.random_flip)


def _resampled(
    N: int, groups: np.ndarray | None, seed: int, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Which of G groups each of N rows is in, int64 (N,), and how often each is drawn in 1,000
    draws of G: int64 (1000, G).

    Not at all, so that what is computed is NaN, where there is one group.
    """
    members = np.arange(N) if groups is None else np.unique(groups, return_inverse=True)[1]
    G = members.max() + 1
    counts = stream(seed, Purpose.BOOTSTRAP, number).multinomial(
        G if G > 1 else 0, np.full(G, 1 / G), size=REPLICATES
    )
    return members, counts


def resampled_means(
    rows: np.ndarray, seed: int, number: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """Means of 1,000 sets of groups, int64 (N,), drawn with replacement from rows (N, ...): float64
    (1000, ...).

    A function of seed and number. groups: None where every row is one; with a single group there is
    no spread, and all is NaN.
    """
    members, counts = _resampled(len(rows), groups, seed, number)
    sums = np.zeros((counts.shape[1], *rows.shape[1:]))
    np.add.at(sums, members, rows)
    with np.errstate(invalid="ignore"):
        weights = counts / (counts @ np.bincount(members))[:, None]
    return np.tensordot(weights, sums, 1)


def resampled_medians(
    values: np.ndarray, seed: int, number: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """As `resampled_means`, of values (N,): float64 (1000,)."""
    members, counts = _resampled(len(values), groups, seed, number)
    if counts.shape[1] == 1:
        return np.full(REPLICATES, np.nan)
    order = values.argsort()
    below = (row[members[order]].cumsum() for row in counts)
    return np.array([values[order[each.searchsorted(each[-1] / 2)]] for each in below])


def interval(replicates: np.ndarray) -> Any:
    """Both ends of the 95% interval (percentiles) along the first axis."""
    return tuple(np.quantile(replicates, [0.025, 0.975], axis=0))
