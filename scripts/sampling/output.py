"""What samples are written as: arrays, grids (PNG), and the reverse process as GIF and MP4."""

import json
import math
import subprocess
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from model_code.process import Chain
from scripts.runtime.progress import optional, progress_bar
from scripts.sampling.reverse import OnStep
from scripts.sampling.sampler import Sampler
from scripts.storage.files import atomic_write, make_directory, write_text

FRAMES = 100
"""Roughly how many states of the process are kept for pictures, unless asked otherwise."""
INTERPOLATION_COLUMNS = 10
GAP = 4
"""White pixels around every image of a grid."""
TILE = 96
"""Images smaller than this many pixels are enlarged by a whole factor, so that a person sees
something.
"""
LARGEST = 128
"""Pixels of a side beyond which images of a `sheet` are made smaller."""
BACKGROUND = "lightgray"
"""Of a `sheet`, so that the edges of white images are seen."""
MAX_VIDEO_SIDE = 4096
"""Pixels of width and height that players still take; larger clips are scaled down to it."""
CLIP_SECONDS = 5
LAST_FRAME_SECONDS = 2


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] to the nearest of 0..255, clamped: uint8, same shape, on the CPU."""
    return (images.clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def grid(images: torch.Tensor, columns: int | None = None) -> np.ndarray:
    """Images (B, C, H, W) in [0, 1] as one picture, row by row: uint8 (H', W', 3).

    Without `columns` the grid is as square as B allows.
    """
    from torchvision.utils import make_grid  # takes a second to import

    factor = max(1, round(TILE / max(images.shape[-2:])))
    tiles = to_uint8(as_colours(images)).repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    sheet = make_grid(
        tiles, columns or math.ceil(math.sqrt(len(images))), padding=GAP, pad_value=255
    )
    return sheet.permute(1, 2, 0).numpy()


def as_colours(images: torch.Tensor) -> torch.Tensor:
    """Images (B, C, H, W) as a person can see them, C' 1 or 3: (B, C', H, W').

    Of 4 channels the first three are RGB, with the fourth beside it; of 2 or more than 4 each is a
    column in grey. White lines part them.
    """
    B, C, H, _ = images.shape
    if C in (1, 3):
        return images
    parts = list(images.split([3, 1] if C == 4 else 1, 1))
    colours = max(part.shape[1] for part in parts)
    white = images.new_ones(B, colours, H, 1)
    columns = [column for part in parts for column in (white, part.expand(-1, colours, -1, -1))]
    return torch.cat(columns[1:], 3)


def own_directory(base: Path, settings: dict[str, Any]) -> Path:
    """Make `base`, or a directory beside it where `base` has pictures of other settings, and write
    `settings.json` there.

    settings: all that the pictures depend on, as plain data. The same settings have the same
    directory, and may be drawn again.
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
    write_text(record, text)
    return directory


def save_png(path: Path, images: torch.Tensor, columns: int | None = None) -> None:
    """Write images (B, C, H, W) in [0, 1] as a grid, see `grid`."""
    with atomic_write(path) as temporary:
        Image.fromarray(grid(images, columns)).save(temporary)


