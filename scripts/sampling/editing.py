"""Samples made from a picture: larger, with a part filled in, or made again from its blur.

A picture made smaller is nearly a blurred one, and so nearly a state of the process. What is known
of the result corrects the network's estimate at every step, see `model_code/observation.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import interpolate

from model_code.dct import eigenvalues
from model_code.gaussian import GaussianProcess
from model_code.kernels import GaussianKernel
from model_code.observation import BlockMeans, KnownPixels, Observation, ObservedKernel, agree
from model_code.prior import Prior, StoredStates
from scripts.errors import UserError
from scripts.sampling.initial_images import InitialImages

if TYPE_CHECKING:
    from scripts.sampling.sampler import Sampler

BATCH_SIZE = 64
LITTLE_NOISE = 0.05
"""Standard deviation: the bicubic picture of digits made 4 times smaller, blurred by 2 pixels, is
wrong by 0.033, blurred by 4 by 0.012."""
CHUNK = 500
"""States of the prior that are compared with a picture at a time."""


def super_resolve(sampler: Sampler, small: torch.Tensor, per_image: int = 1) -> torch.Tensor:
    """`per_image` (M) samples whose block means are the small pictures (S, C, h, w) in [0, 1].

    (S, M, C, H, W) in [0, 1], on the CPU: with the sampler's shape (C, H, W), H / h = W / w is a
    whole number from 2. They start from the bicubic picture at `level_of_factor`. Raises UserError
    for other sizes, or a sampler that cannot.
    """
    factor = whole_factor(sampler, small)
    y, level = small.to(sampler.precision.device), level_of_factor(sampler, factor)
    start = InitialImages(bicubic(small, factor).__getitem__, len(small), per_image)
    first = sampler.starting_from(start, level)
    return _observed(first, lambda rows: BlockMeans(y[rows], factor), len(small), per_image)


def inpaint(
    sampler: Sampler, images: torch.Tensor, unknown: torch.Tensor, per_image: int = 1
) -> torch.Tensor:
    """`per_image` (M) samples with the known pixels of images (S, C, H, W) in [0, 1].

    (S, M, C, H, W) in [0, 1], on the CPU; `unknown` (H, W) is true where pixels are to be made.
    They start from the prior: from the M states nearest to the picture, whose unknown pixels have
    the mean of the others, or from noise. Raises UserError for a mask without both.
    """
    if unknown.shape != sampler.shape[1:]:
        raise UserError(
            f"--mask: has {_size(unknown)} pixels, where the model's images have "
            f"{_size(torch.empty(sampler.shape))}"
        )
    if unknown.all() or not unknown.any():
        which = "unknown" if unknown.all() else "known"
        raise UserError(f"--mask: all pixels are {which}; white is what is to be made")
    process, known = _gaussian(sampler), ~unknown
    prior, count = sampler.prior, len(images) * per_image
    if len(prior) > 1:
        means = (images * known).sum((2, 3), keepdim=True) / known.sum()
        filled = torch.where(known, images, means).to(process.device)
        states = process.mean_state(filled, process.K)
        prior = StoredStates(_nearest(prior, states.cpu(), per_image))
    else:
        prior = StoredStates(prior.means(torch.zeros(count, dtype=torch.int64)))
    in_order = InitialImages(images.__getitem__, count)
    first = replace(sampler, prior=prior, initial_images=in_order)
    y, known = images.to(sampler.precision.device), known.to(sampler.precision.device)
    return _observed(first, lambda rows: KnownPixels(y[rows], known), len(images), per_image)


def edit(sampler: Sampler, images: torch.Tensor, blur: float, per_image: int = 1) -> torch.Tensor:
    """`per_image` (M) samples that start from images (S, C, H, W) in [0, 1], blurred by `blur`
    pixels: (S, M, C, H, W), about [0, 1], on the CPU.

    Raises UserError for a blur beyond that of the levels visited.
    """
    return sampler.from_images(images, per_image, level_of_blur(sampler, blur)[0])


def level_of_blur(sampler: Sampler, blur: float) -> tuple[int, float]:
    """Return the level visited whose blur is nearest to so many pixels, and its blur.

    Raises UserError beyond the levels that are visited.
    """
    levels = sampler.kernel.chain[:-1]
    scales = length_scales(_gaussian(sampler))[list(levels)]
    if not scales[-1] / 2 <= blur <= scales[0] * 1.01:
        raise UserError(
            f"--blur={blur:g}: must be from {scales[-1]:.2g} to {scales[0]:.3g} pixels, as far as "
            "the levels that are visited go"
        )
    nearest = int((scales.log() - torch.tensor(blur).log()).abs().argmin())
    return levels[nearest], scales[nearest].item()


def length_scales(process: GaussianProcess) -> torch.Tensor:
    """Return the blur of each level in pixels, sigma_B: float64 (K + 1,)."""
    log_alpha = process.blur.log_alpha.cpu()
    slowest = eigenvalues(*log_alpha.shape[1:])[0, 1]
    # Beyond what all frequencies lose alike; at a level without signal nothing is known.
    decay = (log_alpha[:, 0, 0] - log_alpha[:, 0, 1]).nan_to_num(torch.inf)
    return (2 * decay.clamp(min=0) / slowest).sqrt()


def level_of_factor(sampler: Sampler, factor: int) -> int:
    """Return the last level visited that has lost as much as a picture made so much smaller:
    blurred by half the factor, or with little noise by the factor.

    What interpolation has wrong is no more than the noise there, or else would be believed.
    """
    process, chain = _gaussian(sampler), sampler.kernel.chain
    scales, level = length_scales(process), chain[0]
    for k in chain[:-1]:
        needed = factor if process.sigma[k] < LITTLE_NOISE else factor / 2
        if scales[k] >= needed:
            level = k
    return level


def whole_factor(sampler: Sampler, small: torch.Tensor) -> int:
    """Return how many times as large the sampler's images are. Raises UserError for others."""
    channels, height, width = sampler.shape
    factor = height // max(1, small.shape[-2])
    expected = (channels, small.shape[-2] * factor, small.shape[-1] * factor)
    if factor < 2 or expected != sampler.shape:
        raise UserError(
            f"--super_resolve: {_size(small)} pixels; the model's images have {width} x {height}, "
            "which must be a whole number of times as many, from 2, on both sides"
        )
    return factor


