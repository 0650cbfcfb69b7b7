"""Many samples as single PNG files, continued where an earlier export stopped, and as one array."""

import json
import warnings
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scripts.data.images import MODES, UnreadableImage, channels_first, opened_image
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar, warn
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import Sampler
from scripts.storage.files import atomic_write, exclusive, make_directory, write_text


def export(
    directory: Path,
    sampler: Sampler,
    settings: dict[str, Any],
    num_samples: int,
    batch_size: int,
    npz: bool = False,
) -> None:
    """Write samples 0..num_samples-1 as `000000.png`, ..., `batch_size` at a time: those that are
    not there whole.

    Of several processes each draws so many at a time, and process 0 writes all. `settings`, what
    the images depend on, are kept as `export.json`; `origins.txt` has for each sample the index of
    the image of `sampler.initial_images` that it starts from. npz: `samples_NxHxWxC.npz` with all
    in one array, too. Raises UserError if the directory holds images made otherwise, and while
    another export writes there.
    """
    make_directory(directory, "--export_dir")
    with exclusive(
        directory, f"--export_dir={directory}: another export is writing there; wait for its end"
    ):
        missing = (
            _missing(directory, sampler, settings, num_samples) if distributed.is_main() else []
        )
        missing = distributed.from_main(missing)
        with progress_bar(
            num_samples, "image", "export", initial=num_samples - len(missing)
        ) as bar:
            for start in range(0, len(missing), batch_size * distributed.world_size()):
                indices = missing[start : start + batch_size * distributed.world_size()]
                images = distributed.compute_rows(
                    indices, lambda mine: to_uint8(sampler.independent(mine))
                )
                if distributed.is_main():
                    _write_images(directory, indices, images)
                bar.update(len(indices))
        if distributed.is_main() and sampler.initial_images is not None:
            with atomic_write(directory / "origins.txt") as temporary:
                np.savetxt(temporary, sampler.origins(range(num_samples)), fmt="%d")
        if distributed.is_main() and npz:
            _write_npz(directory, num_samples, sampler.shape)


def _png_shape(shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """(C, H, W) of the files of images: more than 4 channels are one below the other, in grey."""
    channels, height, width = shape
    return shape if channels in MODES else (1, channels * height, width)


def _missing(
    directory: Path, sampler: Sampler, settings: dict[str, Any], num_samples: int
) -> list[int]:
    """Return the samples that are not there, or damaged. Raises UserError as `export` does."""
    _check_export(directory, settings)
    files = [directory / f"{i:06d}.png" for i in range(num_samples)]
    if (held := len({*directory.glob("*.png"), *files})) > num_samples:
        text = f"{directory} holds {held} images, and who reads it will read them all"
        warnings.warn(f"--num_samples={num_samples}: {text}", stacklevel=3)
    shape = _png_shape(sampler.shape)
    missing = [i for i, file in enumerate(files) if not _is_whole(file, shape)]
    if damaged := sum(files[i].exists() for i in missing):
        warn(f"{directory}: {damaged} of {num_samples} images are damaged, and drawn again")
    return missing


def _is_whole(file: Path, shape: tuple[int, int, int]) -> bool:
    """Return whether a file holds an image of this shape (C, H, W), by the checksums in it."""
    with suppress(UnreadableImage), opened_image(file, file.name) as image:
        written = len(image.getbands()), image.height, image.width
        image.verify()
        return written == shape
    return False


def _write_npz(directory: Path, num_samples: int, image_shape: tuple[int, int, int]) -> None:
    """Write the first N PNG files of images (C, H, W) as `arr_0`, uint8 (N, H, W, C), as ADM and
    other evaluators read it.
    """
    channels, *size = image_shape
    shape = num_samples, *size, channels
    path = directory / f"samples_{'x'.join(map(str, shape))}.npz"
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": shape}
        )
        for i in range(shape[0]):
            with Image.open(directory / f"{i:06d}.png") as image:
                pixels = channels_first(np.asarray(image)).reshape(image_shape)
                file.write(pixels.transpose(1, 2, 0).tobytes())


def _write_images(directory: Path, indices: Sequence[int], images: torch.Tensor) -> None:
    channels, height, width = images.shape[1:]
    pixels = images.reshape(-1, *_png_shape((channels, height, width)))
    for index, image in zip(indices, pixels.permute(0, 2, 3, 1).numpy(), strict=True):
        with atomic_write(directory / f"{index:06d}.png", durable=False) as temporary:
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(temporary)


def _check_export(directory: Path, settings: dict[str, Any]) -> None:
    record = directory / "export.json"
    if record.exists():
        try:
            before = dict(json.loads(record.read_text()))
        except (ValueError, TypeError):
            raise UserError(
                f"{record}: damaged; delete this directory, or choose another --export_dir"
            ) from None
        changed = [
            f"{key} was {before.get(key)}, now {settings.get(key)}"
            for key in before | settings
            if before.get(key) != settings.get(key)
        ]
        if changed:
            raise UserError(
                f"--export_dir={directory}: it holds samples made otherwise "
                f"({'; '.join(changed)}); choose another"
            )
    elif any(directory.glob("*.png")):
        raise UserError(
            f"--export_dir={directory}: it holds images that are not an earlier export's; choose "
            "an empty one"
        )
    else:
        write_text(record, json.dumps(settings, indent=2) + "\n")
