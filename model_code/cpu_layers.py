"""PyTorch's layers with faster code for processors: the same parameters and results, and other
devices use PyTorch's own code.

With bfloat16 on AMX they shorten a training step of configs/mnist/small_mnist.py by a seventh
(docs/performance.md).
"""

import torch
import torch.nn.functional as F
from torch import nn

MAX_PIXELS = 256
"""Up to here the matrix of all pairs of pixels is small, and the fused attention kernel's backward
pass is the slower one.
"""


class PointwiseConv1d(nn.Conv1d):
    """A convolution with kernel size 1 as one matrix product for each image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(self, x) if x.device.type == "cpu" else super().forward(x)


class PointwiseConv2d(nn.Conv2d):
    """`PointwiseConv1d` for images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            _product(self, x.flatten(2)).unflatten(2, x.shape[2:])
            if x.device.type == "cpu"
            else super().forward(x)
        )


def _product(layer: nn.Conv1d | nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    assert layer.bias is not None
    return torch.baddbmm(layer.bias[:, None], layer.weight.flatten(1).expand(len(x), -1, -1), x)


class Dropout(nn.Dropout):
    """Dropout with masks from 16 random bits a value; PyTorch draws a double for each, on one core.

    The probability is rounded to a multiple of 2^-16, and the scale is that of the rounded one.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.device.type != "cpu" or not self.training or self.p == 0:
            return super().forward(x)
        dropped = round(self.p * 2**16)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        mask = (words.view(torch.int16)[: x.numel()] >= dropped - 2**15).to(x.dtype)
        return x * mask.mul_(2**16 / max(1, 2**16 - dropped)).view_as(x)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(channels)) v, each (B, heads, pixels, channels); not fused where that is
    faster.
    """
    if q.device.type == "cpu" and q.requires_grad and q.shape[2] <= MAX_PIXELS:
        weights = torch.softmax(q @ k.mT * q.shape[3] ** -0.5, dim=-1)
        return weights.to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)
