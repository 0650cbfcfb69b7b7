"""Samples that another program made, to be scored as if they were drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.config.paths import user_path
from scripts.data.datasets import open_images
from scripts.data.images import ImageSource, UnreadableImage, fingerprint
from scripts.data.loader import to_unit_range
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.device import Precision


@dataclass(frozen=True)
class GivenSamples:
    """What scores need of a `Sampler`."""

    name: str
    images: ImageSource
    origins: np.ndarray
    """Int64 (N,): their initial images, as an export with --per_init says in `origins.txt`;
    otherwise one for each."""
    seed: int
    precision: Precision

    @classmethod
    def read(cls, text: str, config: ConfigDict, seed: int) -> "GivenSamples":
        """All images of a folder or an array, at the configuration's size. Raises UserError, see `open_images`."""
        images = open_images(text, "--samples", config.data.image_size, config.data.num_channels)
        origins, file = np.arange(len(images)), user_path(text, "--samples") / "origins.txt"
        if file.is_file() and len(found := np.loadtxt(file, dtype=int, ndmin=1)) == len(images):
            origins = found
        return cls(
            text,
            images,
            origins,
            seed,
            Precision.named(distributed.device(config.device), "float32"),
        )

    def settings(self) -> dict[str, Any]:
        """Plain data that identify the images."""
        return {"samples": self.name, "samples_images": fingerprint(self.images), "seed": self.seed}

    def independent(self, indices: Sequence[int]) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1]. Raises UserError for one that cannot be read."""
        try:
            return to_unit_range(np.stack([self.images[i] for i in indices]))
        except UnreadableImage as error:
            raise UserError(f"--samples={self.name}: {error}") from None
