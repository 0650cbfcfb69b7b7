"""Estimates of the bound on -log p(u_0) for a trained model: which levels to look at, and what the network does there."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from model_code.blur import DCTBlur
from model_code.elbo import (
    Bound,
    Estimate,
    intermediate_levels,
    intermediate_term,
    prior_kl_bound_of_projected,
    reconstruction_term,
)
from model_code.prior import PriorBank
from model_code.process import Denoiser
from scripts import distributed
from scripts.data.loader import Batch
from scripts.device import Precision
from scripts.losses import deblurring_loss
from scripts.randomness import Purpose, normal, stream


@dataclass(frozen=True)
class Measurement:
    """What the bound needs of the network and the images; it does not depend on delta, nor do the network's inputs."""

    levels: torch.Tensor
    """The levels k of the intermediate terms that were looked at: int64 (B, n), ascending in each row."""
    squared_errors: torch.Tensor
    """||A_{k-1} u_0 - mu(u_k, k)||^2 there, summed over pixels: float64 (B, n)."""
    first_errors: torch.Tensor
    """The same at k = 1: float64 (B,)."""
    projected: torch.Tensor
    """A_K u_0 in the prior bank's basis: float32 (B, C, F)."""
    num_levels: int
    """Intermediate terms in the whole bound, of which n were looked at."""
    num_pixels: int
    """N, values in an image."""

    @property
    def exact(self) -> bool:
        """Whether every level was looked at."""
        return self.levels.shape[1] == self.num_levels

    def gathered(self) -> "Measurement":
        """With the images of all processes, in the order of ranks."""
        return replace(
            self,
            levels=distributed.gather_rows(self.levels),
            squared_errors=distributed.gather_rows(self.squared_errors),
            first_errors=distributed.gather_rows(self.first_errors),
            projected=distributed.gather_rows(self.projected),
        )

    def bound(self, bank: PriorBank, sigma: float, delta: float) -> Bound:
        """The bound for the sampling noise `delta` > 0."""
        return Bound(
            prior=prior_kl_bound_of_projected(self.projected, self.num_pixels, bank, sigma, delta),
            terms=intermediate_term(self.squared_errors, self.num_pixels, sigma, delta),
            weight=self.num_levels / max(1, self.levels.shape[1]),
            reconstruction=reconstruction_term(self.first_errors, self.num_pixels, delta),
            num_pixels=self.num_pixels,
        )


def draw_strata(seed: int, index: int, levels: range, num_draws: int) -> list[int]:
    """Levels for one image, ascending: `levels` cut into `num_draws` strata of equal width, a uniform draw from each.

    Every level is as likely as another to be drawn, so that the sum over draws times len(levels) / num_draws has the right
    expectation. For at least as many draws as levels these are all of them. A function of (seed, index) otherwise.
    """
    if num_draws >= len(levels):
        return list(levels)
    uniform = stream(seed, Purpose.BOUND_LEVEL, position=index).random(num_draws)
    # A stratum may begin and end within a level: that one is shared with its neighbour, and may be drawn by both.
    places = (int((stratum + u) * len(levels) / num_draws) for stratum, u in enumerate(uniform))
    return [levels[min(place, len(levels) - 1)] for place in places]


def drawing_errors(terms: torch.Tensor, num_draws: int) -> tuple[float, float]:
    """Standard deviations of the mean bound over images that drawing levels causes: (in strata, independently of each other).

    terms: L_{k-1} at all levels, float64 (B, L). Both are in closed form, for the same number of network calls.
    """
    B, L = terms.shape
    weight = L / num_draws
    independent = (weight**2 * num_draws * terms.var(1, correction=0)).sum()
    # Stratum j covers [j w, (j + 1) w) of the line on which level l covers [l, l + 1): its share of each level.
    edges = torch.arange(num_draws + 1, dtype=torch.float64) * weight
    level = torch.arange(L, dtype=torch.float64)
    shares = (torch.minimum(edges[1:, None], level + 1) - torch.maximum(edges[:-1, None], level)).clamp(min=0) / weight
    means, squares = terms @ shares.T, terms.square() @ shares.T
    stratified = (weight**2 * (squares - means.square())).sum()
    return stratified.clamp(min=0).sqrt().item() / B, independent.sqrt().item() / B


