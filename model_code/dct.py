"""The orthonormal discrete cosine transform of images, as two matrix products."""

import math

import torch


def dct_matrix(n: int) -> torch.Tensor:
    """The orthonormal DCT-II of length n as a matrix: float64 (n, n), rows are frequencies, so that x_hat = D x."""
    position = torch.arange(n, dtype=torch.float64)
    frequency = position[:, None]
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * frequency * (position + 0.5) / n)
    matrix[0] /= math.sqrt(2)  # the constant has norm sqrt(n), the cosines sqrt(n / 2)
    return matrix


def dct2(u: torch.Tensor, D_H: torch.Tensor, D_W: torch.Tensor) -> torch.Tensor:
    """DCT-II over the last two axes of u (..., H, W), given the matrices of both lengths: (..., H, W), outside autocast."""
    with torch.autocast(u.device.type, enabled=False):
        return D_H @ u @ D_W.T


def idct2(u_hat: torch.Tensor, D_H: torch.Tensor, D_W: torch.Tensor) -> torch.Tensor:
    """The inverse of `dct2`: D is orthonormal, so its transpose undoes it."""
    with torch.autocast(u_hat.device.type, enabled=False):
        return D_H.T @ u_hat @ D_W


def eigenvalues(height: int, width: int) -> torch.Tensor:
    """lambda[n, m] = pi^2 (n^2 / H^2 + m^2 / W^2), by which heat makes each cosine decay: float64 (H, W)."""
    squares = [(math.pi * torch.arange(n, dtype=torch.float64) / n) ** 2 for n in (height, width)]
    return squares[0][:, None] + squares[1]
