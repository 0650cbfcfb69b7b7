"""The bound on -log p(u_0): levels to look at, what the network does there, its terms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from model_code.elbo import bits_per_dim
from model_code.prior import Prior
from model_code.process import ReverseKernel
from scripts.data.images import ArrayImages
from scripts.data.loader import Batch, OrderedBatches, Reading, none_readable
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.randomness import Purpose, normal_by_index, stream
from scripts.sampling.initial_images import DataPrior

if TYPE_CHECKING:
    from scripts.sampling.sampler import Sampler


class Bound(NamedTuple):
    """The bound of each image and its parts, in nats: float64 (B,)."""

    total: torch.Tensor
    prior: torch.Tensor
    intermediate: torch.Tensor
    reconstruction: torch.Tensor
    bits_per_dim: torch.Tensor
    """The total in bits per dimension of 8-bit images."""


def bound(
    sampler: Sampler,
    pixels: torch.Tensor,
    levels: int | None = 10,
    labels: torch.Tensor | None = None,
    batch_size: int = 64,
) -> Bound:
    """The bound on -log p(u_0) of images uint8 (B, C, H, W), dequantised where it is of a density.

    levels: how many are looked at for each image, None for all; labels: classes, int64 (B,), for a
    network that is told them. A function of the sampler's seed and an image's place in `pixels`.
    Raises UserError for what has no bound.
    """
    process: Any = sampler.process
    if not hasattr(process, "prior_term"):
        raise UserError(f"{type(process).__name__} has no bound on the likelihood")
    if isinstance(sampler.prior, DataPrior):
        raise UserError("bound: needs the checkpoint's own prior, not images to start from")
    right_type = isinstance(pixels, torch.Tensor) and pixels.dtype == torch.uint8
    if not right_type or pixels.shape[1:] != sampler.shape:
        holds = f"{type(pixels).__name__} {pixels.dtype} {tuple(pixels.shape)}"
        needed = f"uint8 (B, {', '.join(map(str, sampler.shape))})"
        raise UserError(f"bound: must be a tensor {needed}, is {holds}")
    if levels is not None and levels < 1:
        raise UserError(f"bound: levels = {levels}: must be at least 1, or None for all")
    if len(pixels) == 0:
        raise UserError("bound: needs an image at least")
    if sampler.tells_classes != (labels is not None and len(labels) == len(pixels)):
        needed = "one label for each image" if sampler.tells_classes else "no labels"
        raise UserError(f"bound: this network needs {needed}")
    known = None if labels is None else labels.numpy()
    images = ArrayImages(pixels.permute(0, 2, 3, 1).numpy(), labels=known)
    batches = OrderedBatches(images, batch_size, 0, not process.discrete, seed=sampler.seed)
    try:
        num_levels = len(process.bound_levels(sampler.kernel)) if levels is None else levels
        measured = measure(sampler, batches, batch_size, num_levels)
    except ValueError as error:
        raise UserError(str(error)) from None
    prior = sampler.prior
    if not (process.discrete or sampler.dequantized):
        prior = prior.dequantized()
    parts = measured.bound(process, prior, sampler.kernel)
    bits = bits_per_dim(parts["total"], pixels[0].numel(), process.discrete)
    return Bound(**parts, bits_per_dim=bits)


@dataclass(frozen=True)
class Measurement:
    """What the bound needs of the network and the images, for kernels that differ in delta."""

    levels: torch.Tensor
    """The levels k of the intermediate terms that were looked at: int64 (B, n), ascending in each
    row.
    """
    errors: torch.Tensor
    """`GaussianProcess.errors` there: float64 (B, n, S)."""
    first_errors: torch.Tensor
    """The same at the last level before 0: float64 (B, S)."""
    summary: torch.Tensor
    """`GaussianProcess.prior_summary`: (B, ...)."""
    num_levels: int
    """Intermediate terms in the whole bound, of which n were looked at."""
    images_crc32: int = 0
    """Checksum of the images' pixels before any noise."""
    labels: torch.Tensor | None = None
    """Classes of the images, int64 (B,), given which the bound is; None: given nothing."""

    def bound(self, process: Any, prior: Prior, kernel: ReverseKernel) -> dict[str, torch.Tensor]:
        """The bound on -log p(u_0) for a reverse kernel, "total" and its parts, in nats: each
        float64 (B,).

        Parts are "prior" L_K, "intermediate" sum_k KL_k, where the levels looked at stand for all,
        and "reconstruction" L_0.
        """
        B, n = self.levels.shape
        last = torch.full((B,), kernel.chain[-2])
        terms = process.terms(self.errors.flatten(0, 1), self.levels.flatten(), kernel).view(B, n)
        parts = {
            "prior": self._prior_term(process, prior, kernel),
            "intermediate": terms.sum(1) * (self.num_levels / max(1, n)),
            "reconstruction": process.terms(self.first_errors, last, kernel, last=True),
        }
        return parts | {"total": parts["prior"] + parts["intermediate"] + parts["reconstruction"]}

    def _prior_term(self, process: Any, prior: Prior, kernel: ReverseKernel) -> torch.Tensor:
        if self.labels is None:
            return process.prior_term(self.summary, prior, kernel)
        term = torch.empty(len(self.labels), dtype=torch.float64)
        for label in self.labels.unique().tolist():
            rows = self.labels == label
            of_class = prior.of_class(label)
            term[rows] = process.prior_term(self.summary[rows], of_class, kernel).double()
        return term


