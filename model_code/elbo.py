"""The bound on -log p(u_0) term by term, from squared errors, and its prior term in closed form over the training set."""

import math
from dataclasses import dataclass

import torch

from model_code.prior import PriorBank

TEST_CHUNK, BANK_CHUNK = 256, 2048
"""Sizes of the blocks of pairwise distances: 4 MB of float64, within a processor's cache."""
NEGLIGIBLE_EXPONENT = 60.0
"""Components this many nats below the nearest one are left out: together less than M e^-60 of the sum, beyond float64."""


@dataclass(frozen=True)
class Estimate:
    """A mean over images and its standard error (infinite for a single image)."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, values: torch.Tensor) -> "Estimate":
        """From independent values (B,)."""
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.inf
        return cls(values.mean().item(), error)


@dataclass(frozen=True)
class Bound:
    """The bound on -log p(u_0) for B images, term by term, in nats: L_K + sum_k L_{k-1} + L_0.

    The sum over levels may be an estimate from some of them: `intermediate` then has its expectation.
    """

    prior: torch.Tensor
    """L_K: float64 (B,)."""
    terms: torch.Tensor
    """L_{k-1} at the levels k that were looked at: float64 (B, n)."""
    weight: float
    """How many of the levels each of `terms` stands for: 1 if they are all there."""
    reconstruction: torch.Tensor
    """L_0: float64 (B,)."""
    num_pixels: int
    """N, values in an image."""

    @property
    def intermediate(self) -> torch.Tensor:
        """The sum of L_{k-1} over levels, for each image: float64 (B,)."""
        return self.terms.sum(1) * self.weight

    @property
    def total(self) -> torch.Tensor:
        """The bound for each image: float64 (B,)."""
        return self.prior + self.intermediate + self.reconstruction

    @property
    def bits_per_dim(self) -> torch.Tensor:
        """The bound for 8-bit images that were dequantised to [0, 1], in bits per dimension: float64 (B,)."""
        return self.total / (self.num_pixels * math.log(2)) + 8


def intermediate_levels(K: int, protocol: str) -> range:
    """Levels k whose terms L_{k-1} the bound sums: 2..K with protocol 'paper'.

    The release's 1..K-1 count level 1 twice, as L_0 has it already, and leave out K.
    """
    return range(2, K + 1) if protocol == "paper" else range(1, K)


def intermediate_term(squared_error: torch.Tensor, num_pixels: int, sigma: float, delta: float) -> torch.Tensor:
    """L_{k-1} = KL(N(A_{k-1} u_0, sigma^2 I) || N(mu, delta^2 I)), in nats, from ||A_{k-1} u_0 - mu||^2 (any shape, kept)."""
    return gaussian_kl_constant(num_pixels, sigma, delta) + squared_error / (2 * delta**2)


def reconstruction_term(squared_error: torch.Tensor, num_pixels: int, delta: float) -> torch.Tensor:
    """L_0 = -log N(u_0; mu, delta^2 I), in nats, from ||u_0 - mu(u_1, 1)||^2 (any shape, kept)."""
    return num_pixels * math.log(delta * math.sqrt(2 * math.pi)) + squared_error / (2 * delta**2)


def gaussian_kl_constant(num_pixels: int, sigma: float, delta: float) -> float:
    """KL(N(a, sigma^2 I) || N(a, delta^2 I)) in `num_pixels` dimensions, in nats: the part without a distance of means."""
    return 0.5 * num_pixels * (sigma**2 / delta**2 - 1 + 2 * math.log(delta / sigma))


def prior_kl_bound(test: torch.Tensor, bank: PriorBank, sigma: float, delta: float) -> torch.Tensor:
    """A bound on L_K = KL(q(u_K | u_0) || p(u_K)) for each test image: float64 (B,), in nats.

    test: images u_0 (B, C, H, W) in [0, 1]. By convexity of the divergence in the mixture,
    L_K <= log M - logsumexp_i(-KL_i) with KL_i the divergence from the i-th component. Memory does not grow with M.
    """
    return prior_kl_bound_of_projected(bank.project(test), test[0].numel(), bank, sigma, delta)


def prior_kl_bound_of_projected(
    projected: torch.Tensor, num_pixels: int, bank: PriorBank, sigma: float, delta: float
) -> torch.Tensor:
    """As `prior_kl_bound`, for images of `num_pixels` values that `bank.project` has turned into (B, C, F)."""
    # Distances as |x|^2 + |y|^2 - 2 x y: float64 leaves nothing to cancellation, and shared offsets are removed.
    center = bank.coefficients.double().mean(0)
    x = (projected.double() - center).flatten(1) / delta
    y = (bank.coefficients.double() - center).flatten(1) / delta
    # In the order of the coordinate that spreads most, blocks are intervals of it, and most pairs of blocks far apart.
    axis = int(y.var(0, correction=0).argmax())
    order = x[:, axis].argsort()
    log_sums = torch.empty_like(x[:, 0])
    log_sums[order] = _log_sum_over_bank(x[order], y[y[:, axis].argsort()], axis)
    return gaussian_kl_constant(num_pixels, sigma, delta) + math.log(len(bank)) - log_sums


def _log_sum_over_bank(x: torch.Tensor, y: torch.Tensor, axis: int) -> torch.Tensor:
    """log sum_i exp(-|x - y_i|^2 / 2) for each row of x; rows of x and of y ascend in the coordinate `axis`."""
    # One matrix product gives the exponents: [x, -|x|^2/2, 1] . [y, 1, -|y|^2/2].
    ones_x, ones_y = x.new_ones(len(x), 1), y.new_ones(len(y), 1)
    x = torch.cat([x, -x.square().sum(1, keepdim=True) / 2, ones_x], dim=1)
    y = torch.cat([y, ones_y, -y.square().sum(1, keepdim=True) / 2], dim=1)
    blocks = [(block.T.contiguous(), float(block[0, axis]), float(block[-1, axis])) for block in y.split(BANK_CHUNK)]
    sums = []
    for chunk in x.split(TEST_CHUNK):
        low, high = float(chunk[0, axis]), float(chunk[-1, axis])
        gaps = [max(first - high, low - last, 0.0) for _, first, last in blocks]
        nearest_first = sorted(zip(gaps, (block for block, _, _ in blocks), strict=True), key=lambda pair: pair[0])
        sums.append(_log_sum_over_blocks(chunk, nearest_first))
    return torch.cat(sums)


def _log_sum_over_blocks(chunk: torch.Tensor, blocks: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """The log of the sum of exp(chunk @ block) over the columns of all blocks (least distance from the chunk, block)."""
    largest = chunk.new_full((len(chunk),), -math.inf)
    total = chunk.new_zeros(len(chunk))
    for gap, block in blocks:
        if -(gap**2) / 2 < float(largest.min()) - NEGLIGIBLE_EXPONENT:
            break
        exponents = chunk @ block
        new_largest = torch.maximum(largest, exponents.amax(1))
        # Once the largest exponent is taken off, float32 suffices, and its exp is several times faster.
        block_total = exponents.sub_(new_largest[:, None]).float().exp_().sum(1)
        total = total * (largest - new_largest).exp() + block_total
        largest = new_largest
    return largest + total.log()