def sheet(rows: Sequence[tuple[str, torch.Tensor, Sequence[str]]], columns: int) -> Image.Image:
    """Rows of images (B, C, H, W) in [0, 1], each with its label and captions, as one picture."""
    height, width = as_colours(rows[0][1]).shape[-2:]
    scale: float = max(1, round(TILE / max(height, width)))
    if max(height, width) > LARGEST:
        scale = LARGEST / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    font = ImageFont.load_default(12)
    labels = [text for label, _, _ in rows for text in label.split("\n")]
    line, left = 15, max(90, *(round(font.getlength(text)) + 2 * GAP for text in labels))
    heights = [size[1] + GAP + line * 2 * bool(captions) for _, _, captions in rows]
    picture = Image.new("RGB", (left + columns * (size[0] + GAP), sum(heights) + GAP), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    top = GAP
    for (label, images, captions), row_height in zip(rows, heights, strict=True):
        pen.text((GAP, top), label, "black", font)
        for column, image in enumerate(to_uint8(as_colours(images)).permute(0, 2, 3, 1).numpy()):
            x = left + column * (size[0] + GAP)
            tile = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
            picture.paste(tile.resize(size, Image.Resampling.NEAREST), (x, top))
            if captions:
                lines = [_fitting(text, size[0], font) for text in captions[column].split("\n")]
                pen.text((x, top + size[1]), "\n".join(lines), "black", font)
        top += row_height
    return picture


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return the end of a text that is not wider than so many pixels."""
    while len(text) > 1 and font.getlength(text) > width:
        text = f"…{text[2:]}"
    return text


def save_gif(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3) as a GIF that loops, resting on the last frame."""
    milliseconds = [round(1000 / frame_rate(len(frames)))] * (len(frames) - 1)
    milliseconds.append(1000 * LAST_FRAME_SECONDS)
    first, *rest = (Image.fromarray(frame) for frame in frames)
    with atomic_write(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=milliseconds, loop=0)


def save_mp4(path: Path, frames: Sequence[np.ndarray]) -> None:
    """Write frames uint8 (H, W, 3) as H.264 video that browsers play, resting on the last frame.

    Raises OSError or RuntimeError if there is no encoder, or if it fails.
    """
    import imageio_ffmpeg  # only videos need it

    height, width, _ = frames[0].shape
    fps = frame_rate(len(frames))
    rest = [frames[-1]] * round(fps * LAST_FRAME_SECONDS)
    clip = b"".join(frame.tobytes() for frame in [*frames, *rest])
    bounds = f"'min(iw,{MAX_VIDEO_SIDE})':'min(ih,{MAX_VIDEO_SIDE})'"
    scaled = f"scale={bounds}:force_original_aspect_ratio=decrease"
    even = "pad='ceil(iw/2)*2':'ceil(ih/2)*2':color=white"  # as 4:2:0 chrominance needs
    raw = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps} -i -"
    h264 = f"-vf {scaled},{even} -c:v libx264 -crf 10 -pix_fmt yuv420p"
    with atomic_write(path) as temporary:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *f"-v error -y {raw} {h264}".split()]
        # Absolute: ffmpeg takes what is before a colon for a protocol.
        command.append(str(temporary.absolute()))
        # In a session of its own, where no Ctrl-C reaches it.
        done = subprocess.run(command, input=clip, capture_output=True, start_new_session=True)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace")[-300:] or f"exit code {done.returncode}"
            raise OSError(f"ffmpeg: {reason}")


def frame_rate(num_frames: int) -> float:
    """Frames per second with which a clip of the process lasts about `CLIP_SECONDS`."""
    return min(max(num_frames / CLIP_SECONDS, 5), 30)


Kind = Literal["independent", "same_init", "share_noise"]


