"""Do samples repeat training images? Distances to the nearest of them, beside those of held-out
images.
"""

import math
from collections.abc import Iterable

import numpy as np
import torch
from matplotlib.figure import Figure

from model_code.dct import dct2
from model_code.spectrum import octaves
from scripts.data.datasets import load_images
from scripts.estimate import Estimate, count
from scripts.evaluation.given import GivenSamples
from scripts.evaluation.pixels import REPLICATES, PixelInputs, blocks, interval, resampled_medians
from scripts.evaluation.results import Result
from scripts.evaluation.spectrum import low_pass
from scripts.runtime import distributed
from scripts.runtime.randomness import Purpose, stream
from scripts.sampling.output import grid

NEAR = 0.01
"""Samples are compared with the distance that this fraction of held-out images is below."""
SPACES = {"pixels": "", "low_pass": "LowPass"}
"""Where distances are measured, and what names of scores end in."""
COLUMNS = 12


def without_mean(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """Images uint8 (B, C, H, W) without the mean of each channel: float64 (B, d), from values in
    [0, 1].
    """
    u = torch.from_numpy(images).to(device).double() / 255
    return (u - u.mean((2, 3), keepdim=True)).flatten(1)


def low_frequencies(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """DCT coefficients of images uint8 (B, C, H, W) that a low-pass keeps, but the constant:
    float64 (B, d).
    """
    u = torch.from_numpy(images).to(device).double() / 255
    low = low_pass(octaves(*u.shape[2:])).to(device)
    low[0, 0] = False
    return dct2(u)[..., low].flatten(1)


def nearest_training_images(
    images: np.ndarray, training: Iterable[tuple[np.ndarray, np.ndarray]], device: torch.device
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """In each space the distance of each of images uint8 (Q, C, H, W) from the nearest of
    `training`, and that one's position.

    training: positions int64 (B,) and images uint8 (B, C, H, W), a block at a time; only one is in
    memory. Of several processes each has its own blocks, and all get the result, float64 (Q,) and
    int64 (Q,). A collective function.
    """
    squared = {
        space: torch.full((len(images),), torch.inf, dtype=torch.float64, device=device)
        for space in SPACES
    }
    nearest = {
        space: torch.zeros(len(images), dtype=torch.int64, device=device) for space in SPACES
    }
    low = torch.cat([low_frequencies(images[rows], device) for rows in blocks(images)])
    for positions, block in training:
        theirs, index_of = (
            (without_mean(block, device), low_frequencies(block, device)),
            torch.from_numpy(positions).to(device),
        )
        for rows in blocks(images) if len(block) else ():  # a process may have none
            ours = without_mean(images[rows], device), low[rows]
            for space, x, y in zip(SPACES, ours, theirs, strict=True):
                found, index = squared_distances(x, y).min(1)
                nearest[space][rows] = torch.where(
                    found < squared[space][rows], index_of[index], nearest[space][rows]
                )
                squared[space][rows] = torch.minimum(found, squared[space][rows])
    result = {}
    for space in SPACES:
        distances, which = torch.stack(distributed.gather(squared[space].sqrt().cpu())).min(0)
        all_nearest = torch.stack(distributed.gather(nearest[space].cpu()))
        result[space] = distances.numpy(), all_nearest.gather(0, which[None])[0].numpy()
    return result


def squared_distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Of rows of x (n, d) and y (m, d), float64: (n, m), exact to far less than a grey level;
    torch.cdist copies both.
    """
    return ((x**2).sum(1)[:, None] + (y**2).sum(1)).addmm_(x, y.T, alpha=-2).clamp_(min=0)


def ratio_of_medians(
    samples: np.ndarray, held_out: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """The median of distances (N,) over that of (M,), near 0 for copies, and 1,000 values by
    bootstrap over both.

    groups: int64 (N,), of samples that are not independent.
    """
    drawn = resampled_medians(samples, seed, 0, groups) / resampled_medians(held_out, seed, 1)
    return float(np.median(samples) / np.median(held_out)), drawn


def nearer_than_held_out(
    samples: np.ndarray, held_out: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> tuple[float, np.ndarray]:
    """The fraction of samples at less than the distance that `NEAR` of held-out images are below,
    and 10,000 draws of it.

    Draws count both errors: the number of held-out images below the true quantile is binomial, so
    the threshold is drawn from that distribution, and for each threshold the fraction is drawn from
    its posterior under Jeffreys' prior. Samples in groups count as the independent ones that the
    fraction's error corresponds to; draws from a single group are NaN.
    """
    rng = stream(seed, Purpose.BOOTSTRAP, 2)
    rank = rng.binomial(len(held_out), NEAR, 10 * REPLICATES) + rng.random(
        10 * REPLICATES
    )  # uniform between neighbours
    thresholds = np.interp(rank, np.arange(len(held_out) + 1), [0.0, *np.sort(held_out)])
    counts = np.searchsorted(np.sort(samples), thresholds)
    share = Estimate.of(
        torch.from_numpy(samples < np.quantile(held_out, NEAR, method="weibull")), groups
    )
    if share.num_groups == 1:
        return share.value, np.full(len(counts), np.nan)
    part = min(1.0, share.effective_count() / len(samples))
    return share.value, rng.beta(part * counts + 0.5, part * (len(samples) - counts) + 0.5)


def copying(inputs: PixelInputs) -> list[Result]:
    """How near samples are to training images; where they start from such images, how often to
    their own.
    """
    N, results = len(inputs.samples), list[Result]()
    images = np.concatenate([inputs.samples, inputs.in_memory("held_out")])
    found = nearest_training_images(
        images, inputs.training_blocks(), inputs.sampler.precision.device
    )
    starts = starting_positions(inputs)
    for space, suffix in SPACES.items():
        ours, held_out, nearest = found[space][0][:N], found[space][0][N:], found[space][1][:N]
        settings = {"median": float(np.median(ours)), "held_out_median": float(np.median(held_out))}
        settings |= {"held_out_images": len(held_out)}
        for score, measure in (
            ("NearestRatio", ratio_of_medians),
            ("NearerThanHeldOut", nearer_than_held_out),
        ):
            value, drawn = measure(ours, held_out, inputs.sampler.seed, inputs.groups)
            estimate = Estimate(value, float(drawn.std(ddof=1)), N, count(inputs.groups))
            low, high = interval(drawn)
            bounds = (
                (min(low, value), max(high, value))
                if math.isfinite(estimate.standard_error)
                else None
            )
            picture = None if results else draw(inputs, found)
            results.append(Result(score + suffix, estimate, settings, bounds, picture=picture))
        if starts is not None:
            own = Estimate.of(torch.from_numpy(nearest == starts), inputs.groups)
            results.append(Result(f"NearestIsOwnSeed{suffix}", own, settings, own.wilson()))
    return results


def starting_positions(inputs: PixelInputs) -> np.ndarray | None:
    """The position of the training image that each sample started from, int64 (N,); None if it
    started from something else.
    """
    sampler, copies = inputs.sampler, 1 + inputs.data.random_flip
    if isinstance(sampler, GivenSamples):
        return None
    if sampler.initial_images is not None:
        return inputs.groups if sampler.initial_images.settings.get("init") == "train" else None
    one_each = len(sampler.prior) == copies * len(
        load_images(inputs.data, "train")
    )  # and all of them can be read
    return inputs.groups if one_each else None


def draw(inputs: PixelInputs, found: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """A picture of the samples that are nearest to training images, in each space, above these
    images.
    """
    picture, source = (
        Figure(figsize=(9, 4.2), layout="constrained"),
        load_images(inputs.data, "train"),
    )
    for axes, (space, (distances, nearest)) in zip(picture.subplots(2), found.items(), strict=True):
        first = distances[: len(inputs.samples)].argsort(kind="stable")[:COLUMNS]
        originals = np.stack([source[int(i)] for i in nearest[first]])
        axes.imshow(
            grid(
                torch.from_numpy(np.concatenate([inputs.samples[first], originals])) / 255,
                len(first),
            )
        )
        axes.set_title(
            f"{space.replace('_', '-')}: samples nearest to a training image, and below each that image",
            fontsize=9,
        )
        axes.axis("off")
    return picture
