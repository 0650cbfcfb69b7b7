"""Images whose best denoiser is known: their DCT coefficients are independent normals."""

import numpy as np
import torch

from model_code.blur import DCTBlur
from model_code.dct import dct2, idct2

SIGMA, SIZE = 0.01, 8
RADII = (torch.arange(SIZE)[:, None] ** 2 + torch.arange(SIZE) ** 2).sqrt()
VARIANCES = 0.5 / (1 + RADII**2) ** 1.5
"""Of the DCT coefficients: float32 (H, W), falling as those of natural images do."""
MEAN = torch.full((1, 1, SIZE, SIZE), 0.5)


def gaussian_images(count: int, seed: int = 0) -> torch.Tensor:
    """(count, 1, H, W)."""
    eps = torch.from_numpy(
        np.random.default_rng(seed).standard_normal((count, 1, SIZE, SIZE)).astype(np.float32)
    )
    return MEAN + idct2(eps * VARIANCES.sqrt())


def posterior_mean(
    blur: DCTBlur, u: torch.Tensor, k: torch.Tensor, j: torch.Tensor
) -> torch.Tensor:
    """E[A_j u_0 | u_k], which is linear for such images; the mean image is constant, and not
    changed by blur.
    """
    d_j, d_k = blur.alpha(j).float(), blur.alpha(k).float()
    gain = d_j * d_k * VARIANCES / (d_k**2 * VARIANCES + SIGMA**2)
    return MEAN + idct2(gain * dct2(u - MEAN))


def posterior_variance(blur: DCTBlur, k: int, j: int) -> torch.Tensor:
    """Of the coefficients of A_j u_0 given u_k: float64 (H, W)."""
    d_j, d_k = (blur.alpha(torch.tensor([level]))[0, 0] for level in (j, k))
    return d_j**2 * VARIANCES * SIGMA**2 / (d_k**2 * VARIANCES + SIGMA**2)
