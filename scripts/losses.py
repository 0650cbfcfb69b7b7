"""The training loss (paper, Algorithm 1)."""

import torch

from model_code.blur import DCTBlur
from model_code.process import Denoiser, corrupt, predict_mean


def deblurring_loss(
    model: Denoiser, blur: DCTBlur, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, sigma: float
) -> torch.Tensor:
    """|| A_{k-1} u_0 - mu(A_k u_0 + sigma eps, k) ||^2 for each example, summed over pixels: float32 (B,).

    u0 in [0, 1] and standard normal eps are (B, C, H, W); levels k int64 (B,) in 1..K; sigma the training noise.
    """
    u_k, target = corrupt(blur, u0, k, eps, sigma)
    return (target - predict_mean(model, u_k, k)).square().sum(dim=(1, 2, 3))
