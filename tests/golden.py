"""The original implementation's numbers, and the weights that they were measured with."""

import json
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model_code.blur import DCTBlur, blur_schedule
from model_code.gaussian import GaussianProcess
from model_code.presets import heat_dissipation
from model_code.unet import UNet

DATA = Path(__file__).parent / "data"
SETTINGS: dict[str, dict[str, Any]] = json.loads((DATA / "models.json").read_text())
PARAM_COUNTS: dict[str, dict[str, int]] = json.loads((DATA / "param_counts.json").read_text())


def golden_weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """float32 values for the parameter `name`: matrices scaled by fan-in, norms near 1, biases
    small.
    """
    draw = (
        np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    )
    if len(shape) > 1:
        return draw / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * draw if name.endswith("weight") else 0.1 * draw


def fill_golden(model: torch.nn.Module) -> None:
    """Give every parameter of `model` its golden value."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.from_numpy(golden_weight(name, tuple(weight.shape))))


@dataclass(frozen=True)
class Golden:
    """One golden file with the model and the blur that it was measured on."""

    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    model: UNet
    blur: DCTBlur

    def process(self, protocol: str = "paper") -> GaussianProcess:
        """The process that they were measured with."""
        settings = {"num_channels": self.settings["num_channels"], "protocol": protocol}
        return heat_dissipation(self.blur, self.settings["sigma"], **settings)

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[name])


def load_golden(name: str) -> Golden:
    """`gray28` or `rgb16`."""
    settings = SETTINGS[name]
    keys = ("num_channels", "model_channels", "channel_mult", "num_res_blocks", "attention_levels")
    model = UNet(**{key: settings[key] for key in keys}).eval()
    fill_golden(model)
    size = settings["image_size"]
    schedule = blur_schedule(settings["K"], settings["blur_sigma_min"], settings["blur_sigma_max"])
    with np.load(DATA / f"{name}.npz") as file:
        return Golden(settings, dict(file), model, DCTBlur(schedule, size, size))
