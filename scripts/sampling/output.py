"""What samples are written as: arrays, grids (PNG), and the reverse process as GIF and MP4."""

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import imageio_ffmpeg
import numpy as np
import torch
from PIL import Image

from model_code.kernels import Chain
from scripts.runtime.progress import progress_bar
from scripts.sampling.reverse import OnStep
from scripts.sampling.sampler import Sampler
from scripts.storage.files import atomic_write, make_directory

FRAMES = 100
"""Roughly how many states of the process are kept for pictures, unless asked otherwise."""
INTERPOLATION_COLUMNS = 10
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

    Without `columns` the grid is as square as B allows.
    """
    from torchvision.utils import make_grid  # takes a second to import

    factor = max(1, round(TILE / images.shape[-1]))
    tiles = to_uint8(images).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    sheet = make_grid(tiles, columns or math.ceil(math.sqrt(len(images))), padding=GAP, pad_value=255)
    return sheet.permute(1, 2, 0).numpy()


def own_directory(base: Path, settings: dict[str, Any]) -> Path:
    """Make `base`, or a directory beside it where `base` has pictures of other settings, and write `settings.json` there.

    settings: all that the pictures depend on, as plain data. The same settings have the same directory, and may be drawn again.
    """
    text = json.dumps(settings, indent=2) + "\n"
    step = f"{base.name}_step_{settings['checkpoint_step']}"
    for name in (base.name, step, f"{step}_{zlib.crc32(text.encode()):08x}"):
        directory = base.with_name(name)
        record = directory / "settings.json"
        try:
            directory.mkdir(parents=True)  # fails for the second of two commands
            break
        except FileExistsError:
            if record.exists() and record.read_text() == text:
                break
    make_directory(directory, "output directory")
    with atomic_write(record) as temporary:
        temporary.write_text(text)
    return directory


def save_png(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Write images (B, C, H, W) in [0, 1] as a grid, see `grid`."""
    with atomic_write(path) as temporary:
        Image.fromarray(grid(images, columns)).save(temporary)


def save_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3) as a GIF that loops, resting on the last frame."""
    milliseconds = [round(1000 / frame_rate(len(frames)))] * (len(frames) - 1) + [1000 * LAST_FRAME_SECONDS]
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with atomic_write(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def save_mp4(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3), H and W even, as H.264 video that browsers play, resting on the last frame."""
    height, width, _ = frames[0].shape
    fps = frame_rate(len(frames))
    with atomic_write(path) as temporary:
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


Kind = Literal["independent", "same_init", "share_noise"]


def frame_levels(chain: Chain, every: int | None = None) -> Chain:
    """Levels of the states to keep: every `every`-th of the chain (default: about a hundred in all), and both ends."""
    return (*chain[: -1 : every or max(1, len(chain) // FRAMES)], 0)


def fill_rows(sampler: Sampler, batch_size: int, per_init: int | None) -> tuple[Sampler, int]:
    """Samples of an image (`per_init`, None for as many as fit) and in a batch, so that every row of `seeds.png` is full."""
    if sampler.seeds is None:
        return sampler, batch_size
    per_init = per_init or max(1, batch_size // sampler.seeds.count)
    batch_size = per_init * max(1, min(batch_size // per_init, sampler.seeds.count))
    return replace(sampler, seeds=replace(sampler.seeds, per_image=per_init)), batch_size


def sample_set(
    directory: Path,
    sampler: Sampler,
    indices: Sequence[int],
    kind: Kind = "independent",
    every: int | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Draw samples in one batch and write `samples.npy`, `init.png`, `final.png`, `final.npy`, `process.gif`, `process.mp4`.

    With seeds also `seeds.png`: in each row an image, its blurred state, and the samples that start there.
    `samples.npy` holds every `every`-th state (default: about a hundred in all), float32 (states, B, C, H, W).
    """
    make_directory(directory, "output directory")
    levels = frame_levels(sampler.kernel.chain, every)
    states: list[torch.Tensor] = []
    with progress_bar(sampler.num_steps, "step", "sampling") as bar:

        def observe(k: int, u_k: torch.Tensor) -> None:
            if k in levels:
                states.append(u_k.float().cpu())
            if on_step is not None:
                on_step(k, u_k)
            bar.update(k < levels[0])

        final = getattr(sampler, kind)(indices, observe)
    for name, array in (("samples.npy", torch.stack(states)), ("final.npy", final)):
        with atomic_write(directory / name) as temporary:
            np.save(temporary, array.numpy())
    save_png(directory / "init.png", states[0])
    save_png(directory / "final.png", final)
    if sampler.seeds is not None:
        columns = len(indices) if kind == "same_init" else sampler.seeds.per_image
        images = sampler.seeds.images(sampler.origins(indices[::columns]))
        parts = zip(images[:, None], states[0][::columns, None], final.split(columns), strict=True)
        save_png(directory / "seeds.png", torch.cat([part for row in parts for part in row]), columns + 2)
    frames = [grid(state) for state in states]
    save_gif(directory / "process.gif", frames)
    save_mp4(directory / "process.mp4", frames)


def interpolation_set(directory: Path, sampler: Sampler, ends: tuple[int, int], num_points: int) -> None:
    """Draw a path between two samples and write pictures of it.

    `init_input.png` has the initial states and `interpolation.png` the samples along the path, row by row;
    `base_sample.png` the samples at both ends, `process.mp4` how all of them come about.
    """
    make_directory(directory, "output directory")
    levels, first = frame_levels(sampler.kernel.chain), sampler.kernel.chain[0]
    columns = min(num_points, INTERPOLATION_COLUMNS)
    frames: list[np.ndarray] = []
    with progress_bar(sampler.num_steps, "step", "sampling") as bar:

        def observe(k: int, u_k: torch.Tensor) -> None:
            if k == first:
                save_png(directory / "init_input.png", u_k.cpu(), columns)
            if k in levels:
                frames.append(grid(u_k.cpu(), columns))
            bar.update(k < first)

        points = sampler.interpolate(ends, num_points, observe)
    save_png(directory / "base_sample.png", points[[0, -1]])
    save_png(directory / "interpolation.png", points, columns)
    save_mp4(directory / "process.mp4", frames)
