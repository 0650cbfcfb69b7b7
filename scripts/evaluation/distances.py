"""Distances between two sets of features: Frechet, kernel, and precision, recall, density and coverage.

Everything here is arithmetic on arrays: features (N, d), one row per image. Standard errors are those over generated images,
with the reference held fixed.
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch

from scripts.randomness import Purpose, stream

NEIGHBOURS = 5
"""k of precision, recall, density and coverage."""
SUBSETS = 100
SUBSET_SIZE = 1000
JACKKNIFE_GROUPS = 20
ROWS = 1024
"""Rows of a distance matrix that are held at once."""


@dataclass(frozen=True)
class Estimate:
    """A figure, its standard error and the number of images that it averages over."""

    value: float
    standard_error: float
    num_images: int


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and covariance (d, d) of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Gaussian":
        """That of features (N, d), N at least 2. N - 1 in the denominator, as clean-fid has it."""
        x = features.astype(np.float64)
        return cls(x.mean(0), np.atleast_2d(np.cov(x, rowvar=False)))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Frechet distance |mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Heusel et al., 2017).

    (A B)^(1/2) has the trace of the singular values of A^(1/2) B^(1/2), whose symmetric roots also exist where A or B is
    singular: nothing is added to a diagonal, no root of a matrix that is not symmetric is taken.
    """
    singular = np.asarray(scipy.linalg.svdvals(_root(a.sigma) @ _root(b.sigma)))
    return _frechet(a, b, singular)


def frechet_estimate(generated: np.ndarray, reference: Gaussian) -> Estimate:
    """Frechet distance of features (N, d) from a reference, with its standard error by the infinitesimal jackknife.

    The distance is a smooth function of the mean and covariance A of the generated features, so that one image's influence
    on it is 2 (mu - mu_ref)^T y + y^T (I - T) y up to a constant, where y = x - mu and T = B^(1/2) (B^(1/2) A B^(1/2))^(-1/2)
    B^(1/2) is the optimal transport between the Gaussians. The standard error is the influences' standard deviation over
    sqrt(N). It says nothing about the distance's bias, which is upwards and of order 1 / N; with N not well above d it comes
    out somewhat large.
    """
    own = Gaussian.of(generated)
    root = _root(reference.sigma)
    _, singular, vt = scipy.linalg.svd(_root(own.sigma) @ root)
    kept = singular > singular.max(initial=0.0) * len(singular) * np.finfo(np.float64).eps
    half = (vt[kept] / np.sqrt(singular[kept])[:, None]) @ root  # T = half^T half
    y = generated - own.mu
    influence = 2 * y @ (own.mu - reference.mu) + (y**2).sum(1) - ((y @ half.T) ** 2).sum(1)
    error = influence.std(ddof=1) / np.sqrt(len(y))
    return Estimate(_frechet(own, reference, singular), float(error), len(y))


def _frechet(a: Gaussian, b: Gaussian, singular: np.ndarray) -> float:
    distance = ((a.mu - b.mu) ** 2).sum() + np.trace(a.sigma) + np.trace(b.sigma) - 2 * singular.sum()
    return float(distance)


def _root(sigma: np.ndarray) -> np.ndarray:
    """The symmetric square root of a covariance, what rounding left of its null space set to zero."""
    values, vectors = scipy.linalg.eigh(sigma)
    values[values < values.max() * len(values) * np.finfo(np.float64).eps] = 0
    return (vectors * np.sqrt(values)) @ vectors.T


def kernel_estimate(generated: np.ndarray, reference: np.ndarray, seed: int) -> Estimate:
    """Kernel distance (KID, Binkowski et al., 2018) between features (N, d) and (M, d), as clean-fid's `kernel_distance`.

    The mean over 100 random subsets of (at most) 1000 images on either side of the unbiased squared MMD for the kernel
    (x.y / d + 1)^3. Its standard error has two parts: that of the influence of single generated images on the MMD, so that it
    is right where a subset is all there is and all subsets agree, and that of having drawn just these subsets.
    """
    m = min(len(generated), len(reference), SUBSET_SIZE)
    values, variances = np.empty(SUBSETS), np.empty(SUBSETS)
    for subset in range(SUBSETS):
        rng = stream(seed, Purpose.KID_SUBSET, step=subset)
        x = _subset(generated, m, rng)
        y = _subset(reference, m, rng)
        xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
        among_x = (xx.sum(1) - np.diag(xx)) / (m - 1)
        among_y = (yy.sum(1) - np.diag(yy)) / (m - 1)
        values[subset] = among_x.mean() + among_y.mean() - 2 * xy.mean()
        variances[subset] = 4 * (among_x - xy.mean(1)).var(ddof=1)
    error = np.sqrt(variances.mean() / len(generated) + values.var(ddof=1) / SUBSETS)
    return Estimate(float(values.mean()), float(error), len(generated))


