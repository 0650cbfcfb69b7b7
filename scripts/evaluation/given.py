"""Samples that another program made, to be scored as if they were drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.config.paths import user_path
from scripts.data.datasets import open_images
from scripts.data.images import FolderImages, Images, ImageSource, UnreadableImage
from scripts.data.loader import to_unit_range
from scripts.errors import UserError
from scripts.evaluation.features import NativeFolder
from scripts.runtime import distributed
from scripts.runtime.device import Precision
from scripts.storage.record import Record


@dataclass(frozen=True)
class GivenSamples:
    """What scores need of a `Sampler`."""

    name: str
    images: ImageSource
    """At the configuration's size."""
    native: Images
    """As a folder or an array that is a reference is read."""
    origins: np.ndarray
    """Int64 (N,): their initial images, as an export with --per_init says in `origins.txt`;
    otherwise one for each."""
    seed: int
    precision: Precision

    @classmethod
    def read(cls, text: str, config: ConfigDict, seed: int) -> "GivenSamples":
        """All images of a folder or an array. Raises UserError, see `open_images`."""
        images = open_images(text, "--samples", config.data.image_size, config.data.num_channels)
        path, native = user_path(text, "--samples"), cast(Images, images)
        if path.suffix in (".npy", ".npz"):
            native = open_images(text, "--samples", None, 3)
        elif isinstance(images, FolderImages):
            native = NativeFolder(path if path.is_dir() else path.parent, images.paths)
        origins, file = np.arange(len(images)), path / "origins.txt"
        if file.is_file() and len(found := np.loadtxt(file, dtype=int, ndmin=1)) == len(images):
            origins = found
        return cls(
            text,
            images,
            native,
            origins,
            seed,
            Precision.named(distributed.device(config.device), "float32"),
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) at the configuration's size."""
        return self.images.shape

    def record(self) -> Record:
        """What identifies the images."""
        files = {"samples": self.images.version()}
        return Record(weights={"samples": self.name}, options={"seed": self.seed}, files=files)

    def independent(self, indices: Sequence[int]) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1]. Raises UserError for one that cannot be read."""
        try:
            return to_unit_range(np.stack([self.images[i] for i in indices]))
        except UnreadableImage as error:
            raise UserError(f"--samples={self.name}: {error}") from None
