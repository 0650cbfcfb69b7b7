"""Pictures for people: grids as PNG, the reverse process as GIF and as MP4."""

import math
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from scripts.io import replacing

GAP = 4
"""White pixels around every image of a grid."""
TILE = 96
"""Images smaller than this many pixels are enlarged by a whole factor, so that a person sees something."""
CLIP_SECONDS = 5
LAST_FRAME_SECONDS = 2


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] to the nearest of 0..255; values outside are clamped. uint8, same shape, on the CPU."""
    return (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def grid(images: torch.Tensor, columns: int | None = None) -> np.ndarray:
    """Images (B, C, H, W) in [0, 1] as one picture, row by row: uint8 (H', W', 3).

    Without `columns` the grid is as square as B allows. Both sides of the picture are even, as video encoders want.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    factor = max(1, round(TILE / images.shape[-1]))
    tiles = to_uint8(images).repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1).numpy()
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    height, width = tiles.shape[1] + GAP, tiles.shape[2] + GAP
    sheet = np.full((rows * height + GAP, columns * width + GAP, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * height + GAP, i % columns * width + GAP
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile  # grey is the same in all three channels
    return sheet


def save_png(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Write images (B, C, H, W) in [0, 1] as a grid, see `grid`."""
    with replacing(path) as temporary:
        Image.fromarray(grid(images, columns)).save(temporary)


def save_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3) as a GIF that loops, resting on the last frame."""
    milliseconds = [round(1000 / frame_rate(len(frames)))] * (len(frames) - 1) + [1000 * LAST_FRAME_SECONDS]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with replacing(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def save_mp4(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3), H and W even, as H.264 video that browsers play, resting on the last frame."""
    height, width, _ = frames[0].shape
    fps = frame_rate(len(frames))
    with replacing(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary), (width, height), fps=fps, codec="libx264", macro_block_size=2, quality=8, ffmpeg_log_level="error"
        )
        writer.send(None)  # starts the encoder
        try:
            for frame in [*frames, *[frames[-1]] * round(fps * LAST_FRAME_SECONDS)]:
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()


def frame_rate(num_frames: int) -> float:
    """Frames per second with which a clip of the process lasts about `CLIP_SECONDS`."""
    return min(max(num_frames / CLIP_SECONDS, 5), 30)
