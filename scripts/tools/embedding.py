"""Pictures and clips inside a page, as data URIs, made small enough for it."""

import base64
import io
import math
from pathlib import Path

from PIL import Image, ImageChops

PICTURE_BYTES = 100_000
"""Most bytes of an embedded picture; larger ones are coded again."""
CLIP_BYTES = 1_500_000
"""Most bytes of an embedded clip; larger ones are left out."""


def picture(path: Path) -> str:
    """An image file as a data URI of at most PICTURE_BYTES: a PNG if one is that small, else a JPEG, scaled down if need be.

    Raises OSError for a file that is no image.
    """
    with Image.open(path) as image:
        pixels = image.convert("RGB")
    red, green, blue = pixels.split()
    if not ImageChops.difference(red, green).getbbox() and not ImageChops.difference(red, blue).getbbox():
        pixels = red
    # A PNG of many times the size is not worth a second of compressing.
    coding, options = ("PNG", {"optimize": True}) if path.stat().st_size < 8 * PICTURE_BYTES else ("JPEG", {"quality": 85})
    data = _coded(pixels, coding, **options)
    while len(data) > PICTURE_BYTES:
        if coding == "JPEG":
            shrink = min(0.9, math.sqrt(PICTURE_BYTES / len(data)))
            size = max(1, int(shrink * pixels.width)), max(1, int(shrink * pixels.height))
            pixels = pixels.resize(size, Image.Resampling.LANCZOS)
        coding, options = "JPEG", {"quality": 85}
        data = _coded(pixels, coding, **options)
    return _data_uri("image/png" if data.startswith(b"\x89PNG") else "image/jpeg", data)


def clip(directory: Path) -> tuple[str, str]:
    """(kind, data URI) of `process.mp4` ("video") or `process.gif` ("image"), whichever is smaller.

    ("", "") if there is neither, or the smaller one has more than CLIP_BYTES.
    """
    kinds = {"process.mp4": ("video", "video/mp4"), "process.gif": ("image", "image/gif")}
    paths = sorted((directory / name for name in kinds if (directory / name).is_file()), key=lambda path: path.stat().st_size)
    if not paths or not 0 < paths[0].stat().st_size <= CLIP_BYTES:
        return "", ""
    kind, media_type = kinds[paths[0].name]
    return kind, _data_uri(media_type, paths[0].read_bytes())


def _coded(image: Image.Image, coding: str, **options: int | bool) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, coding, **options)
    return buffer.getvalue()


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
