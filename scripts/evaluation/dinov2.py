"""DINOv2's features, in which distances agree better with human judgement than in Inception's
(Stein et al., 2023).

The Frechet distance in them is FD-DINOv2, as edm2 reports it. Needs the package timm and the
weights as a file.
"""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from scripts.errors import UserError, one_line

SIZE, PATCH = 224, 14
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's colours, in [0, 1]."""
HEAD_WIDTH = 64
"""Channels of an attention head, in DINOv2's networks of every size."""
EXPECTED = "the model.safetensors of timm's vit_large_patch14_dinov2.lvd142m"


class DINOv2Features:
    """Features (B, 1024) of uint8 images: the normalised class token of ViT-L/14."""

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        """weights: a safetensors file, of ViT-L/14 or of its smaller relatives. Raises UserError if
        it cannot be used.
        """
        try:
            from safetensors.torch import load_file
            from timm.models.vision_transformer import VisionTransformer
        except ImportError as error:
            raise UserError(
                f"--feature_extractor=dinov2 needs a missing package ({error}): pip install timm"
            ) from None
        if weights is None or not weights.is_file():
            raise UserError(
                f"--dinov2_path={weights or ''}: expected {EXPECTED}; download it, and give its "
                "path"
            )
        try:
            state = load_file(weights)
            self.num_features = state["cls_token"].shape[-1]
            depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
            state["pos_embed"] = _resampled(state["pos_embed"], SIZE // PATCH)
            network = VisionTransformer(
                SIZE, PATCH, embed_dim=self.num_features, depth=depth,
                num_heads=self.num_features // HEAD_WIDTH,
                init_values=1.0, num_classes=0, global_pool="token",
            )  # fmt: skip
            network.load_state_dict(state)
        except Exception as error:  # safetensors, a missing key and PyTorch each have their own
            raise UserError(
                f"--dinov2_path={weights}: cannot be used ({one_line(error)[:200]}); expected "
                f"{EXPECTED}"
            ) from None
        self.device, self._network = device, network.to(device).eval()
        self.settings: dict[str, Any] = {
            "extractor": "dinov2",
            "weights_crc32": zlib.crc32(weights.read_bytes()),
        }

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Map images uint8 (B, C, H, W), C 1 or 3, to features float32 (B, 1024). Grey images are
        repeated to three channels.

        Resized by Pillow (bicubic) to 224 pixels and normalised by ImageNet's colours, as Stein et
        al. do.
        """
        images = pixels.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        size, how = (SIZE, SIZE), Image.Resampling.BICUBIC
        resized = np.stack(
            [np.asarray(Image.fromarray(image).resize(size, how)) for image in images]
        )
        u = torch.from_numpy(resized).to(self.device).float() / 255
        normalised = (u - u.new_tensor(MEAN)) / u.new_tensor(STD)
        return self._network(normalised.permute(0, 3, 1, 2)).float().cpu().numpy()


def _resampled(positions: torch.Tensor, side: int) -> torch.Tensor:
    """Position embeddings (1, 1 + n^2, d), the class token's first, to (1, 1 + side^2, d).

    Bicubic with an offset of 0.1, as DINOv2's own code does it: its published features depend on
    that.
    """
    token, grid = positions[:, :1], positions[:, 1:]
    n = round(grid.shape[1] ** 0.5)
    if n == side:
        return positions
    square = grid.reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scale = (side + 0.1) / n
    resampled = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([token, resampled.permute(0, 2, 3, 1).flatten(1, 2)], 1)
