"""Sampling (paper, Algorithm 2): one reverse loop; the kinds of samples differ in the noise and the prior state."""

import warnings
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch

from model_code.blur import DCTBlur
from model_code.process import Denoiser, predict_mean, reverse_step
from scripts.data.images import ImageSource
from scripts.data.loader import first_readable, to_unit_range
from scripts.randomness import Purpose, normal_batch, stream

Noise = Callable[[int], torch.Tensor]
"""noise(k): the standard normal noise (B, C, H, W) that is added on arriving at level k - 1."""

OnStep = Callable[[int, torch.Tensor], None]
"""on_step(k, u_k), called for k = K - 1, ..., 0 as the states come."""


@torch.no_grad()
def reverse_process(
    model: Denoiser, u_K: torch.Tensor, K: int, delta: float, noise: Noise, on_step: OnStep | None = None
) -> torch.Tensor:
    """Run the reverse process from u_K (B, C, H, W) down to level 0; the result is the last mean, without noise.

    `noise(k)` is called for k = K..1 and its value added, times `delta`, to the mean of step k; the one for k = 1 does
    not reach the result. Only the current state is kept: `on_step` may store the others.
    """
    u = u_K
    for k in range(K, 0, -1):
        mean = predict_mean(model, u, torch.full((len(u),), k, device=u.device))
        u = reverse_step(mean, noise(k).to(u.device, non_blocking=True), delta)
        if on_step is not None:
            on_step(k - 1, u if k > 1 else mean)
    return mean


class IndependentNoise:
    """Each sample has its own stream, a function of (seed, index): what else is in the batch does not matter."""

    def __init__(self, seed: int, indices: Sequence[int], shape: tuple[int, ...]) -> None:
        """indices of the samples; shape (C, H, W) of an image."""
        self.seed, self.indices, self.shape = seed, indices, shape

    def __call__(self, k: int) -> torch.Tensor:
        return normal_batch(self.seed, Purpose.SAMPLE_NOISE, k, self.indices, self.shape)


class SharedNoise:
    """All samples of a batch share the stream of one index: what differs between them is their prior states' doing."""

    def __init__(self, seed: int, index: int, shape: tuple[int, ...], batch_size: int) -> None:
        self.single = IndependentNoise(seed, [index], shape)
        self.batch_size = batch_size

    def __call__(self, k: int) -> torch.Tensor:
        return self.single(k).expand(self.batch_size, -1, -1, -1)


class SphericalNoise:
    """From the noise of one index to that of another along a great circle, cos(w) e1 + sin(w) e2 with w in [0, pi/2].

    Every point on the way is standard normal, which the straight line between e1 and e2 is not.
    """

    def __init__(self, seed: int, indices: tuple[int, int], shape: tuple[int, ...], num_points: int) -> None:
        self.ends = IndependentNoise(seed, indices, shape)
        self.angles = torch.linspace(0, torch.pi / 2, num_points)[:, None, None, None]

    def __call__(self, k: int) -> torch.Tensor:
        e1, e2 = self.ends(k)
        return self.angles.cos() * e1 + self.angles.sin() * e2


class Prior(Protocol):
    """Blurred training images: a `PriorBank`, or the data set itself."""

    def __len__(self) -> int: ...

    def blurred(self, indices: torch.Tensor) -> torch.Tensor:
        """A_K u_i for int64 indices (B,): float32 (B, C, H, W)."""
        ...


class DataPrior:
    """Prior states read from the training images themselves; a `PriorBank` of the same images gives the same ones, faster."""

    def __init__(self, source: ImageSource, blur: DCTBlur, uniform_dequantization: bool) -> None:
        self.source, self.blur, self.uniform_dequantization = source, blur, uniform_dequantization

    def __len__(self) -> int:
        return len(self.source)

    def blurred(self, indices: torch.Tensor) -> torch.Tensor:
        """A_K u_i for int64 indices (B,): float32 (B, C, H, W).

        As in training, an unreadable image is replaced by the next readable one, with a warning. Raises UserError if there is
        none.
        """
        unreadable: list[str] = []
        images = np.stack([first_readable(self.source, int(i), unreadable)[1] for i in indices])
        if unreadable:
            warnings.warn(f"--prior=data: skipped unreadable images {', '.join(dict.fromkeys(unreadable))}", stacklevel=2)
        u = to_unit_range(images, 0.5 if self.uniform_dequantization else None)
        return self.blur(u, torch.full((len(u),), self.blur.K))


def prior_means(prior: Prior, seed: int, indices: Sequence[int]) -> torch.Tensor:
    """A_K u for the training image that each sample index starts from, drawn uniformly: float32 (B, C, H, W)."""
    chosen = [int(stream(seed, Purpose.SAMPLE_PRIOR, position=index).integers(len(prior))) for index in indices]
    return prior.blurred(torch.tensor(chosen))


def linear_path(ends: torch.Tensor, num_points: int) -> torch.Tensor:
    """`num_points` (at least 2) images on the straight line between ends (2, C, H, W): (num_points, C, H, W)."""
    w = torch.linspace(0, 1, num_points)[:, None, None, None]
    return (1 - w) * ends[0] + w * ends[1]
