"""Distances between two sets of features: Frechet and kernel.

Everything here is arithmetic on arrays: features (N, d), one row per image. Standard errors are those over generated images,
with the reference held fixed.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from scripts.estimate import Estimate
from scripts.runtime.randomness import Purpose, stream

SUBSETS = 100
SUBSET_SIZE = 1000
KERNEL_ROWS = 2000
"""Generated images from which the variance of KID is estimated."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and covariance (d, d) of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Gaussian":
        """Of features (N, d), N at least 2. N - 1 in the denominator, as in clean-fid."""
        x = features.astype(np.float64)
        return cls(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


@dataclass(frozen=True)
class Reference:
    """What is known of a reference set: mean and covariance of its features, the features (M, d), or both."""

    description: str
    features: np.ndarray | None
    moments: Gaussian | None = None

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, from the features where they are not known."""
        if self.moments is not None:
            return self.moments
        assert self.features is not None
        return Gaussian.of(self.features)


def frechet_estimate(generated: np.ndarray, reference: Gaussian) -> tuple[Estimate, np.ndarray]:
    """Squared Frechet distance |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al., 2017) of features (N, d).

    Returns it with its standard error, and each image's influence, float64 (N,). tr (A B)^(1/2) is the sum of the singular
    values of A^(1/2) B^(1/2); these symmetric roots exist for singular A and B too.

    To first order one image changes the distance by 1/N times its influence 2 (mu_a - mu_b)^T y + y^T (I - T) y minus the
    average of that, where y = x - mu_a and T = B^(1/2) (B^(1/2) A B^(1/2))^(-1/2) B^(1/2) is the optimal transport between the
    Gaussians. The standard error (the infinitesimal jackknife) is the influences' standard deviation over sqrt(N). It leaves
    out the distance's upward bias of order 1/N, is somewhat too large where N is not well above d, and only rough where the
    distance is close to `frechet_of_reference`.
    """
    own = Gaussian.of(generated)
    root, difference = _root(reference.sigma), own.mu - reference.mu
    _, singular, vt = scipy.linalg.svd(_root(own.sigma) @ root)
    distance = (difference**2).sum() + np.trace(own.sigma) + np.trace(reference.sigma) - 2 * singular.sum()
    kept = singular > singular.max(initial=0.0) * len(singular) * np.finfo(np.float64).eps
    half = (vt[kept] / np.sqrt(singular[kept])[:, None]) @ root  # T = half^T half
    y = generated - own.mu
    influence = 2 * y @ difference + (y**2).sum(1) - ((y @ half.T) ** 2).sum(1)
    influence -= influence.mean()
    error = influence.std(ddof=1) / np.sqrt(len(y))
    return Estimate(float(distance), float(error), len(y)), influence


def frechet_of_reference(reference: Gaussian, num_images: int) -> float:
    """The Frechet distance that `num_images` draws from a Gaussian reference itself have on average, to order 1/N.

    tr(B)/N is the mean's part. With eigenvalues b_i of B the covariance's is 1/(2N) sum_ij (1 + [i = j]) b_i b_j / (b_i + b_j).
    """
    values = scipy.linalg.eigvalsh(reference.sigma).clip(min=0)
    sums = np.maximum(values[:, None] + values, np.finfo(np.float64).tiny)
    covariance = (values[:, None] * values / sums).sum() + values.sum() / 2
    return float((values.sum() + covariance / 2) / num_images)


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance, eigenvalues within rounding of 0 set to 0."""
    values, vectors = scipy.linalg.eigh(sigma)
    values[values < values.max() * len(values) * np.finfo(np.float64).eps] = 0
    return (vectors * np.sqrt(values)) @ vectors.T


def kernel_estimate(generated: np.ndarray, reference: np.ndarray, seed: int) -> Estimate:
    """Kernel distance (KID, Binkowski et al., 2018) between features (N, d) and (M, d), as clean-fid's `kernel_distance`.

    The mean over 100 random subsets of (at most) 1000 images on either side of the unbiased squared MMD for the kernel
    k(x, y) = (x.y / d + 1)^3. Its variance is that of the U-statistic over generated images plus that of drawing the subsets.
    """
    m = min(len(generated), len(reference), SUBSET_SIZE)
    values = np.empty(SUBSETS)
    for subset in range(SUBSETS):
        rng = stream(seed, Purpose.KID_SUBSET, step=subset)
        x, y = (f[rng.choice(len(f), m, replace=False)].astype(np.float64) for f in (generated, reference))
        values[subset] = _off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y)) - 2 * _kernel(x, y).mean()
    rows = np.linspace(0, len(generated) - 1, min(len(generated), KERNEL_ROWS)).astype(int)
    variance = _kernel_variance(generated[rows], reference, len(generated)) + values.var(ddof=1) / SUBSETS
    return Estimate(float(values.mean()), float(np.sqrt(variance)), len(generated))


def _kernel_variance(x: np.ndarray, reference: np.ndarray, num_images: int) -> float:
    """Variance of the squared MMD of `num_images` images from a fixed reference (M, d), estimated from n of them, x (n, d).

    A U-statistic (Hoeffding, 1948) with h_ij = k(x_i, x_j) - g(x_i) - g(x_j), g(x) the mean of k(x, y) over the reference:
    4 zeta_1 / N + 2 Var(h) / (N (N - 1)), zeta_1 the variance of E[h_ij | x_i]. Infinite for fewer than 3 images.
    """
    n = len(x)
    if n < 3:
        return float("inf")
    g = np.concatenate([_kernel(x[i : i + 256], reference).mean(1, dtype=np.float64) for i in range(0, n, 256)])
    square = _kernel(x.astype(np.float64), x.astype(np.float64)) - g[:, None] - g
    h = square[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    # The variance of row means includes that of the n - 1 terms in each, which is not part of zeta_1.
    zeta_1 = max(0.0, h.mean(1).var(ddof=1) - h.var(1, ddof=1).mean() / (n - 1))
    return float(4 * zeta_1 / num_images + 2 * h.var() / (num_images * (num_images - 1)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal_mean(square: np.ndarray) -> float:
    return (square.sum() - np.trace(square)) / (len(square) * (len(square) - 1))
