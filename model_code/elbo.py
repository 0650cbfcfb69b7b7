"""Terms of the bound on -log p(u_0), from squared errors in the cosine basis, and its prior term over the training set."""

import math

import torch

from model_code.prior import PriorBank

TEST_CHUNK, BANK_CHUNK = 256, 8192
"""Sizes of the blocks of pairwise distances: 16 MB of float64."""


def gaussian_kl(errors: torch.Tensor, variance: float, variances: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """KL(N(a, v I) || N(b, diag(w))) in nats: (..., R) to (...).

    errors: ||a - b||^2 in each of R groups of coefficients, with `sizes` (R,) of them and w = `variances` (..., R) in each.
    L_{k-1} is this with v = sigma^2; with one w = delta^2 for all it is the paper's expression.
    """
    ratio = variance / variances
    return 0.5 * (sizes * (ratio - 1 - ratio.log()) + errors / variances).sum(-1)


def negative_log_density(errors: torch.Tensor, variances: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
    """-log N(a; b, diag(w)) in nats, arguments as in `gaussian_kl`: L_0 with w = delta^2."""
    return 0.5 * (sizes * (2 * math.pi * variances).log() + errors / variances).sum(-1)


def bits_per_dim(nats: torch.Tensor, num_pixels: int, discrete: bool) -> torch.Tensor:
    """Nats of an image of `num_pixels` values in bits per dimension.

    For a density of 8-bit images dequantised to [0, 1] (not `discrete`) the change of variables to 256 levels adds 8 bits.
    """
    return nats / (num_pixels * math.log(2)) + (0 if discrete else 8)


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
    center = bank.coefficients.double().mean(0)  # a common offset, which would cost digits
    x, y = ((u.double() - center).flatten(1) / delta for u in (projected, bank.coefficients))
    constant = 0.5 * num_pixels * (sigma**2 / delta**2 - 1 + 2 * math.log(delta / sigma))  # the part without distances
    return constant + math.log(len(bank)) - _log_sum_over_bank(x, y)


def _log_sum_over_bank(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """log sum_i exp(-|x - y_i|^2 / 2) for each row of x, streamed over the rows of y."""
    sums = []
    for chunk in x.split(TEST_CHUNK):
        total = chunk.new_full((len(chunk),), -math.inf)
        for block in y.split(BANK_CHUNK):
            total = torch.logaddexp(total, torch.logsumexp(-torch.cdist(chunk, block).square() / 2, 1))
        sums.append(total)
    return torch.cat(sums)
