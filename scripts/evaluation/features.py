"""Features of images, cached in files named by a checksum of everything that they depend on."""

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.data.datasets import Split, load_images
from scripts.data.images import (
    ORIENTATION,
    FolderImages,
    Images,
    ImageSource,
    UnreadableImage,
    channels_first,
    checksums,
    opened_frame,
)
from scripts.data.values import as_uint8
from scripts.errors import UserError, one_line
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar, warn
from scripts.storage.files import atomic_write, make_directory

SECONDS_BETWEEN_FILES = 60
"""An interrupted evaluation loses at most this much work, and one batch."""
SPLITS: dict[str, Split] = {
    "train": "train",
    "test": "held_out",
    "val": "held_out",
    "held_out": "held_out",
}
"""Values of --dataset_split for the configuration's own data set."""


class Extractor(Protocol):
    """From images to features."""

    settings: dict[str, Any]
    """Plain data that identify it: "extractor" its name; "mode" if clean-fid's statistics of that
    mode are of its features.
    """
    num_features: int
    """d"""

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Map images uint8 (B, C, H, W) to features float32 (B, d)."""


def data_set_images(data: ConfigDict, split: str) -> ImageSource:
    """Return the configuration's own images, at its size.

    Raises UserError for a split that does not exist.
    """
    if split not in SPLITS:
        raise UserError(
            f"--dataset_split={split}: the configuration's own data set has {', '.join(SPLITS)}"
        )
    return load_images(data, SPLITS[split])


class NativeFolder(FolderImages):
    """Image files as clean-fid reads them: RGB, each at its own size."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        super().__init__(root, paths, (3, 0, 0))
        self.altered: Counter[str] = Counter()
        """Images that clean-fid's way of reading changes, by what happens to them."""

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, uint8 (3, H, W). Raises UnreadableImage."""
        with opened_frame(self._root, self.paths[i]) as image:
            for what, happens in (
                ("16-bit grey, clipped to white", image.mode.startswith("I")),
                ("floating point, clipped to black and white", image.mode == "F"),
                ("transparency, dropped", image.has_transparency_data),
                ("rotation in EXIF, ignored", image.getexif().get(ORIENTATION, 1) != 1),
            ):
                self.altered[what] += happens
            return channels_first(np.asarray(image.convert("RGB")))


def features_of(pixels: torch.Tensor, extractor: Extractor) -> np.ndarray:
    """Rows with "features", float32 (d,), and "crc32" of the pixels of each of images uint8 (B, C,
    H, W).
    """
    rows = np.empty(len(pixels), row_type(extractor))
    rows["features"], rows["crc32"] = extractor(pixels), checksums(pixels.numpy())
    return rows


def row_type(extractor: Extractor) -> np.dtype:
    """Return what is cached of an image."""
    return np.dtype([("features", np.float32, (extractor.num_features,)), ("crc32", np.uint32)])


def image_features(images: Images, indices: Sequence[int], extractor: Extractor) -> np.ndarray:
    """Rows of `features_of` images, of NaN for those that cannot be read."""
    pixels: dict[int, np.ndarray] = {}
    for row, index in enumerate(indices):
        with contextlib.suppress(UnreadableImage):
            pixels[row] = as_uint8(images[index])
    features = np.zeros(len(indices), row_type(extractor))
    features["features"] = np.nan
    for shape in {image.shape for image in pixels.values()}:
        rows = [row for row, image in pixels.items() if image.shape == shape]
        stacked = torch.from_numpy(np.stack([pixels[row] for row in rows]))
        features[rows] = features_of(stacked, extractor)
    return features


def cached_features(
    directory: Path,
    key: str,
    count: int,
    batch_size: int,
    compute: Callable[[range], np.ndarray],
    description: str,
) -> np.ndarray:
    """Rows (count, ...) of images 0..count-1, read from files in `directory` as far as they are
    there.

    `compute` gives the rest, for a range of at most `batch_size` images at a time, shared out to
    all processes. Process 0 adds them about every minute as files `features_KEY_FIRST.npy` with the
    rows from FIRST on, also in place of one that is damaged. key: of the record of what they depend
    on; process 0's counts. Raises UserError for a directory that cannot be written to.
    """
    key = distributed.from_main(key)
    have, blocks = 0, []
    with distributed.main_first():
        make_directory(directory, "features")
        while have < count and (file := directory / f"features_{key}_{have:07d}.npy").exists():
            try:
                blocks.append(np.load(file, allow_pickle=False))
            except (ValueError, EOFError) as error:
                warn(f"{file}: damaged, features are computed again ({one_line(error)})")
                break
            have += len(blocks[-1])
    pending: list[np.ndarray] = []
    saved, written = have, time.monotonic()
    at_a_time = batch_size * distributed.world_size()
    with progress_bar(count, "image", description, initial=min(have, count)) as bar:
        for start in range(have, count, at_a_time):
            wanted = range(start, min(start + at_a_time, count))
            mine = distributed.shard(wanted)
            rows = [compute(mine)] if len(mine) else []
            blocks.append(np.concatenate(list(chain.from_iterable(distributed.gather(rows)))))
            pending.append(blocks[-1])
            bar.update(len(wanted))
            if distributed.is_main() and (
                time.monotonic() - written > SECONDS_BETWEEN_FILES or wanted.stop == count
            ):
                with atomic_write(directory / f"features_{key}_{saved:07d}.npy") as temporary:
                    np.save(temporary, np.concatenate(pending))
                pending, saved, written = [], wanted.stop, time.monotonic()
    return np.concatenate(blocks)[:count]
