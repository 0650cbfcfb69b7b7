"""Random numbers as pure functions of (seed, purpose, index): no state to save, no order to keep.

Philox is a counter-based generator (Salmon et al., 2011): a stream is chosen by writing (seed, purpose) into its key and
(step, position) into its counter. Two streams never overlap, and a stream does not care which batch, worker, process
or device asks for it. Numbers are drawn on the CPU, so that a seed means the same noise on every device.
"""

import enum
from collections.abc import Iterable, Sequence

import numpy as np
import torch


class Purpose(enum.IntEnum):
    """What a stream is for. The numbers are part of what a seed means: never renumber, only append."""

    DATA_ORDER = 0
    FLIP = 1
    DEQUANTIZE = 2
    LEVEL = 3
    TRAIN_NOISE = 4
    DROPOUT = 5
    SAMPLE_PRIOR = 6
    SAMPLE_NOISE = 7
    EVAL_LEVEL = 8
    EVAL_NOISE = 9
    HELD_OUT_DEQUANTIZE = 10
    KID_SUBSET = 11
    CLASSIFIER = 12
    BOUND_LEVEL = 13
    BOUND_NOISE = 14


def stream(seed: int, purpose: Purpose, step: int = 0, position: int = 0) -> np.random.Generator:
    """The generator for one (seed, purpose, step, position); `seed` any integer in [0, 2^64)."""
    key = np.array([seed, purpose], dtype=np.uint64)
    # The low counter words count the numbers drawn from this stream; the high ones name it.
    counter = np.array([0, 0, position, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(generators: Iterable[np.random.Generator], shape: tuple[int, ...]) -> torch.Tensor:
    """The next standard normal float32 tensor of `shape` from each generator, stacked: (len(generators), *shape)."""
    return torch.from_numpy(np.stack([g.standard_normal(shape, dtype=np.float32) for g in generators]))


def normal_batch(seed: int, purpose: Purpose, step: int, positions: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise for the given positions of the global batch of `step`: (len(positions), *shape) float32."""
    return normal((stream(seed, purpose, step, position) for position in positions), shape)
