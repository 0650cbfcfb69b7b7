"""The forward process without its noise: images lose detail as heat spreads."""

import math

import torch
from torch import nn

from model_code.dct import dct2, dct_matrix, idct2


def blur_schedule(K: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """sigma_B[k], the blur's length scale in pixels at level k: float64 (K + 1,).

    Level 0 is the sharp image; levels 1..K are spaced evenly in log between `sigma_min` and `sigma_max`
    (both > 0). K = 1 gives the single level sigma_min.
    """
    if K < 1 or sigma_min <= 0 or sigma_max < sigma_min:
        raise ValueError(f"need K >= 1 and 0 < sigma_min <= sigma_max, got K={K}, {sigma_min=}, {sigma_max=}")
    levels = torch.linspace(math.log(sigma_min), math.log(sigma_max), K, dtype=torch.float64).exp()
    return torch.cat([torch.zeros(1, dtype=torch.float64), levels])


class DCTBlur(nn.Module):
    """A_k u = IDCT2(exp(-lambda t_k) DCT2(u)), with t_k = sigma_B[k]^2 / 2: the heat equation's
    solution in the cosine basis, with Neumann boundaries, which let no heat out.

    lambda[n, m] = pi^2 (n^2 / H^2 + m^2 / W^2) is a sum, so the decay is a product of one factor per axis: two small
    tables, made in float64, hold it for all levels. Everything else runs in float32, outside autocast.
    """

    D_H: torch.Tensor
    D_W: torch.Tensor
    decay_H: torch.Tensor
    decay_W: torch.Tensor

    def __init__(self, schedule: torch.Tensor, height: int, width: int) -> None:
        """schedule: sigma_B in pixels, float64 (K + 1,); height and width of the images in pixels."""
        super().__init__()
        self.schedule = schedule
        self.K = len(schedule) - 1
        dissipation_time = schedule**2 / 2
        for axis, n in (("H", height), ("W", width)):
            eigenvalues = (math.pi * torch.arange(n, dtype=torch.float64) / n) ** 2
            decay = torch.exp(-dissipation_time[:, None] * eigenvalues)
            # Derived tables, not weights: they stay out of the state dict.
            self.register_buffer(f"decay_{axis}", decay.float(), persistent=False)
            self.register_buffer(f"D_{axis}", dct_matrix(n).float(), persistent=False)

    def decay(self, k: torch.Tensor) -> torch.Tensor:
        """exp(-lambda t_k) for int64 levels k (B,): float32 (B, 1, H, W)."""
        return (self.decay_H[k][:, :, None] * self.decay_W[k][:, None, :]).unsqueeze(1)

    def at_levels(self, u: torch.Tensor, *levels: torch.Tensor) -> list[torch.Tensor]:
        """[A_k u for k in levels] from a single DCT; u (B, C, H, W), each k an int64 tensor (B,)."""
        u = u.float()
        u_hat = dct2(u, self.D_H, self.D_W)
        blurred = (idct2(u_hat * self.decay(k), self.D_H, self.D_W) for k in levels)
        # A_0 is the identity: give back the image itself rather than its round trip through the DCT.
        return [torch.where((k == 0)[:, None, None, None], u, at_k) for k, at_k in zip(levels, blurred, strict=True)]

    def forward(self, u: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        """A_k u: u (B, C, H, W), k int64 (B,) in 0..K; float32 (B, C, H, W)."""
        return self.at_levels(u, k)[0]
