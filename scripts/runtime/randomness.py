"""Random numbers as functions of (seed, purpose, index): no state to save, no order to keep.

Integers and permutations come from Philox, a counter-based generator (Salmon et al., 2011): a
stream is chosen by writing (seed, purpose) into its key and (step, position) into its counter.
Normals are drawn on the device that uses them, by PyTorch's generator seeded with a hash of the
same numbers; they are the same in every batch and on any number of processes, but differ between
processors and GPUs.
"""

import enum
import hashlib
from collections.abc import Iterable

import numpy as np
import torch

STREAM_VERSION = 2
"""Recorded with results (1 drew normals by NumPy). Raise it when a seed means other numbers."""


class Purpose(enum.IntEnum):
    """What a stream is for.

    The numbers are part of what a seed means: never renumber, only append.
    """

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
    # 15 and 17 are not used any more
    SPECTRUM_NOISE = 16
    BOOTSTRAP = 18
    LABEL_DROPOUT = 19
    SAMPLE_CLASS = 20


def stream(seed: int, purpose: Purpose, step: int = 0, position: int = 0) -> np.random.Generator:
    """NumPy's generator for one (seed, purpose, step, position); `seed` is in [0, 2^64)."""
    key = np.array([seed, purpose], dtype=np.uint64)
    # The low counter words count the numbers drawn from this stream; the high ones name it.
    counter = np.array([0, 0, position, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def torch_generator(
    device: torch.device, seed: int, purpose: Purpose, step: int = 0, position: int = 0
) -> torch.Generator:
    """PyTorch's generator for one (seed, purpose, step, position)."""
    digest = hashlib.blake2b(
        f"{seed} {int(purpose)} {step} {position}".encode(), digest_size=8
    ).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little", signed=True))


def normal_batch(
    device: torch.device,
    seed: int,
    purpose: Purpose,
    step: int,
    rows: range,
    total: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Rows `rows` of the standard normal noise of a batch of `total` images: float32 (len(rows),
    *shape).

    Every process draws the whole batch, which takes less than a hundredth of a step, and uses its
    own rows.
    """
    generator = torch_generator(device, seed, purpose, step)
    return torch.randn(total, *shape, generator=generator, device=device)[rows.start : rows.stop]


def normal_by_index(
    device: torch.device,
    seed: int,
    purpose: Purpose,
    places: Iterable[tuple[int, int]],
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Standard normal noise for each (step, position), whatever else is in the batch: float32
    (len(places), *shape).
    """
    generators = (
        torch_generator(device, seed, purpose, step, position) for step, position in places
    )
    return torch.stack(
        [torch.randn(*shape, generator=generator, device=device) for generator in generators]
    )