@dataclass(frozen=True)
class BoundEstimator:
    """Runs a model on noisy images at chosen levels: what it measures is a function of (seed, image index) for each image."""

    model: Denoiser
    """On the device to compute on, in eval mode."""
    blur: DCTBlur
    """On the same device."""
    precision: Precision
    sigma: float
    protocol: str
    batch_size: int
    """Inputs of the network at a time."""

    @torch.no_grad()
    def measure(
        self, batches: Iterable[Batch], bank: PriorBank, seed: int, num_levels_per_image: int | None = None
    ) -> Measurement:
        """Squared errors for all images, at `num_levels_per_image` levels drawn in strata, or at all levels."""
        levels = intermediate_levels(self.blur.K, self.protocol)
        num_draws = len(levels) if num_levels_per_image is None else min(num_levels_per_image, len(levels))
        drawn = [torch.empty(0, num_draws, dtype=torch.int64)]
        errors, first_errors = [torch.empty(0, num_draws, dtype=torch.float64)], [torch.empty(0, dtype=torch.float64)]
        projected = [bank.coefficients[:0]]
        for batch in batches:
            if len(batch.images) == 0:  # of several processes one may have none
                continue
            chosen = torch.tensor(
                [draw_strata(seed, index, levels, num_draws) for index in batch.indices.tolist()], dtype=torch.int64
            )
            by_level = self._errors_by_level(batch, seed, chosen)
            drawn.append(chosen)
            errors.append(by_level.gather(1, chosen))
            first_errors.append(by_level[:, 1])
            projected.append(bank.project(batch.images))
        return Measurement(
            levels=torch.cat(drawn),
            squared_errors=torch.cat(errors),
            first_errors=torch.cat(first_errors),
            projected=torch.cat(projected),
            num_levels=len(levels),
            num_pixels=bank.coefficients.shape[1] * bank.basis[0].numel(),
        )

    def _errors_by_level(self, batch: Batch, seed: int, levels: torch.Tensor) -> torch.Tensor:
        """Squared errors at level 1 and at `levels` (B, n), each once: float64 (B, K + 1), NaN at the others."""
        wanted = torch.zeros(len(levels), self.blur.K + 1, dtype=torch.bool)
        wanted[:, 1] = True
        wanted.scatter_(1, levels, True)
        rows, ks = wanted.nonzero(as_tuple=True)
        errors = torch.full(wanted.shape, torch.nan, dtype=torch.float64)
        for row, k in zip(rows.split(self.batch_size), ks.split(self.batch_size), strict=True):
            errors[row, k] = self._squared_errors(batch.images[row], k, batch.indices[row], seed).double().cpu()
        return errors

    def _squared_errors(self, u0: torch.Tensor, k: torch.Tensor, indices: torch.Tensor, seed: int) -> torch.Tensor:
        """||A_{k-1} u_0 - mu(A_k u_0 + sigma eps, k)||^2 with the noise that belongs to (seed, index, k): float32 (B,)."""
        places = zip(k.tolist(), indices.tolist(), strict=True)
        streams = (stream(seed, Purpose.BOUND_NOISE, step=level, position=index) for level, index in places)
        eps = normal(streams, tuple(u0.shape[1:]))
        u0, k, eps = (x.to(self.precision.device) for x in (u0, k, eps))
        with self.precision.autocast():
            return deblurring_loss(self.model, self.blur, u0, k, eps, self.sigma)


@dataclass(frozen=True)
class LevelRow:
    """One row of the per-level table: means over the images that were looked at at level k."""

    k: int
    num_images: int
    squared_error: Estimate
    term: Estimate
    """L_{k-1} in nats, for k = 1 the reconstruction term L_0."""


def level_table(measurement: Measurement, sigma: float, delta: float) -> list[LevelRow]:
    """A row for k = 1 and for every level of the intermediate terms that was looked at, in the order of k.

    With protocol 'released' k = 1 has two rows, as its sum counts that level twice.
    """
    N = measurement.num_pixels
    first = measurement.first_errors
    rows = [LevelRow(1, len(first), Estimate.of(first), Estimate.of(reconstruction_term(first, N, delta)))]
    levels = measurement.levels
    drawn_before = torch.zeros_like(levels, dtype=torch.bool)
    drawn_before[:, 1:] = levels[:, 1:] == levels[:, :-1]
    for k in levels.unique().tolist():
        errors = measurement.squared_errors[(levels == k) & ~drawn_before]
        rows.append(LevelRow(k, len(errors), Estimate.of(errors), Estimate.of(intermediate_term(errors, N, sigma, delta))))
    return rows
