"""The pictures that sample.py makes from pictures, shown beside what they come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import ImageOps

from scripts.config.flags import Values
from scripts.data.datasets import open_images
from scripts.data.images import (
    UnreadableImage,
    checksum,
    checksums,
    list_images,
    opened_image,
)
from scripts.data.loader import to_unit_range
from scripts.errors import UserError
from scripts.sampling import editing
from scripts.sampling.output import as_colours, own_directory, save_png, to_uint8
from scripts.sampling.sampler import Sampler
from scripts.storage.files import atomic_write


def make_from_pictures(
    flags: Values, sampler: Sampler, base: Path, settings: dict[str, Any], data: ConfigDict
) -> Path:
    """Do what --super_resolve, --inpaint or --edit says; the path of the picture of all.

    data: config.data, as which they are read.

    Beside it, samples.npy, float32 (S, M, C, H, W), and the first sample of each as PNG. Raises
    UserError for pictures that do not fit.
    """
    per_init = flags.per_init or 4
    if flags.super_resolve:
        name = "super_resolve"
        images = read_pictures(flags.super_resolve, "--super_resolve", sampler, data=data)
        factor = editing.whole_factor(sampler, images)
        samples = sampler.super_resolve(images, per_init)
        enlarged = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        columns = {"input": enlarged, "bicubic": editing.bicubic(images, factor)}
    elif flags.inpaint:
        name = "inpaint"
        images = read_pictures(flags.inpaint, "--inpaint", sampler, sampler.shape, data)
        unknown = read_pictures(flags.mask, "--mask", sampler, data=data)
        if len(unknown) > 1:
            raise UserError(f"--mask={flags.mask}: {len(unknown)} images, where one is needed")
        settings["mask_crc32"] = checksum(checksums(to_uint8(unknown).numpy()))
        mask = unknown[0].mean(0) > 0.5
        samples = sampler.inpaint(images, mask, per_init)
        masked = torch.where(mask, torch.full_like(images, 0.5), images)
        columns = {"original": images, "masked": masked}
    else:
        name = "edit"
        images = read_pictures(flags.edit, "--edit", sampler, sampler.shape, data)
        blurs = parse_blurs(flags.blur)
        made = [sampler.edit(images, blur, per_init) for blur in blurs]
        samples, columns = torch.cat(made, 1), {"input": images}
        settings["blur"] = blurs
    pictures_crc32 = checksum(checksums(to_uint8(images).numpy()))
    settings |= {"kind": name, "pictures_crc32": pictures_crc32, "per_init": per_init}
    directory = own_directory(base / f"{name}_delta_{sampler.label}", settings)
    headings = [f"sample {i + 1}" for i in range(per_init)]
    if name == "edit":
        # Those of the levels that are visited, which may be others than what was asked for.
        visited = [editing.level_of_blur(sampler, blur)[1] for blur in blurs]
        headings = [f"{blur:.3g} pixels" for blur in visited for _ in range(per_init)]
    with atomic_write(directory / "samples.npy") as temporary:
        np.save(temporary, samples.numpy())
    for i, sample in enumerate(samples[:, 0]):
        save_png(directory / f"{i:05d}.png", sample[None])
    summary = {}
    if name != "edit" and per_init > 1:
        summary = {"mean": samples.mean(1), "4 x their deviation": 4 * samples.std(1, correction=0)}
    path = directory / f"{name}.png"
    shown = [*columns.items(), *zip(headings, samples.unbind(1), strict=True)]
    save_columns(path, [*shown, *summary.items()])
    return path


def read_pictures(
    path: Path,
    flag: str,
    sampler: Sampler,
    shape: tuple[int, int, int] | None = None,
    data: ConfigDict | None = None,
) -> torch.Tensor:
    """Return the picture or the pictures of a folder, float32 (S, C, H, W) in [0, 1]: resized to
    `shape`, or without it at their own size.

    Raises UserError for what cannot be read, or pictures of several sizes.
    """
    if shape is None:
        names = [path / name for name in list_images(path)] if path.is_dir() else [path]
        sizes = set()
        try:
            for name in names:
                with opened_image(name, str(name)) as image:
                    sizes.add(ImageOps.exif_transpose(image).size)
        except UnreadableImage as error:
            raise UserError(f"{flag}={path}: {error}") from None
        if len(sizes) != 1:
            several = ", ".join(f"{width} x {height}" for width, height in sorted(sizes)[:3])
            raise UserError(f"{flag}={path}: must be images of one size, has {several or 'none'}")
        ((width, height),) = sizes
        shape = sampler.shape[0], height, width
    source = open_images(str(path), flag, shape, data)
    return to_unit_range(np.stack([source[i] for i in range(len(source))]))


def parse_blurs(text: str) -> list[float]:
    """Pixels of --blur. Raises UserError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--blur={text}: must be numbers of pixels, with commas") from None


def save_columns(path: Path, columns: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Rows of pictures under headings."""
    count, side = len(columns[0][1]), 1.3
    figure = Figure(figsize=(side * len(columns), side * count + 0.4), layout="constrained")
    grid = figure.subplots(count, len(columns), squeeze=False)
    for place, (heading, images) in enumerate(columns):
        grid[0, place].set_title(heading, fontsize="small")
        for axes, image in zip(grid[:, place], images, strict=True):
            picture = to_uint8(as_colours(image[None]))[0]
            axes.imshow(picture.permute(1, 2, 0), cmap="gray", vmin=0, vmax=255)
            axes.axis("off")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=100)
