"""Small image sources and folders for tests."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image

from configs.default import get_config
from scripts.data.images import ArrayImages, FolderImages, ImageSource, UnreadableImage


def data_config(
    dataset: str, path: Path | str = "", size: int = 8, channels: int = 3
) -> ConfigDict:
    data = get_config().data
    data.dataset, data.path, data.image_size, data.num_channels = dataset, str(path), size, channels
    return data


def random_pixels(*shape: int, seed: int = 0) -> np.ndarray:
    """Noise in 8 bits."""
    return np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    """Uniform noise, float32 in [0, 1)."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def numbered(n: int, size: int = 4) -> ArrayImages:
    """Image i is filled with the value i, so that a batch tells which images it holds."""
    return ArrayImages(np.arange(n, dtype=np.uint8).repeat(size * size).reshape(n, size, size))


class WithDamage:
    """Another source in which the images `damaged` cannot be read."""

    def __init__(self, source: ImageSource, damaged: set[int]) -> None:
        self.source, self.damaged = source, damaged
        self.shape, self.dtype, self.found = source.shape, source.dtype, source.found
        self.labels, self.classes = source.labels, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> np.ndarray:
        if i in self.damaged:
            raise UnreadableImage(self.name(i), "damaged for the test")
        return self.source[i]

    def name(self, i: int) -> str:
        return f"image {i}"

    def version(self) -> str:
        return f"{self.source.version()} {sorted(self.damaged)}"


def save_images(folder: Path, names: list[str], size: int = 8) -> None:
    """Grey PNG files; that of names[i] is filled with i."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (size, size), i).save(folder / name, "PNG")


def save_noise(folder: Path, count: int, *shape: int, seed: int = 0) -> Path:
    """So many PNG files of noise, "0.png" and so on; the folder."""
    folder.mkdir(exist_ok=True)
    for number, pixels in enumerate(random_pixels(count, *shape, seed=seed)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    """An image file, of a kind that Pillow names so."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def names_of(source: ImageSource) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def decoded(
    tmp_path: Path,
    contents: Image.Image | bytes,
    suffix: str = ".png",
    size: int = 4,
    channels: int = 3,
    **save: Any,
) -> np.ndarray:
    path = tmp_path / f"image{suffix}"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        contents.save(path, **save)
    return FolderImages(tmp_path, [path.name], (channels, size, size))[0]


def save_waves(path: Path, height: int, width: int) -> Path:
    """Write forty grey images with some structure as a .npy file, and return it."""
    rows, columns = np.mgrid[:height, :width]
    phases = np.random.default_rng(0).uniform(0, 2 * np.pi, (40, 2, 1, 1))
    waves = np.sin(rows * 0.7 + phases[:, 0]) + np.cos(columns * 0.9 + phases[:, 1])
    np.save(path, ((waves + 2) / 4 * 255).astype(np.uint8))
    return path
