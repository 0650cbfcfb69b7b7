"""Terms of the bound on -log p(u_0), and its prior term over the training set."""

import math

import torch
from torch import Tensor

from model_code.prior import PriorBank

BANK_CHUNK = 8192
"""Training images whose distances are held at a time."""
HALF_BIN = 1 / 255
"""Half the distance of neighbouring 8-bit values in [-1, 1]."""


def gaussian_kl(
    errors: Tensor,
    variance: Tensor | float,
    variances: Tensor,
    sizes: Tensor | float = 1.0,
) -> Tensor:
    """KL(N(a, v) || N(b, w)) in nats of each group of `sizes` coefficients, to be summed.

    errors: ||a - b||^2 in the group; v = `variance`, w = `variances`; all broadcast. L_{k-1} is the
    sum with v = sigma^2; with one w = delta^2 for all it is the paper's expression.
    """
    ratio = variance / variances
    return 0.5 * (sizes * (ratio - 1 - ratio.log()) + errors / variances)


def negative_log_density(errors: Tensor, variances: Tensor, sizes: Tensor) -> Tensor:
    """-log N(a; b, diag(w)) in nats, arguments (..., R) as of `gaussian_kl`; L_0: w = delta^2."""
    return 0.5 * (sizes * (2 * math.pi * variances).log() + errors / variances).sum(-1)


def log_probability(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log P(x) of 8-bit values scaled to [-1, 1] for a normal rounded to the nearest of them.

    Float64, the shape of x. The outermost of the 256 values take the rest of the line, so that
    probabilities sum to 1 (Ho et al., 2020, equation 13).
    """
    x, mean = x.double(), mean.double()
    lower, upper = (x - HALF_BIN - mean) / std, (x + HALF_BIN - mean) / std
    lower = torch.where(x < HALF_BIN - 1, -math.inf, lower)
    upper = torch.where(x > 1 - HALF_BIN, math.inf, upper)
    # By symmetry move the interval to the negative side, where the logarithm of the distribution
    # function is accurate.
    flip = lower + upper > 0
    lower, upper = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-torch.exp(log_lower - log_upper))


def bits_per_dim(nats: Tensor, num_pixels: int, discrete: bool) -> Tensor:
    """Nats of an image of `num_pixels` values in bits per dimension.

    For a density of 8-bit images dequantised to [0, 1] (not `discrete`) the change of variables to
    256 levels adds 8 bits.
    """
    return nats / (num_pixels * math.log(2)) + (0 if discrete else 8)


def prior_kl_bound(projected: Tensor, bank: PriorBank, sigma: float, delta: float) -> Tensor:
    """Return a bound on L_K = KL(q(u_K | u_0) || p(u_K)) for each test image: float64 (B,), in
    nats.

    projected: images u_0 in [0, 1] as `bank.project` gives them, (B, C, F). By convexity of the
    divergence in the mixture, L_K <= log M - logsumexp_i(-KL_i) with KL_i the divergence from the
    i-th component. Memory does not grow with M.
    """
    center = bank.coefficients.double().mean(0)  # a common offset, which would cost digits
    x, y = ((u.double() - center).flatten(1) / delta for u in (projected, bank.coefficients))
    size = projected.shape[1] * bank.basis[0].numel()
    # The part without distances.
    constant = 0.5 * size * (sigma**2 / delta**2 - 1 + 2 * math.log(delta / sigma))
    total = x.new_full((len(x),), -math.inf)
    for block in y.split(BANK_CHUNK):
        total = torch.logaddexp(total, torch.logsumexp(-torch.cdist(x, block).square() / 2, 1))
    return constant + math.log(len(bank)) - total