def _subset(features: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    return features[rng.choice(len(features), m, replace=False)].astype(np.float64)


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def prdc_estimates(generated: np.ndarray, reference: np.ndarray, device: torch.device) -> dict[str, Estimate]:
    """Precision and recall (Kynkaanniemi et al., 2019), density and coverage (Naeem et al., 2020), k = 5.

    generated (N, d), reference (M, d), both of more than k images. An image's ball reaches to its k-th nearest neighbour in its
    own set, itself not counted. Precision: the part of the generated images that is in some reference ball. Recall: of the
    reference images in some generated ball. Density: reference balls around a generated image, over k, on average. Coverage:
    the part of the reference balls with a generated image in them. The standard errors of recall and coverage are by leaving
    out one of 20 groups of generated images at a time, whose part in the others' radii goes with it.
    """
    x = torch.from_numpy(generated).to(device, torch.float32)
    y = torch.from_numpy(reference).to(device, torch.float32)
    centre = y.mean(0)  # distances come out of inner products, whose rounding grows with the distance from the origin
    x, y = x - centre, y - centre
    groups = min(JACKKNIFE_GROUPS, len(x))
    radius_y = _radii(y, 0)[0]
    radii_x = _radii(x, groups)
    balls = torch.zeros(len(x), device=device)
    # For all generated images, then without each group: reference images in a ball of theirs, with one of theirs in its ball.
    recalled, covered = torch.zeros(2, groups + 1, len(y), dtype=torch.bool, device=device)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        distances = torch.cdist(x[rows], y)
        within = distances < radius_y
        balls[rows] = within.sum(1).float()
        for without, radius in enumerate(radii_x[:, rows]):
            recalled[without] |= (distances < radius[:, None]).any(0)
            covered[without] |= within[radius > 0].any(0)
    return {
        "Precision": _mean((balls > 0).double()),
        "Recall": _jackknifed(recalled, len(x)),
        "Density": _mean(balls.double() / NEIGHBOURS),
        "Coverage": _jackknifed(covered, len(x)),
    }


def _radii(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Distance of each row of x (N, d) from its k-th nearest neighbour among the others: (1 + groups, N).

    The first row is for all of them, row 1 + g without those whose index is g modulo `groups`; these have radius 0 there.
    """
    radii = torch.zeros(1 + groups, len(x), device=x.device)
    for start in range(0, len(x), ROWS):
        distances = torch.cdist(x[start : start + ROWS], x)
        distances.diagonal(start).fill_(torch.inf)
        # More than k, so that k are left when a group is left out; all but certain, and nearly right where it is not.
        near, who = distances.topk(min(4 * NEIGHBOURS, len(x) - 1), largest=False)
        radii[0, start : start + ROWS] = near[:, NEIGHBOURS - 1]
        own = torch.arange(start, start + len(near), device=x.device)
        for group in range(groups):
            left = near.masked_fill(who % groups == group, torch.inf).sort(dim=1).values[:, NEIGHBOURS - 1]
            radii[1 + group, start : start + ROWS] = torch.where(left.isinf(), near[:, -1], left).where(
                own % groups != group, 0
            )
    return radii


def _mean(values: torch.Tensor) -> Estimate:
    """Of one number per generated image."""
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5), len(values))


def _jackknifed(reached: torch.Tensor, num_images: int) -> Estimate:
    """The part of the reference images that is reached: bool (1 + groups, M), all images first, then without each group."""
    value, without = reached[0].double().mean(), reached[1:].double().mean(1)
    error = (without.var(correction=0) * (len(without) - 1)) ** 0.5
    return Estimate(float(value), float(error), num_images)
