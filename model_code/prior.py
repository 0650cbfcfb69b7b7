"""What sampling starts from. For heat dissipation it is p(u_K) = 1/M sum_i N(A_K u_i, delta^2 I)
over the training images u_i, in a few numbers for each.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_code.blur import Attenuation
from model_code.dct import dct_matrix

NEGLIGIBLE = 1e-6
"""DCT coefficients that the last blur level multiplies by this or less are left out."""


class Prior(ABC):
    """Means of the last state, one of which is drawn for each sample."""

    labels: Tensor | None = None
    """Classes of the images that the means are of, int64 (M,), where a network is told them."""

    @abstractmethod
    def __len__(self) -> int:
        """How many there are."""

    @abstractmethod
    def means(self, indices: Tensor) -> Tensor:
        """Means of u_K for int64 indices (B,): float32 (B, C, H, W)."""

    def of_class(self, label: int) -> "Prior":
        """The prior of the images of a class, from one with labels; or itself."""
        return self

    def dequantized(self) -> "Prior":
        """The prior of the same images dequantised, (v + 1/2) / 256 on average, from that of v /
        255; or itself.
        """
        return self

    def gathered(self, gather_rows: Callable[[Tensor], Tensor]) -> "Prior":
        """The prior of all images, where each of several processes built one from its share;
        `gather_rows` joins rows.
        """
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors for a checkpoint, if it has any: the arguments of another."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


class StandardNormal(Prior):
    """The prior N(0, I): one mean, zero."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W) of an image."""
        self.shape = shape

    def __len__(self) -> int:
        return 1

    def means(self, indices: Tensor) -> Tensor:
        """Zeros (B, C, H, W)."""
        return torch.zeros(len(indices), *self.shape)


@dataclass(frozen=True)
class StoredStates(Prior):
    """The means themselves, one for each training image: for processes of one's own."""

    states: Tensor
    """float32 (M, C, H, W)."""
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def means(self, indices: Tensor) -> Tensor:
        """Those of these images."""
        return self.states[indices]

    def gathered(self, gather_rows: Callable[[Tensor], Tensor]) -> "StoredStates":
        """The states of all processes' images."""
        return StoredStates(gather_rows(self.states), _gathered(self.labels, gather_rows))


@dataclass(frozen=True)
class PriorBank(Prior):
    """The DCT coefficients of A_K u_i that are not negligible, for every training image u_i.

    The basis is orthonormal, so distances between rows of `coefficients` are distances between
    blurred images, and M images of any size take C * F numbers each (F = 8 for MNIST at sigma_B 20,
    6 for CIFAR-10 at 24).
    """

    coefficients: Tensor
    """float32 (M, C, F): A_K u_i in the basis."""
    basis: Tensor
    """float32 (F, H, W): orthonormal cosines, lowest frequencies first in each axis."""
    decay: Tensor
    """float32 (F,): what A_K multiplies each of them by, exp(-lambda t_K)."""
    labels: Tensor | None = None

    @classmethod
    def from_images(cls, images: Tensor, blur: Attenuation) -> "PriorBank":
        """The bank of images (M, C, H, W) in [0, 1], for the last level of `blur`."""
        return cls.from_batches([images], blur)

    @classmethod
    def from_batches(cls, batches: Iterable[Tensor], blur: Attenuation) -> "PriorBank":
        """As `from_images`, reading batches (B, C, H, W) one at a time.

        Raises ValueError if there is no image.
        """
        decay = blur.log_alpha[-1].exp().float().cpu()
        n, m = torch.nonzero(decay > NEGLIGIBLE, as_tuple=True)
        D_H, D_W = (dct_matrix(size) for size in decay.shape)
        basis = (D_H[n][:, :, None] * D_W[m][:, None, :]).float()
        empty = cls(torch.empty(0), basis, decay[n, m])
        rows = [empty.project(batch) for batch in batches]
        if not rows:
            raise ValueError("a prior needs at least one image")
        return replace(empty, coefficients=torch.cat(rows))

    def __len__(self) -> int:
        return len(self.coefficients)

    def project(self, images: Tensor) -> Tensor:
        """A_K u in the bank's basis: images u (B, C, H, W) in [0, 1] to float32 (B, C, F), on the
        bank's device.
        """
        u = images.to(self.basis).flatten(2)
        return u @ self.basis.flatten(1).T * self.decay

    def means(self, indices: Tensor) -> Tensor:
        """A_K u_i for int64 indices (B,) of the bank: float32 (B, C, H, W)."""
        return torch.einsum("bcf,fhw->bchw", self.coefficients[indices], self.basis)

    def of_class(self, label: int) -> "PriorBank":
        """The bank of the images of a class."""
        if self.labels is None:
            return self
        chosen = self.labels == label
        return replace(self, coefficients=self.coefficients[chosen], labels=self.labels[chosen])

    def dequantized(self) -> "PriorBank":
        """The bank of v / 255 as that of the same images dequantised, (v + 1/2) / 256 on average:
        exact, as A_K is linear.
        """
        coefficients = self.coefficients * (255 / 256)
        # The constant comes first, and no blur changes it.
        coefficients[:, :, 0] += 0.5 / 256 * math.sqrt(self.basis[0].numel())
        return replace(self, coefficients=coefficients)

    def gathered(self, gather_rows: Callable[[Tensor], Tensor]) -> "PriorBank":
        """The bank of all processes' images."""
        labels = _gathered(self.labels, gather_rows)
        return replace(self, coefficients=gather_rows(self.coefficients), labels=labels)


def _gathered(labels: Tensor | None, gather_rows: Callable[[Tensor], Tensor]) -> Tensor | None:
    return None if labels is None else gather_rows(labels)
