"""The inverse heat dissipation process in three functions: corrupt, predict, step back.

What is particular to this process is here and in `blur.py`; the U-Net, the training loop and the reverse loop do not know it.
"""

from collections.abc import Callable

import torch

from model_code.blur import DCTBlur

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""f(u_k, k): images (B, C, H, W) and int64 levels (B,) to a change of the images (B, C, H, W)."""


def corrupt(
    blur: DCTBlur, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, sigma: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A draw u_k from q(u_k | u_0) = N(A_k u_0, sigma^2 I), and the target A_{k-1} u_0 (paper, Algorithm 1).

    u0 and the standard normal eps are (B, C, H, W); k is int64 (B,) in 1..K.
    """
    target, mean = blur.at_levels(u0, k - 1, k)
    return mean + sigma * eps, target


def predict_mean(model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """mu(u_k, k) = u_k + f(u_k, k), the mean of p(u_{k-1} | u_k): float32 (B, C, H, W)."""
    return u_k + model(u_k, k).float()


def reverse_step(mean: torch.Tensor, eps: torch.Tensor, delta: float) -> torch.Tensor:
    """A draw from p(u_{k-1} | u_k) = N(mean, delta^2 I), given standard normal eps (paper, Algorithm 2)."""
    return mean + delta * eps