def draw_strata(seed: int, index: int, levels: Sequence[int], num_draws: int) -> list[int]:
    """Levels for one image, ascending: `levels` cut into `num_draws` strata of equal width, a
    uniform draw from each.

    Every level is as likely as another to be drawn, so that the sum over draws times len(levels) /
    num_draws has the right expectation. For at least as many draws as levels these are all of them.
    A function of (seed, index) otherwise.
    """
    if num_draws >= len(levels):
        return list(levels)
    uniform = stream(seed, Purpose.BOUND_LEVEL, position=index).random(num_draws)
    # A stratum may begin and end within a level: that one is shared with its neighbour, and may be
    # drawn by both.
    places = (int((stratum + u) * len(levels) / num_draws) for stratum, u in enumerate(uniform))
    return [levels[min(place, len(levels) - 1)] for place in places]


@torch.no_grad()
def measure(
    sampler: Sampler,
    batches: Iterable[Batch],
    batch_size: int,
    num_levels_per_image: int,
    on_images: Callable[[int], object] = lambda count: None,
) -> Measurement:
    """Run a model on images of all processes, each at the last level and (at most)
    `num_levels_per_image` drawn in strata.

    batch_size: inputs of the network at a time. `on_images` tells of progress. What is measured is
    a function of (seed, image
    index). Raises ReadingFailed if no image can be read.
    """
    process: Any = sampler.process
    levels, last = process.bound_levels(sampler.kernel), sampler.kernel.chain[-2]
    parts: list[tuple[torch.Tensor, ...]] = []
    reading = Reading("images to evaluate")
    for batch in reading.batches(batches):
        if len(batch.images) == 0:
            continue
        strata = (
            draw_strata(sampler.seed, index, levels, num_levels_per_image)
            for index in batch.indices.tolist()
        )
        k = torch.tensor([[last, *drawn] for drawn in strata])
        summary = process.prior_summary(batch.images, sampler.prior).cpu()
        labels = torch.full((len(batch.images),), -1)
        if sampler.tells_classes and batch.labels is not None:
            labels = batch.labels
        parts.append((k, _errors(sampler, batch, k, batch_size), summary, labels))
        on_images(len(batch.images))
    parts = list(chain.from_iterable(distributed.gather(parts)))
    if not parts:
        raise none_readable(sorted(reading.unreadable))
    k, errors, summary, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    told = labels if sampler.tells_classes else None
    measured = k[:, 1:], errors[:, 1:], errors[:, 0], summary, len(levels), reading.crc32, told
    return Measurement(*measured)


def _errors(sampler: Sampler, batch: Batch, levels: torch.Tensor, batch_size: int) -> torch.Tensor:
    """`GaussianProcess.errors` of every image at its row of levels (B, n), with noise that belongs
    to (seed, index, level).
    """
    process: Any = sampler.process
    device, errors = sampler.precision.device, []
    rows = torch.arange(len(levels)).repeat_interleave(levels.shape[1])
    for row, k in zip(rows.split(batch_size), levels.flatten().split(batch_size), strict=True):
        places = zip(k.tolist(), batch.indices[row].tolist(), strict=True)
        eps = normal_by_index(device, sampler.seed, Purpose.BOUND_NOISE, places, sampler.shape)
        images = batch.images[row].to(device)
        model = sampler.denoiser(None if batch.labels is None else batch.labels[row])
        with sampler.precision.autocast():
            of_batch = process.errors(model, images, k.to(device), eps, sampler.kernel)
        errors.append(of_batch.cpu())
    return torch.cat(errors).view(*levels.shape, -1)