def bicubic(small: torch.Tensor, factor: int) -> torch.Tensor:
    """Pictures enlarged by interpolation, in [0, 1]."""
    return interpolate(small, scale_factor=factor, mode="bicubic").clamp(0, 1)


def _observed(
    first: Sampler, observation: Callable[[list[int]], Observation], count: int, per_image: int
) -> torch.Tensor:
    """Samples of `first`, `per_image` for each of `count` observations."""
    if first.sampler != "reverse":
        raise UserError(f"--sampler={first.sampler}: has no steps to correct; leave it out")
    results, device = [], first.precision.device
    for indices in torch.arange(count * per_image).split(BATCH_SIZE):
        seen = observation([int(i) // per_image for i in indices])
        assert isinstance(first.kernel, GaussianKernel)  # of a Gaussian process
        try:
            kernel = ObservedKernel(first.kernel, seen)
        except ValueError as error:
            raise UserError(str(error)) from None
        samples = replace(first, kernel=kernel).independent(indices.tolist())
        results.append(agree(seen, samples.to(device)).cpu())
    return torch.cat(results).unflatten(0, (count, per_image))


def _nearest(prior: Prior, states: torch.Tensor, per_image: int) -> torch.Tensor:
    """Return the `per_image` states of the prior nearest to each of these: (S M, C, H, W)."""
    distances = torch.cat(
        [
            torch.cdist(states.flatten(1), prior.means(rows).flatten(1))
            for rows in torch.arange(len(prior)).split(CHUNK)
        ],
        1,
    )
    order = distances.argsort(1)[:, torch.arange(per_image) % len(prior)]
    return prior.means(order.flatten())


def _gaussian(sampler: Sampler) -> GaussianProcess:
    if not isinstance(sampler.process, GaussianProcess):
        raise UserError("this needs one of the included processes, whose steps estimate the image")
    return sampler.process


def _size(images: torch.Tensor) -> str:
    return f"{images.shape[-1]} x {images.shape[-2]}"
