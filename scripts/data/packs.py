"""Packed data sets: decoded and resized once into memory-mapped arrays, with the names that splits
and fingerprints need.

A pack is a directory. `packed_images.json` says what it holds; until all is there it is called
`packed_images.partial.json`. For each part ("all", or "train" and "held_out" where the data set
comes with that split) `PART.npy` has the pixels, (N, H, W, C) in the type in which they are read,
and `PART.readable.npy`, bool (n,), whether they could be read, of the first n images while it is
being packed.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from model_code.unet import image_shape
from scripts.data.images import (
    ArrayImages,
    FolderImages,
    ImageSource,
    Shape,
    UnreadableImage,
    fingerprint,
)
from scripts.data.loader import UnreadableImages, read_image, read_in_parts
from scripts.errors import UserError, printable
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar
from scripts.storage.files import atomic_write, exclusive, make_directory, sync

WHOLE, PARTIAL = "packed_images.json", "packed_images.partial.json"
ADDED = {"value_range": [], "value_clip": False, "frames": "first"}
"""Settings that packs of earlier versions do not have, with their value there."""
BLOCK = 1 << 24
"""Bytes of pixels that are written and recorded at a time."""


class PackedImages(ArrayImages):
    """One part of a pack; what could not be read when it was packed still cannot."""

    def __init__(self, directory: Path, part: str, described: Mapping[str, Any]) -> None:
        """Raises OSError and ValueError for files that are missing or damaged."""
        array = np.load(directory / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        self._readable = np.load(directory / f"{part}.readable.npy", allow_pickle=False)
        right = array.dtype == described["dtype"] and list(array.shape) == described["shape"]
        if not right or len(self._readable) != len(array):
            holds = f"{part}.npy holds {array.dtype} {array.shape}"
            raise ValueError(f"{directory} is damaged: {holds}")
        labels = described["labels"]
        if labels is not None:
            # Earlier versions kept no names.
            classes = described.get("classes") or map(str, range(max(labels) + 1))
            super().__init__(array, labels=np.array(labels), classes=tuple(classes))
        else:
            super().__init__(array)
        self.paths = described["names"]
        self.found = f"a pack: {array.dtype}"

    def __getitem__(self, i: int) -> np.ndarray:
        if not self._readable[self._rows[i]]:
            raise UnreadableImage(self.name(i), "could not be read when it was packed")
        return super().__getitem__(i)

    def name(self, i: int) -> str:
        return printable(self.paths[self._rows[i]])


def pack_settings(shape: Shape, data: ConfigDict) -> dict[str, Any]:
    """What a pack depends on beside the data set itself, as JSON has it: images (C, H, W), and how
    they are read.
    """
    channels, height, width = shape
    size = height if height == width else [height, width]
    settings = {"image_size": size, "num_channels": channels, "fit": data.fit}
    return settings | json.loads(json.dumps({key: data[key] for key in ADDED}))


def read_pack(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the pack in `directory` holds by part: "names", "labels", ...; None if there is no pack.

    Raises ValueError for half a pack, and for one that was made with other `settings` than these.
    """
    if (directory / PARTIAL).exists():
        raise ValueError(f"{directory} is half a pack: the command that began it completes it")
    if not (directory / WHOLE).exists():
        return None
    record = _parsed((directory / WHOLE).read_bytes())
    for key, value in settings.items():
        if record[key] != value:
            raise ValueError(
                f"{directory} is a pack with data.{key} = {record[key]!r}, not {value!r}: pack the "
                "images again"
            )
    return record["parts"]


def _parsed(record: bytes) -> dict[str, Any]:
    """What a pack says of itself; earlier versions had one fit, one type, and no labels to
    choose.
    """
    found = {"fit": "crop", "labels": "", **ADDED} | json.loads(record)
    for described in found["parts"].values():
        described.setdefault("dtype", "uint8")
    return found


