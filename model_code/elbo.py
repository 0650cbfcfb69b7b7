"""The bound on -log p(u_0): its prior term, in closed form over the whole training set."""

import math

import torch

from model_code.prior import PriorBank

TEST_CHUNK, BANK_CHUNK = 512, 4096
"""Sizes of the blocks of pairwise distances: 16 MB of float64, within a processor's cache."""


def gaussian_kl_constant(num_pixels: int, sigma: float, delta: float) -> float:
    """KL(N(a, sigma^2 I) || N(a, delta^2 I)) in `num_pixels` dimensions, in nats: the part without a distance of means."""
    return 0.5 * num_pixels * (sigma**2 / delta**2 - 1 + 2 * math.log(delta / sigma))


def prior_kl_bound(test: torch.Tensor, bank: PriorBank, sigma: float, delta: float) -> torch.Tensor:
    """A bound on L_K = KL(q(u_K | u_0) || p(u_K)) for each test image: float64 (B,), in nats.

    test: images u_0 (B, C, H, W) in [0, 1]. By convexity of the divergence in the mixture,
    L_K <= log M - logsumexp_i(-KL_i) with KL_i the divergence from the i-th component. Memory does not grow with M.
    """
    # |x - y|^2 / 2 = |x|^2 / 2 + |y|^2 / 2 - x y: float64 leaves nothing to cancellation, and shared offsets are removed.
    center = bank.coefficients.double().mean(0)
    x = (bank.project(test).double() - center).flatten(1) / delta
    y = (bank.coefficients.double() - center).flatten(1) / delta
    half_norm_y = y.square().sum(1) / 2
    log_sums = torch.cat([_logsumexp_over_bank(chunk, y, half_norm_y) for chunk in x.split(TEST_CHUNK)])
    num_pixels = test[0].numel()
    return gaussian_kl_constant(num_pixels, sigma, delta) + math.log(len(bank)) + x.square().sum(1) / 2 - log_sums


def _logsumexp_over_bank(x: torch.Tensor, y: torch.Tensor, half_norm_y: torch.Tensor) -> torch.Tensor:
    """log sum_i exp(x y_i - |y_i|^2 / 2) for each row of x, one block of the bank at a time."""
    largest = x.new_full((len(x),), -math.inf)
    total = x.new_zeros(len(x))
    for y_block, half_norm_block in zip(y.split(BANK_CHUNK), half_norm_y.split(BANK_CHUNK), strict=True):
        exponents = torch.addmm(-half_norm_block, x, y_block.T)
        new_largest = torch.maximum(largest, exponents.amax(1))
        # Once the largest exponent is taken off, float32 suffices, and its exp is several times faster.
        block_total = (exponents - new_largest[:, None]).float().exp().sum(1)
        total = total * (largest - new_largest).exp() + block_total
        largest = new_largest
    return largest + total.log()
