"""Distances between two sets of features: Frechet, kernel, and by nearest neighbours precision and
recall (Kynkaanniemi et al., 2019, with k = 3), density and coverage (Naeem et al., 2020, with
k = 5).

Everything here is arithmetic on arrays: features (N, d), one row per image. Standard errors are
those over generated images, or over groups of them, int64 (N,), that are independent of each other,
with the reference held fixed.
"""

import functools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from scripts.estimate import Estimate, count, error_of_mean
from scripts.runtime.randomness import Purpose, stream

SUBSETS = 100
SUBSET_SIZE = 1000
KERNEL_ROWS, KERNEL_GROUPS, MOST_OF_A_GROUP = 2000, 200, 10
"""About so many generated images give the variance of KID; there may be more groups, or more of a
group, if fewer would do."""
JACKKNIFE_PARTS = 20
ROWS = 1024
"""Rows of a distance matrix in memory at once."""


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
    """A reference set: mean and covariance of its features, the features (M, d), or both."""

    description: str
    features: np.ndarray | None
    moments: Gaussian | None = None
    size: tuple[int, int] | None = None
    """(H, W) of its first image; None for statistics."""
    crc32: int = 0
    """`checksum` of its images as they were read, or of a file's arrays."""
    labels: np.ndarray | None = None
    """Classes of the images, int64 (M,), where these are the data set's own."""

    @functools.cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, by default those of the features."""
        if self.moments is not None:
            return self.moments
        assert self.features is not None
        return Gaussian.of(self.features)


def frechet_estimate(
    generated: np.ndarray, reference: Gaussian, groups: np.ndarray | None = None
) -> tuple[Estimate, np.ndarray]:
    """Squared Frechet distance |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al., 2017) of
    features (N, d).

    Returns it with its standard error, and each image's influence, float64 (N,). tr (A B)^(1/2) is
    the sum of the singular values of A^(1/2) B^(1/2); these symmetric roots exist for singular A
    and B too.

    To first order one image changes the distance by 1/N times its influence 2 (mu_a - mu_b)^T y +
    y^T (I - T) y minus the average of that, where y = x - mu_a and T = B^(1/2) (B^(1/2) A
    B^(1/2))^(-1/2) B^(1/2) is the optimal transport between the Gaussians. The standard error (the
    infinitesimal jackknife) is `error_of_mean` of the influences. It leaves out the distance's
    upward bias, of order 1/N and up to 1/G with G groups: as in published numbers, moments are
    those of all images alike. It is somewhat too large where N is not well above d, and only rough
    where the distance is close to `frechet_of_reference`.
    """
    own = Gaussian.of(generated)
    root, difference = _root(reference.sigma), own.mu - reference.mu
    _, singular, vt = scipy.linalg.svd(_root(own.sigma) @ root)
    traces = np.trace(own.sigma) + np.trace(reference.sigma)
    distance = (difference**2).sum() + traces - 2 * singular.sum()
    positive = singular > singular.max(initial=0.0) * len(singular) * np.finfo(np.float64).eps
    half = (vt[positive] / np.sqrt(singular[positive])[:, None]) @ root  # T = half^T half
    y = generated - own.mu
    influence = 2 * y @ difference + (y**2).sum(1) - ((y @ half.T) ** 2).sum(1)
    influence -= influence.mean()
    error = error_of_mean(influence, groups)
    return Estimate(float(distance), error, len(y), count(groups)), influence


def frechet_of_reference(reference: Gaussian, num_images: int) -> float:
    """The Frechet distance that `num_images` draws from a Gaussian reference itself have on
    average, to order 1/N.

    tr(B)/N is the mean's part. With eigenvalues b_i of B the covariance's is 1/(2N) sum_ij (1 + [i
    = j]) b_i b_j / (b_i + b_j).
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


def kernel_estimate(
    generated: np.ndarray, reference: np.ndarray, seed: int, groups: np.ndarray | None = None
) -> Estimate:
    """Kernel distance (KID, Binkowski et al., 2018) between features (N, d) and (M, d), as
    clean-fid's `kernel_distance`.

    The mean over 100 random subsets of (at most) 1000 images on either side of the unbiased squared
    MMD for the kernel k(x, y) = (x.y / d + 1)^3. Pairs of one group are left out, as an image's
    pair with itself is: they would bias it upwards. Its variance is that of the U-statistic over
    generated images plus that of drawing the subsets.
    """
    m, num_groups = min(len(generated), len(reference), SUBSET_SIZE), count(groups)
    group = np.arange(len(generated)) if groups is None or num_groups == 1 else groups
    values = np.empty(SUBSETS)
    for subset in range(SUBSETS):
        rng = stream(seed, Purpose.KID_SUBSET, step=subset)
        chosen, others = (rng.choice(len(f), m, replace=False) for f in (generated, reference))
        x, y = generated[chosen].astype(np.float64), reference[others].astype(np.float64)
        own, across = _mean_apart(_kernel(x, x), group[chosen]), _kernel(x, y).mean()
        values[subset] = own + _mean_apart(_kernel(y, y), others) - 2 * across
    variance = values.var(ddof=1) / SUBSETS + _kernel_variance(generated, reference, group)
    error = float("inf") if num_groups == 1 else float(np.sqrt(variance))
    return Estimate(float(values.mean()), error, len(generated), num_groups)