def write_pack(directory: Path, data: ConfigDict, sources: Mapping[str, ImageSource]) -> None:
    """Pack the images of each part of a data set, opened with `data`, or what is missing of that.

    Raises UserError, before anything is written, for a directory with anything else in it and for a
    disk that is too small; and if the images change meanwhile.
    """
    if any(isinstance(source, PackedImages) for source in sources.values()):
        raise UserError(
            f"config.data.path = {data.path!r}: is a pack already; set it to what that was "
            "packed from"
        )
    parts = {part: _described(source) for part, source in sources.items()}
    data_set = {"dataset": data.dataset.lower(), "labels": data.labels}
    settings = data_set | pack_settings(image_shape(data), data)
    record = json.dumps({"version": 1, **settings, "parts": parts}).encode()
    begun = [directory / name for name in (WHOLE, PARTIAL) if (directory / name).exists()]
    if begun and _parsed(begun[0].read_bytes()) != json.loads(record):
        raise UserError(
            f"--out={directory}: has a pack of other images or sizes in it; choose another "
            "directory, or delete it"
        )
    if not begun:
        if directory.is_dir() and any(path.name[0] != "." for path in directory.iterdir()):
            raise UserError(
                f"--out={directory}: has other files in it; choose a new or an empty directory"
            )
        needed = sum(
            math.prod(described["shape"]) * np.dtype(described["dtype"]).itemsize
            for described in parts.values()
        )
        free = shutil.disk_usage(make_directory(directory, "--out")).free
        if free < needed:
            raise UserError(
                f"--out={directory}: needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; "
                "choose another disk"
            )
    with exclusive(directory, f"--out={directory}: is being packed already; wait"):
        if not begun:
            with atomic_write(directory / PARTIAL) as temporary:
                temporary.write_bytes(record)
        for part, source in sources.items():
            described = parts[part]
            _pack_part(directory, part, source, described["shape"])
            if fingerprint(PackedImages(directory, part, described)) != described["fingerprint"]:
                raise UserError(
                    f"--out={directory}: images changed while they were packed; delete it, and "
                    "pack them again"
                )
        if (directory / PARTIAL).exists():
            (directory / PARTIAL).replace(directory / WHOLE)
            sync(directory)


def _described(source: ImageSource) -> dict[str, Any]:
    channels, height, width = source.shape
    names: Sequence[str] = [source.name(i) for i in range(len(source))]
    if isinstance(source, FolderImages):
        names = source.paths  # printable or not: the split is made from them
    return {
        "shape": [len(source), height, width, channels],
        "dtype": source.dtype.name,
        "fingerprint": fingerprint(source),
        "names": names,
        "labels": None if source.labels is None else source.labels.tolist(),
        "classes": list(source.classes),
    }


def _pack_part(directory: Path, part: str, source: ImageSource, shape: Sequence[int]) -> None:
    """Read what is missing in several threads, and write it block by block: pixels first, then that
    they are there.
    """
    pixels_path, readable_path = directory / f"{part}.npy", directory / f"{part}.readable.npy"
    if readable_path.exists():
        readable = np.load(readable_path, allow_pickle=False)
    else:
        readable = np.empty(0, bool)
        np.lib.format.open_memmap(pixels_path, "w+", source.dtype, tuple(shape))
    first_byte = np.load(pixels_path, mmap_mode="r").offset
    image_bytes = math.prod(shape[1:]) * source.dtype.itemsize
    in_block, unreadable = max(1, BLOCK // image_bytes), UnreadableImages()

    starts = range(len(readable), shape[0], in_block)
    blocks = [range(start, min(start + in_block, shape[0])) for start in starts]
    # Written rather than copied into a memory map, whose pages would count as this process's
    # memory.
    with (
        pixels_path.open("r+b") as file,
        progress_bar(shape[0], "image", f"packing {part}", len(readable)) as bar,
    ):
        file.seek(first_byte + len(readable) * image_bytes)
        read = read_in_parts(partial(read_image, source), blocks, distributed.cores())
        for block, images in zip(blocks, read, strict=True):
            # Black where nothing can be read.
            pixels = np.zeros((len(block), *shape[1:]), source.dtype)
            for row, image in zip(pixels, images, strict=True):
                unreadable.update(image.unreadable)
                if image.pixels is not None:
                    row[:] = image.pixels.transpose(1, 2, 0)
            file.write(pixels.data)
            file.flush()
            os.fsync(file.fileno())
            readable = np.append(readable, [image.pixels is not None for image in images])
            with atomic_write(readable_path) as temporary:
                np.save(temporary, readable)
            bar.update(len(block))
    unreadable.report(shape[0], "images")
