"""The training loss (paper, Algorithm 1)."""

import torch

from model_code.blur import DCTBlur
from model_code.process import Denoiser, HeatDissipation, Process


def process_loss(process: Process, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    """|| target - prediction ||^2 for each example, summed over pixels: float32 (B,).

    u0 in [0, 1] and standard normal eps are (B, C, H, W); levels k int64 (B,) in 1..K.
    """
    u_k, target = process.corrupt(u0, k, eps)
    return (target - process.predict(model, u_k, k)).square().sum(dim=(1, 2, 3))


def deblurring_loss(
    model: Denoiser, blur: DCTBlur, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, sigma: float
) -> torch.Tensor:
    """The paper's, || A_{k-1} u_0 - mu(A_k u_0 + sigma eps, k) ||^2: as `process_loss`, with the training noise sigma."""
    return process_loss(HeatDissipation(blur, sigma), model, u0, k, eps)
