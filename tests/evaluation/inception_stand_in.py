"""A small TorchScript module in the place of `inception-2015-12-05.pt`, with that file's calling
convention.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn


class _Layers(nn.Module):
    """Normalised images (B, 3, 299, 299) to features (B, 2048): rectified random sums of means over
    patches.
    """

    weights: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        weights = torch.randn(3 * 12 * 12, 2048, generator=torch.Generator().manual_seed(0))
        self.register_buffer("weights", weights / (3 * 12 * 12) ** 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.adaptive_avg_pool2d(x, (12, 12)).flatten(1) @ self.weights)


class StandIn(nn.Module):
    """Images (B, 3, H, W) of values 0..255, which it resizes itself, to features; `layers` alone
    takes resized ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = _Layers()

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features
        x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
        return self.layers((x - 128) / 128)


def write_stand_in(folder: Path) -> Path:
    """The file, under the name that clean-fid looks for."""
    path = folder / "inception-2015-12-05.pt"
    torch.jit.script(StandIn()).save(str(path))
    return path