def frame_levels(chain: Chain, every: int | None = None) -> Chain:
    """Levels of the states to keep: every `every`-th of the chain (default: about a hundred in
    all), and both ends.
    """
    return (*chain[: -1 : every or max(1, len(chain) // FRAMES)], 0)


def fill_rows(sampler: Sampler, batch_size: int, per_init: int | None) -> tuple[Sampler, int]:
    """Samples of an image (`per_init`, None for as many as fit) and in a batch, so that every row
    of `initial_images.png` is full.
    """
    if sampler.initial_images is None:
        return sampler, batch_size
    per_init = per_init or max(1, batch_size // sampler.initial_images.count)
    batch_size = per_init * max(1, min(batch_size // per_init, sampler.initial_images.count))
    images = replace(sampler.initial_images, per_image=per_init)
    return replace(sampler, initial_images=images), batch_size


def sample_set(
    directory: Path,
    sampler: Sampler,
    indices: Sequence[int],
    kind: Kind = "independent",
    every: int | None = None,
    keep_states: bool = False,
    on_step: OnStep | None = None,
) -> None:
    """Draw samples in one batch and write `init.png`, `final.npy`, `final.png` and clips.

    With initial images also `initial_images.png`: in each row an image, its blurred state, and the
    samples that start there; of several classes `classes.png`, a row for each. The clips,
    `process.gif` and `process.mp4`, are optional, and show every `every`-th state (default: about a
    hundred in all); with `keep_states` `samples.npy` has these, too, float32 (states, B, C, H, W).
    """
    directory.mkdir(parents=True, exist_ok=True)
    draw = partial(getattr(sampler, kind), indices)
    final, states, frames = _observed(sampler, draw, every, None, keep_states, on_step)
    arrays = {"final.npy": final} | ({"samples.npy": torch.stack(states)} if keep_states else {})
    for name, array in arrays.items():
        with atomic_write(directory / name) as temporary:
            np.save(temporary, array.numpy())
    save_png(directory / "init.png", states[0])
    if sampler.initial_images is not None:
        columns = len(indices) if kind == "same_init" else sampler.initial_images.per_image
        images = sampler.initial_images.images(sampler.origins(indices[::columns]))
        parts = zip(images[:, None], states[0][::columns, None], final.split(columns), strict=True)
        save_png(
            directory / "initial_images.png",
            torch.cat([part for row in parts for part in row]),
            columns + 2,
        )
    if len(sampler.asked) > 1:
        names, labels = list(sampler.classes), sampler.labels(indices)
        rows = [(names[c], final[labels == c], ()) for c in dict.fromkeys(sampler.asked)]
        with atomic_write(directory / "classes.png") as temporary:
            sheet(rows, max(len(images) for _, images, _ in rows)).save(temporary, "PNG")
    with optional("process.gif"):
        save_gif(directory / "process.gif", frames)
    with optional("process.mp4"):
        save_mp4(directory / "process.mp4", frames)
    save_png(directory / "final.png", final)  # the last, which tells that the set is complete


def _observed(
    sampler: Sampler,
    draw: Callable[[OnStep], torch.Tensor],
    every: int | None = None,
    columns: int | None = None,
    keep_states: bool = False,
    on_step: OnStep | None = None,
) -> tuple[torch.Tensor, list[torch.Tensor], list[np.ndarray]]:
    """Draw samples, and return them with their first state, or all states with `keep_states`, and
    with pictures of the states at `frame_levels`. Shows progress.
    """
    levels = frame_levels(sampler.kernel.chain, every)
    states: list[torch.Tensor] = []
    frames: list[np.ndarray] = []
    with progress_bar(sampler.num_steps, "step", "sampling") as bar:

        def observe(k: int, u_k: torch.Tensor) -> None:
            """Keep the state of a level that is shown."""
            if k in levels:
                frames.append(grid(u_k.float(), columns))
            if k == levels[0] or (keep_states and k in levels):
                states.append(u_k.float().cpu())
            if on_step is not None:
                on_step(k, u_k)
            bar.update(k < levels[0])

        return draw(observe), states, frames


def interpolation_set(
    directory: Path, sampler: Sampler, ends: tuple[int, int], num_points: int
) -> None:
    """Draw a path between two samples and write pictures of it.

    `init_input.png` has the initial states and `interpolation.png` the samples along the path, row
    by row; `base_sample.png` the samples at both ends, `process.mp4` (optional) how all of them
    come about.
    """
    directory.mkdir(parents=True, exist_ok=True)
    columns = min(num_points, INTERPOLATION_COLUMNS)
    draw = partial(sampler.interpolate, ends, num_points)
    points, states, frames = _observed(sampler, draw, columns=columns)
    save_png(directory / "init_input.png", states[0], columns)
    save_png(directory / "base_sample.png", points[[0, -1]])
    save_png(directory / "interpolation.png", points, columns)
    with optional("process.mp4"):
        save_mp4(directory / "process.mp4", frames)
