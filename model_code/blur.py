"""The forward process without its noise: images lose detail as heat spreads."""

import math

import torch
from torch import Tensor, nn

from model_code.dct import dct2, eigenvalues, idct2


def blur_schedule(K: int, sigma_min: float, sigma_max: float) -> Tensor:
    """sigma_B[k], the blur's length scale in pixels at level k: float64 (K + 1,).

    Level 0 is the sharp image; levels 1..K are spaced evenly in log between `sigma_min` and
    `sigma_max` (both > 0). K = 1 gives the single level sigma_min.
    """
    if K < 1 or sigma_min <= 0 or sigma_max < sigma_min:
        needed = "need K >= 1 and 0 < sigma_min <= sigma_max"
        raise ValueError(f"{needed}, got K={K}, {sigma_min=}, {sigma_max=}")
    levels = torch.linspace(math.log(sigma_min), math.log(sigma_max), K, dtype=torch.float64).exp()
    return torch.cat([torch.zeros(1, dtype=torch.float64), levels])


def heat_log_alpha(sigma_B: Tensor, height: int, width: int) -> Tensor:
    """-lambda t_k with t_k = sigma_B[k]^2 / 2: (K + 1,) to float64 (K + 1, H, W).

    The heat equation's solution in the cosine basis, with Neumann boundaries: no heat gets out.
    """
    return -(sigma_B.double() ** 2 / 2)[:, None, None] * eigenvalues(height, width)


class Attenuation(nn.Module):
    """A_k u = IDCT2(alpha_k DCT2(u)). A module only so that its table moves to the device."""

    log_alpha: Tensor

    def __init__(self, log_alpha: Tensor) -> None:
        """log_alpha: float64 (K + 1, H, W), in which alpha itself may underflow."""
        super().__init__()
        self.K = len(log_alpha) - 1
        self.register_buffer("log_alpha", log_alpha, persistent=False)

    def alpha(self, k: Tensor) -> Tensor:
        """alpha_k for int64 levels k (B,): float64 (B, 1, H, W)."""
        return self.log_alpha[k].exp().unsqueeze(1)

    def at_levels(self, u: Tensor, *levels: Tensor) -> list[Tensor]:
        """[A_k u for k in levels] from a single DCT; u (B, C, H, W), each k int64 (B,)."""
        u = u.float()
        u_hat = dct2(u)
        results = []
        for k in levels:
            attenuated = idct2(u_hat * self.alpha(k).float())
            # A_0 is the identity: give back the image rather than its round trip through the DCT.
            results.append(torch.where((k == 0)[:, None, None, None], u, attenuated))
        return results

    def forward(self, u: Tensor, k: Tensor) -> Tensor:
        """A_k u: u (B, C, H, W), k int64 (B,) in 0..K; float32 (B, C, H, W)."""
        return self.at_levels(u, k)[0]


class DCTBlur(Attenuation):
    """The heat equation's blur at the levels of a schedule."""

    def __init__(self, schedule: Tensor, height: int, width: int) -> None:
        """schedule: sigma_B in pixels, float64 (K + 1,); height and width in pixels."""
        super().__init__(heat_log_alpha(schedule, height, width))
        self.schedule = schedule
