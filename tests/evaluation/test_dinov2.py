"""DINOv2's features, with a small random network in place of the published one."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from scripts.evaluation.dinov2 import DINOv2Features, _resampled
from tests.conftest import bad_input
from tests.images import random_pixels

CPU = torch.device("cpu")


def network(image_size: int) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        image_size, 14, embed_dim=128, depth=2, num_heads=2, init_values=1e-5, num_classes=0
    ).eval()


def test_class_token_of_resized_and_normalised_images(tmp_path: Path) -> None:
    """The features are the network's first token after its last norm, for images resized by Pillow
    and normalised by hand.
    """
    vit = network(224)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    extractor = DINOv2Features(tmp_path / "model.safetensors", CPU)
    pixels = torch.from_numpy(random_pixels(3, 3, 40, 32))
    images = [
        Image.fromarray(image.permute(1, 2, 0).numpy()).resize((224, 224), Image.Resampling.BICUBIC)
        for image in pixels
    ]
    u = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    )
    with torch.no_grad():
        expected = vit.forward_features((u - mean) / std)[:, 0]
    np.testing.assert_allclose(extractor(pixels), expected, atol=1e-5)
    assert extractor.num_features == 128
    grey = pixels[:, :1]
    np.testing.assert_array_equal(extractor(grey), extractor(grey.repeat(1, 3, 1, 1)))


def test_published_position_embeddings_fit_images_of_224_pixels(tmp_path: Path) -> None:
    """The published network is of 518 pixels.

    Between the grids' centres a linear function stays what it is.
    """
    row = torch.linspace(0, 1, 37)
    grid = torch.stack([row[:, None].expand(37, 37), row.expand(37, 37)], -1).reshape(1, -1, 2)
    found = _resampled(torch.cat([torch.full((1, 1, 2), 7.0), grid], 1), 16)
    assert found.shape == (1, 1 + 256, 2)
    assert (found[:, 0] == 7).all()
    square = found[0, 1:].view(16, 16, 2)
    centres = ((torch.arange(16) + 0.5) * 37 / 16.1 - 0.5) / 36
    torch.testing.assert_close(square[2:-2, 5, 0], centres[2:-2], atol=2e-3, rtol=0)
    torch.testing.assert_close(square[5, 2:-2, 1], centres[2:-2], atol=2e-3, rtol=0)
    save_file(network(518).state_dict(), tmp_path / "model.safetensors")
    assert DINOv2Features(tmp_path / "model.safetensors", CPU)(
        torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    ).shape == (1, 128)


BAD = {
    "missing": None,
    "damaged": b"no safetensors",
    "of another network": {"cls_token": torch.zeros(1, 1, 128)},
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_weights_that_cannot_be_used_are_one_line(tmp_path: Path, content: object) -> None:
    file = tmp_path / "model.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, dict):
        save_file(content, file)
    with bad_input(r"--dinov2_path=.*expected the model.safetensors of timm's vit_large"):
        DINOv2Features(file, CPU)
