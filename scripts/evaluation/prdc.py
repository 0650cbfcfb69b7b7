"""Precision and recall (Kynkaanniemi et al., 2019, with k = 3), density and coverage (Naeem et al.,
2020, with k = 5).
"""

import math

import numpy as np
import torch

from scripts.estimate import Estimate, count

JACKKNIFE_PARTS = 20
ROWS = 1024
"""Rows of a distance matrix in memory at once."""


def prdc_estimates(
    generated: np.ndarray,
    reference: np.ndarray,
    k: int,
    device: torch.device,
    groups: np.ndarray | None = None,
) -> dict[str, Estimate]:
    """The four scores of features (N, d) and (M, d), both of more than k images, with standard
    errors over generated images.

    groups: int64 (N,), of images that are not independent. Errors of precision and density are of
    means over images; those of recall and coverage by the jackknife, over 20 parts of the groups.
    """
    x = torch.from_numpy(generated).to(device, torch.float32)
    y = torch.from_numpy(reference).to(device, torch.float32)
    centre = y.mean(
        0
    )  # distances are computed from inner products, whose rounding grows with the distance from the origin
    x, y = x - centre, y - centre
    radius_y = neighbour_distance(y, k)
    balls, recalled, covered = _within(x, y, radius_y, k)
    members = np.arange(len(x)) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = min(JACKKNIFE_PARTS, members.max() + 1)
    part = torch.from_numpy(members % parts).to(device)
    without = (
        [_within(x[part != left_out], y, radius_y, k) for left_out in range(parts)]
        if parts > 1
        else []
    )

    def jackknifed(reached: torch.Tensor, without: list[torch.Tensor]) -> Estimate:
        """The share of reference images that is reached, bool (M,), with its error from the shares
        without each part."""
        shares = torch.tensor([one.double().mean() for one in without])
        error = math.sqrt(shares.var(correction=0) * (parts - 1)) if parts > 1 else math.inf
        return Estimate(float(reached.double().mean()), error, len(x), count(groups))

    return {
        "Precision": Estimate.of(balls > 0, groups),
        "Recall": jackknifed(recalled, [one[1] for one in without]),
        "Density": Estimate.of(balls / k, groups),
        "Coverage": jackknifed(covered, [one[2] for one in without]),
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For generated images (N, d) how many reference balls each is in; for reference images (M, d)
    recall and coverage, bool.

    An image's ball reaches to its k-th nearest neighbour in its own set. A generated image is
    precise if it is in a ball of the reference; a reference image is recalled if it is in a
    generated image's ball, covered if a generated image is in its own.
    """
    radius_x = neighbour_distance(x, k)
    balls = x.new_empty(len(x))
    recalled, covered = torch.zeros(2, len(y), dtype=torch.bool, device=x.device)
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        distances = torch.cdist(x[rows], y)
        within = distances < radius_y
        balls[rows] = within.sum(1).float()
        covered |= within.any(0)
        recalled |= (distances < radius_x[rows, None]).any(0)
    return balls, recalled, covered