def _kernel_variance(generated: np.ndarray, reference: np.ndarray, groups: np.ndarray) -> float:
    """Variance of the squared MMD of images (N, d) in G groups from a fixed reference (M, d),
    estimated from part of them.

    A U-statistic (Hoeffding, 1948) with h_ij = k(x_i, x_j) - g(x_i) - g(x_j), g(x) the mean of k(x,
    y) over the reference, and h_ab the deviations of h_ij from their mean, summed over two groups
    and divided by the mean size squared: 4 zeta_1 / G + 2 Var(h) / (G (G - 1)), zeta_1 the variance
    of E[h_ab | a]. Infinite for fewer than 3 groups.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    G = len(sizes)
    n = min(G, max(KERNEL_GROUPS, KERNEL_ROWS * G // len(group)))
    if n < 3:
        return float("inf")
    chosen = np.linspace(0, G - 1, n).astype(int)
    most = max(MOST_OF_A_GROUP, KERNEL_ROWS // n)
    rows = np.concatenate([np.flatnonzero(group == one)[:most] for one in chosen])
    x, member = generated[rows], np.searchsorted(chosen, group[rows])
    g = np.concatenate(
        [
            _kernel(part, reference).mean(1, dtype=np.float64)
            for part in np.split(x, range(256, len(x), 256))
        ]
    )
    square = _kernel(x.astype(np.float64), x.astype(np.float64)) - g[:, None] - g
    starts = np.flatnonzero(np.diff(member, prepend=-1))
    square -= _mean_apart(square, member)
    square = np.add.reduceat(np.add.reduceat(square, starts, 0), starts, 1) * (n / len(rows)) ** 2
    h = square[~np.eye(n, dtype=bool)].reshape(n, n - 1)
    # The variance of row means includes that of the n - 1 terms in each, which is not part of
    # zeta_1.
    zeta_1 = max(0.0, h.mean(1).var(ddof=1) - h.var(1, ddof=1).mean() / (n - 1))
    return float(4 * zeta_1 / G + 2 * h.var() / (G * (G - 1)))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_apart(square: np.ndarray, groups: np.ndarray) -> float:
    """The mean over pairs of different groups."""
    apart = groups[:, None] != groups
    return np.where(apart, square, 0).sum() / max(1, apart.sum())


def prdc_estimates(
    generated: np.ndarray,
    reference: np.ndarray,
    k: int,
    device: torch.device,
    groups: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """Precision, recall, density and coverage of features (N, d) and (M, d), both of more than k
    images, with standard errors over generated images.

    groups: int64 (N,), of images that are not independent. Errors of precision and density are of
    means over images; those of recall and coverage by the jackknife, over 20 parts of the groups.
    """
    x = torch.from_numpy(generated).to(device, torch.float32)
    y = torch.from_numpy(reference).to(device, torch.float32)
    centre = y.mean(0)  # the rounding of inner products grows with the distance from the origin
    x, y = x - centre, y - centre
    radius_y = neighbour_distance(y, k)
    balls, reached = _within(x, y, radius_y, k)
    num_groups, errors = count(groups), torch.full((2,), torch.inf)
    members = np.arange(len(x)) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = min(JACKKNIFE_PARTS, members.max() + 1)
    if parts > 1:
        part = torch.from_numpy(members % parts).to(device)
        without = [_within(x[part != i], y, radius_y, k)[1] for i in range(parts)]
        shares = torch.stack(without).double().mean(2)
        errors = (shares.var(0, correction=0) * (parts - 1)).sqrt()
    recall, coverage = (
        Estimate(value, error, len(x), num_groups)
        for value, error in zip(reached.double().mean(1).tolist(), errors.tolist(), strict=True)
    )
    return {
        "Precision": Estimate.of(balls > 0, groups),
        "Recall": recall,
        "Density": Estimate.of(balls / k, groups),
        "Coverage": coverage,
    }


def neighbour_distance(x: torch.Tensor, k: int) -> torch.Tensor:
    """Distance of each row of x (N, d) from its k-th nearest neighbour, itself not counted, or its
    last one: (N,).
    """
    radius = x.new_empty(len(x))
    for start in range(0, len(x), ROWS):
        distances = torch.cdist(x[start : start + ROWS], x)
        distances.diagonal(start).fill_(torch.inf)
        radius[start : start + ROWS] = distances.kthvalue(min(k, len(x) - 1), dim=1).values
    return radius


def _within(
    x: torch.Tensor, y: torch.Tensor, radius_y: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """For generated images (N, d) how many reference balls each is in: (N,); for reference images
    (M, d) recall and coverage: bool (2, M).

    An image's ball reaches to its k-th nearest neighbour in its own set. A generated image is
    precise if it is in a ball of the reference; a reference image is recalled if it is in a
    generated image's ball, covered if a generated image is in its own.
    """
    balls = x.new_empty(len(x))
    recalled, covered = reached = torch.zeros(2, len(y), dtype=torch.bool, device=x.device)
    blocks = (part.split(ROWS) for part in (x, neighbour_distance(x, k), balls))
    for rows, radius_x, inside in zip(*blocks, strict=True):
        distances = torch.cdist(rows, y)
        within = distances < radius_y
        inside[:] = within.sum(1)
        covered |= within.any(0)
        recalled |= (distances < radius_x[:, None]).any(0)
    return balls, reached
