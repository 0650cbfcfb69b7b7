"""The orthonormal discrete cosine transform of images, as two matrix products."""

import math

import torch

LUMINANCE_CHROMINANCE = torch.tensor([[1.0, 1, 1], [1, -1, 0], [1, 1, -2]]) / torch.tensor([[3.0], [2], [6]]).sqrt()
"""Brightness and two differences of colours, orthonormal, from RGB: (3, 3)."""


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


class Tables:
    """Tensors that follow the images to their device."""

    _tables: list[torch.Tensor]

    def _on(self, device: torch.device) -> list[torch.Tensor]:
        self._tables = [table.to(device) for table in self._tables]
        return self._tables


class Basis(Tables):
    """The cosines of each plane of images (B, C, H, W): an orthonormal basis.

    Planes are the channels or, given the rows of an orthonormal matrix (C, C), mixtures of them.
    """

    def __init__(self, height: int, width: int, planes: torch.Tensor | None = None) -> None:
        self._tables = [dct_matrix(height).float(), dct_matrix(width).float()]
        self._tables += [] if planes is None else [planes.float()]

    def coefficients(self, u: torch.Tensor) -> torch.Tensor:
        """Of images (B, C, H, W) float32: (B, C, H, W), planes in place of channels."""
        D_H, D_W, *planes = self._on(u.device)
        return dct2(_mixed(planes[0], u) if planes else u, D_H, D_W)

    def images(self, u_hat: torch.Tensor) -> torch.Tensor:
        """The inverse of `coefficients`."""
        D_H, D_W, *planes = self._on(u_hat.device)
        u = idct2(u_hat, D_H, D_W)
        return _mixed(planes[0].T, u) if planes else u


def _mixed(matrix: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    with torch.autocast(u.device.type, enabled=False):
        return torch.einsum("pc,bchw->bphw", matrix, u)


def eigenvalues(height: int, width: int) -> torch.Tensor:
    """lambda[n, m] = pi^2 (n^2 / H^2 + m^2 / W^2), by which heat makes each cosine decay: float64 (H, W)."""
    squares = [(math.pi * torch.arange(n, dtype=torch.float64) / n) ** 2 for n in (height, width)]
    return squares[0][:, None] + squares[1]
