"""The orthonormal discrete cosine transform of images, as two matrix products."""

import functools
import math

import torch
from torch import Tensor

LUMINANCE_CHROMINANCE = (
    torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]) / torch.tensor([[3.0], [2], [6]]).sqrt()
)
"""Brightness and two differences of colours, orthonormal, from RGB: (3, 3)."""


@functools.cache
def dct_matrix(
    n: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None
) -> Tensor:
    """Return the orthonormal DCT-II of length n as a matrix (n, n): rows are frequencies, x_hat = D
    x.
    """
    position = torch.arange(n, dtype=torch.float64)
    frequency = position[:, None]
    matrix = math.sqrt(2 / n) * torch.cos(math.pi * frequency * (position + 0.5) / n)
    matrix[0] /= math.sqrt(2)  # the constant has norm sqrt(n), the cosines sqrt(n / 2)
    return matrix.to(device, dtype)


def dct2(u: Tensor, planes: Tensor | None = None) -> Tensor:
    """DCT-II over the last two axes of u (..., C, H, W), float32 or float64, outside autocast.

    planes: rows of an orthonormal matrix (C, C), mixtures of channels that take their place.
    """
    D_H, D_W = (dct_matrix(n, u.dtype, u.device) for n in u.shape[-2:])
    with torch.autocast(u.device.type, enabled=False):
        if planes is not None:
            u = torch.einsum("pc,...chw->...phw", planes.to(u), u)
        return D_H @ u @ D_W.T


def idct2(u_hat: Tensor, planes: Tensor | None = None) -> Tensor:
    """Apply the inverse of `dct2`: all matrices are orthonormal, so their transposes undo them."""
    D_H, D_W = (dct_matrix(n, u_hat.dtype, u_hat.device) for n in u_hat.shape[-2:])
    with torch.autocast(u_hat.device.type, enabled=False):
        u = D_H.T @ u_hat @ D_W
        return u if planes is None else torch.einsum("pc,...phw->...chw", planes.to(u), u)


def eigenvalues(height: int, width: int) -> Tensor:
    """lambda[n, m] = pi^2 (n^2 / H^2 + m^2 / W^2), decay rates of cosines: float64 (H, W)."""
    squares = [(math.pi * torch.arange(n, dtype=torch.float64) / n) ** 2 for n in (height, width)]
    return squares[0][:, None] + squares[1]


def mix(of_u: Tensor, u: Tensor, of_v: Tensor, v: Tensor, planes: Tensor | None = None) -> Tensor:
    """of_u u + of_v v in each coefficient, of images (B, C, H, W) and factors that broadcast."""
    u_hat, v_hat = dct2(u, planes), dct2(v, planes)
    return idct2(of_u.to(u_hat) * u_hat + of_v.to(v_hat) * v_hat, planes)
