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
    the part of the reference balls with a generated image in them. Recall's standard error takes the generated images' radii as
    given and comes out somewhat small, by about a quarter.
    """
    x = torch.from_numpy(generated).to(device, torch.float32)
    y = torch.from_numpy(reference).to(device, torch.float32)
    centre = y.mean(0)  # distances come out of inner products, whose rounding grows with the distance from the origin
    x, y = x - centre, y - centre
    radius_x, radius_y = _radii(x), _radii(y)
    balls = torch.zeros(len(x), device=device)
    groups = min(JACKKNIFE_GROUPS, len(x))
    # How many generated images of each group have a reference image in their ball, and are in its ball.
    recalls, covers = torch.zeros(2, groups, len(y), device=device)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        distances = torch.cdist(x[rows], y)
        within = (distances < radius_y).float()
        balls[rows] = within.sum(1)
        group = torch.arange(start, start + len(within), device=device) % groups
        covers.index_add_(0, group, within)
        recalls.index_add_(0, group, (distances < radius_x[rows, None]).float())
    return {
        "Precision": _mean((balls > 0).double()),
        "Recall": _reached(recalls, len(x)),
        "Density": _mean(balls.double() / NEIGHBOURS),
        "Coverage": _reached(covers, len(x)),
    }


def _radii(x: torch.Tensor) -> torch.Tensor:
    """Distance of each row of x (N, d) from its k-th nearest neighbour among the others: (N,)."""
    radii = torch.empty(len(x), device=x.device)
    for start in range(0, len(x), ROWS):
        distances = torch.cdist(x[start : start + ROWS], x)
        distances.diagonal(start).fill_(0)  # exactly, so that an image always comes first among its own neighbours
        radii[start : start + ROWS] = distances.kthvalue(NEIGHBOURS + 1, dim=1).values
    return radii


def _mean(values: torch.Tensor) -> Estimate:
    """Of one number per generated image."""
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5), len(values))


def _reached(counts: torch.Tensor, num_images: int) -> Estimate:
    """The part of the reference images that any generated image reaches; its error by leaving out one group at a time.

    counts (groups, M): how often each group of generated images reaches each reference image.
    """
    groups, total = len(counts), counts.sum(0)
    value = (total > 0).double().mean()
    without = (total - counts > 0).double().mean(1)
    error = (without.var(correction=0) * (groups - 1)) ** 0.5
    return Estimate(float(value), float(error), num_images)
