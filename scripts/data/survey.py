"""What is in a set of images before it is read: up to 64 are looked at, spread evenly.

Lines say what there is, and warnings what reading loses.
"""

import contextlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from scripts.data.images import (
    ORIENTATION,
    Shape,
    UnreadableImage,
    channels_first,
    is_deep,
    num_frames,
    numbers_of,
    opened_frame,
    spread_evenly,
)
from scripts.data.values import EIGHT_BIT, Found, Values
from scripts.runtime.progress import warn_once

FEW_LEVELS = 64
"""The brightest of 256 levels if a 16-bit file holds 14 bits or fewer."""
MOST_SHOWN = 3
"""Sizes and kinds of files that are listed, the most frequent ones."""
FAR = 2
"""Above this ratio of its sides, as multiples of those it is to have, an image counts as of another
shape: more than half of it is cut off, or of the result padding."""
FAR_TEXT = {
    "crop": "are of another shape: more than half of them is cut off",
    "pad": "are of another shape: more than half of what is read is padding",
    "stretch": "are of another shape: they are stretched to more than twice",
}
"""What happens to such images, by config.data.fit."""
LOST_TEXT = {"crop": "of their pixels are cropped", "pad": "of what is read is padding"}
"""What happens to others that are not quite of that shape."""


def survey_files(
    root: Path, names: Sequence[str], shape: Shape, data: ConfigDict, as_exported: bool
) -> tuple[Values | None, str]:
    """Return how the numbers in image files become [0, 1], see `Found.values`, and what was found,
    in words.

    Warns of pages, levels of grey and parts of images that are not read; data: config.data. Raises
    UserError for values that need a range, or are out of it.
    """
    looked_at = spread_evenly(len(names))
    kind = "frames" if data.frames == "all" else "files"
    sizes, modes, counts = Counter[str](), Counter[str](), Counter[str]()
    found, kept = Found(), []
    for i in looked_at:
        with contextlib.suppress(UnreadableImage), opened_frame(root, names[i]) as image:
            # Pillow's name for how pixels are stored, while they are not read.
            halved = not is_deep(image) and ";16" in str(getattr(image, "tile", ""))
            height, width = _upright_size(image)
            sizes[f"{width} x {height}"] += 1
            kept.append(_kept(height, width, shape))
            counts["several"] += num_frames(image) > 1
            counts["transparent"] += image.has_transparency_data
            modes[f"{image.mode} in 16 bits, read in 8" if halved else image.mode] += 1
            if halved:
                counts["dark"] += 0 < np.asarray(image.convert("L")).max() <= FEW_LEVELS
            if is_deep(image) or data.value_range:
                found.add(numbers_of(image, shape[0]), data.value_range)
            else:
                found.types.add(EIGHT_BIT)
    counts["far"] = sum(part < 1 / FAR for part in kept)
    _warn_of_losses(f"{root}: of {len(looked_at)} {kind} that were looked at", counts, data)
    looked = f"{len(looked_at)} of {len(names)} {kind} looked at"
    values = found.values(data, f"{root} ({looked})", as_exported)
    lines = [f"{looked}: {_most(sizes)} pixels"]
    lines.append(f"{_most(modes)}, {found.describe(values)}")
    if unreadable := len(looked_at) - sizes.total():
        lines.append(f"{unreadable} cannot be read")
    if counts["transparent"]:
        where = "over white" if shape[0] in (1, 3) else "a channel of its own"
        lines.append(f"{counts['transparent']} with transparency, {where}")
    lost = 1 - float(np.mean(kept or [1]))
    if lost > 0.005 and data.fit in LOST_TEXT:
        lines.append(f"{lost:.0%} {LOST_TEXT[data.fit]}")
    return values, "; ".join(lines)


def _warn_of_losses(looked: str, counts: Counter[str], data: ConfigDict) -> None:
    if counts["dark"]:
        warn_once(
            f"{looked} {counts['dark']} use few of their 16 bits, and are read as nearly black "
            "(12 bits as 17 grey levels): scale them"
        )
    if counts["several"] and data.frames == "first":
        warn_once(
            f"{looked} {counts['several']} have several pages or frames: only the first is read "
            "(data.frames)"
        )
    if counts["far"]:
        warn_once(f"{looked} {counts['far']} {FAR_TEXT[data.fit]} (data.fit)")


def survey_array(
    array: np.ndarray, shape: Shape | None, data: ConfigDict, place: Path, as_exported: bool
) -> tuple[Values | None, str]:
    """Return the same of an array (N, H, W[, C]), the file `place`."""
    looked_at = spread_evenly(len(array))
    deep = array.dtype != EIGHT_BIT or data.value_range
    found = Found({array.dtype})
    for i in looked_at if deep else []:
        found.add(np.asarray(array[i]), data.value_range)
    looked = f"{len(looked_at)} of {len(array)} images looked at"
    values = found.values(data, f"{place} ({looked})", as_exported)
    _, height, width = channels_first(array[0]).shape
    if shape is not None and _kept(height, width, shape) < 1 / FAR:
        which = f"{len(array)} images of {width} x {height} pixels"
        warn_once(f"{place}: {which} {FAR_TEXT[data.fit]} (data.fit)")
    size = f"{array.dtype.name} {width} x {height} pixels"
    return values, f"{looked}: {size}, {found.describe(values)}"


def _kept(height: int, width: int, shape: Shape) -> float:
    """Return the part of an image that a crop to (C, H, W) keeps, or of the result that is not
    padding.
    """
    ratio = height * shape[2] / (width * shape[1])
    return min(ratio, 1 / ratio)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Height and width as it is shown."""
    turned = image.getexif().get(ORIENTATION, 1) > 4
    return (image.width, image.height) if turned else (image.height, image.width)


def _most(counts: Counter[str]) -> str:
    """Return the most frequent, such as "64 x 48 (12), 5 more"."""
    shown = [f"{name} ({count})" for name, count in counts.most_common(MOST_SHOWN)]
    if len(counts) > MOST_SHOWN:
        shown.append(f"{len(counts) - MOST_SHOWN} more")
    return ", ".join(shown)
