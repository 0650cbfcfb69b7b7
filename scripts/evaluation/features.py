"""Features of images, cached in files together with the settings that they depend on."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from scripts import distributed
from scripts.data.images import Images, UnreadableImage, channels_first, opened_image
from scripts.errors import UserError, printable
from scripts.io import atomic_write, make_directory, read_npz
from scripts.progress import progress_bar

SECONDS_BETWEEN_FILES = 60
"""An interrupted evaluation loses at most this much work, and one batch."""


class Extractor(Protocol):
    """From images to features."""

    settings: dict[str, Any]
    """Plain data that identify it."""
    num_features: int
    """d"""

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Images uint8 (B, C, H, W) to features float32 (B, d)."""


class NativeFolder:
    """Image files as clean-fid reads them: RGB, each at its own size."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self._root, self._paths = root, paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, uint8 (3, H, W). Raises UnreadableImage."""
        with opened_image(self._root / self._paths[i], self.name(i)) as image:
            return channels_first(np.asarray(image.convert("RGB")))

    def name(self, i: int) -> str:
        return printable(self._root / self._paths[i])


def image_features(images: Images, indices: Sequence[int], extractor: Extractor) -> np.ndarray:
    """Features float32 (len(indices), d), rows of NaN for images that cannot be read, with a warning naming each."""
    by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    for row, index in enumerate(indices):
        try:
            pixels = images[index]
        except UnreadableImage as error:
            warnings.warn(f"{error.name} cannot be read and is left out", stacklevel=2)
        else:
            by_shape.setdefault(pixels.shape, []).append((row, pixels))
    if not by_shape:
        raise UserError(f"none of {len(indices)} images can be read, such as {images.name(indices[0])}")
    rows: dict[int, np.ndarray] = {}
    for group in by_shape.values():
        features = extractor(torch.from_numpy(np.stack([pixels for _, pixels in group])))
        rows |= {row: feature for (row, _), feature in zip(group, features, strict=True)}
    unreadable = np.full_like(next(iter(rows.values())), np.nan)
    return np.stack([rows.get(row, unreadable) for row in range(len(indices))])


def cached_features(
    directory: Path,
    settings: dict[str, Any],
    count: int,
    batch_size: int,
    compute: Callable[[range], np.ndarray],
    description: str,
) -> np.ndarray:
    """Features float32 (count, d) of images 0..count-1.

    Those that files in `directory` hold for the same `settings` are read. `compute` gives the rest, for a range of at most
    `batch_size` images at a time; they are added to the files about every minute and at the end, also after an interruption.
    Of several processes each computes its part of `batch_size` images per process, and process 0 writes the files, which any
    number of processes can continue.
    Raises UserError for a directory that cannot be written to and for a damaged file.
    """
    store = _Store(directory, settings)
    with distributed.main_first():
        if distributed.is_main():
            make_directory(directory, "features")
        blocks = store.read(count)
    have = sum(map(len, blocks))
    at_a_time = batch_size * distributed.world_size()
    pending: list[np.ndarray] = []
    written = time.monotonic()
    with progress_bar(count, "image", description, initial=have) as bar:
        try:
            for start in range(have, count, at_a_time):
                wanted = range(start, min(start + at_a_time, count))
                pending.append(distributed.compute_rows(wanted, lambda mine: torch.from_numpy(compute(mine))).numpy())
                bar.update(len(pending[-1]))
                if time.monotonic() - written > SECONDS_BETWEEN_FILES:
                    if distributed.is_main():
                        store.write(have, pending)
                    have += sum(map(len, pending))
                    blocks += pending
                    pending, written = [], time.monotonic()
        finally:
            if distributed.is_main():
                store.write(have, pending)
    return np.concatenate([*blocks, *pending])


class _Store:
    """Files `features_KEY_FIRST-END.npz`, each with rows FIRST..END-1 and the settings that KEY is a checksum of."""

    def __init__(self, directory: Path, settings: dict[str, Any]) -> None:
        self.directory = directory
        self.settings = json.dumps(settings, sort_keys=True)
        self.key = hashlib.sha256(self.settings.encode()).hexdigest()[:12]

    def read(self, count: int) -> list[np.ndarray]:
        """The rows from 0 on that are there without a gap, `count` at most."""
        blocks: list[np.ndarray] = []
        have = 0
        for path in sorted(self.directory.glob(f"features_{self.key}_*.npz")):
            first, end = map(int, path.stem.rsplit("_", 1)[1].split("-"))
            if first <= have < min(end, count):
                blocks.append(self._rows(path, end - first)[have - first : count - first])
                have += len(blocks[-1])
        return blocks

    def _rows(self, path: Path, count: int) -> np.ndarray:
        try:
            rows = read_npz(path).get("features", np.empty(0))
            if rows.dtype != np.float32 or rows.ndim != 2 or len(rows) != count:
                raise ValueError(f"features {rows.dtype} {rows.shape}")
        except (ValueError, OSError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it, and its features are computed again") from None
        return rows

    def write(self, first: int, blocks: Sequence[np.ndarray]) -> None:
        """Add rows from `first` on."""
        if not blocks:
            return
        rows = np.concatenate(blocks)
        path = self.directory / f"features_{self.key}_{first:07d}-{first + len(rows):07d}.npz"
        try:
            with atomic_write(path) as temporary:
                np.savez(temporary, features=rows, settings=np.array(self.settings))
        except OSError as error:
            raise UserError(f"{path}: the features could not be written ({error.strerror}); earlier ones are kept") from None
