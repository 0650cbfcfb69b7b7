"""Features of images, cached in files named by a checksum of everything that they depend on."""

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.data.datasets import Split, load_images
from scripts.data.images import Images, ImageSource, UnreadableImage, channels_first, opened_image
from scripts.errors import UserError, printable
from scripts.evaluation.extractors import Extractor
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar
from scripts.storage.files import atomic_write, make_directory

ORIENTATION = 0x0112
"""EXIF's tag for how an image is to be turned."""
SECONDS_BETWEEN_FILES = 60
"""An interrupted evaluation loses at most this much work, and one batch."""
SPLITS: dict[str, Split] = {"train": "train", "test": "held_out", "val": "held_out", "held_out": "held_out"}
"""Values of --dataset_split for the configuration's own data set."""


def data_set_images(data: ConfigDict, split: str) -> ImageSource:
    """The configuration's own images, at its size. Raises UserError for a split that does not exist."""
    if split not in SPLITS:
        raise UserError(f"--dataset_split={split}: the configuration's own data set has {', '.join(SPLITS)}")
    return load_images(data, SPLITS[split])


class NativeFolder:
    """Image files as clean-fid reads them: RGB, each at its own size."""

    def __init__(self, root: Path, paths: Sequence[str]) -> None:
        self._root, self._paths = root, paths
        self.altered: Counter[str] = Counter()
        """Images that clean-fid's way of reading changes, by what happens to them."""

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, uint8 (3, H, W). Raises UnreadableImage."""
        with opened_image(self._root / self._paths[i], self.name(i)) as image:
            for what, happens in (
                ("16-bit grey, clipped to white", image.mode.startswith("I")),
                ("floating point, clipped to black and white", image.mode == "F"),
                ("transparency, dropped", image.has_transparency_data),
                ("rotation in EXIF, ignored", image.getexif().get(ORIENTATION, 1) != 1),
            ):
                self.altered[what] += happens
            return channels_first(np.asarray(image.convert("RGB")))

    def name(self, i: int) -> str:
        return printable(self._root / self._paths[i])


def image_features(images: Images, indices: Sequence[int], extractor: Extractor) -> np.ndarray:
    """Features float32 (len(indices), d), rows of NaN for images that cannot be read."""
    pixels: dict[int, np.ndarray] = {}
    for row, index in enumerate(indices):
        with contextlib.suppress(UnreadableImage):
            pixels[row] = images[index]
    features = np.full((len(indices), extractor.num_features), np.nan, np.float32)
    for shape in {image.shape for image in pixels.values()}:
        rows = [row for row, image in pixels.items() if image.shape == shape]
        features[rows] = extractor(torch.from_numpy(np.stack([pixels[row] for row in rows])))
    return features


def cached_features(
    directory: Path,
    settings: dict[str, Any],
    count: int,
    batch_size: int,
    compute: Callable[[range], np.ndarray],
    description: str,
) -> np.ndarray:
    """Features float32 (count, d) of images 0..count-1, read from files in `directory` as far as they are there.

    `compute` gives the rest, for a range of at most `batch_size` images at a time, shared out to all processes. Process 0 adds
    them about every minute as files `features_KEY_FIRST.npy` with the rows from FIRST on, KEY a checksum of the `settings`.
    Raises UserError for a directory that cannot be written to.
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    have, blocks = 0, []
    with distributed.main_first():
        make_directory(directory, "features")
        while have < count and (file := directory / f"features_{key}_{have:07d}.npy").exists():
            blocks.append(np.load(file, allow_pickle=False))
            have += len(blocks[-1])
    pending: list[np.ndarray] = []
    saved, written = have, time.monotonic()
    at_a_time = batch_size * distributed.world_size()
    with progress_bar(count, "image", description, initial=min(have, count)) as bar:
        for start in range(have, count, at_a_time):
            wanted = range(start, min(start + at_a_time, count))
            blocks.append(distributed.compute_rows(wanted, lambda mine: torch.from_numpy(compute(mine))).numpy())
            pending.append(blocks[-1])
            bar.update(len(wanted))
            if distributed.is_main() and (time.monotonic() - written > SECONDS_BETWEEN_FILES or wanted.stop == count):
                with atomic_write(directory / f"features_{key}_{saved:07d}.npy") as temporary:
                    np.save(temporary, np.concatenate(pending))
                pending, saved, written = [], wanted.stop, time.monotonic()
    return np.concatenate(blocks)[:count]
