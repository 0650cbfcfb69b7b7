"""Networks that are told classes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from model_code.process import Denoiser


def conditioned(
    network: Callable[..., Tensor],
    y: Tensor,
    guidance: float = 1.0,
    interval: tuple[float, float] = (0, math.inf),
) -> Denoiser:
    """The network told classes y, guided away from what it says without them (Ho and Salimans,
    2022, in their later notation): F = F_none + guidance (F_class - F_none), 1 is none.

    y: as of `UNet.forward`; interval: the levels k, both included, at which it is guided
    (Kynkaanniemi et al., 2024).
    """
    none = torch.full_like(y, 0 if y.is_floating_point() else -1)

    def denoise(z: Tensor, k: Tensor) -> Tensor:
        """One call of the network, or two at levels that are guided."""
        F = network(z, k, y)
        guided = (interval[0] <= k) & (k <= interval[1])
        if guidance == 1 or not guided.any():
            return F
        F_none = network(z, k, none)
        weight = torch.where(guided, guidance, 1.0).to(F.dtype)[:, None, None, None]
        return F_none + weight * (F - F_none)

    return denoise
