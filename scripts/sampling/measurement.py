"""Measuring what reverse kernels are made from: moments of a trained network's output, by level."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from model_code.process import Denoiser, Process
from scripts.data.images import ImageSource
from scripts.data.loader import first_readable, to_unit_range
from scripts.runtime import distributed
from scripts.runtime.device import Precision
from scripts.runtime.randomness import Purpose, normal_by_index


def images_to_measure(source: ImageSource, num_images: int, dequantized: bool) -> torch.Tensor:
    """`num_images` training images, spread evenly over the source: float32 (n, C, H, W) in [0, 1]."""
    wanted = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int)
    pixels = np.stack([first_readable(source, int(i), [])[1] for i in wanted])
    return to_unit_range(pixels, 0.5 if dequantized else None)


@torch.no_grad()
def calibrate(
    process: Process,
    model: Denoiser,
    precision: Precision,
    images: torch.Tensor,
    seed: int,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
) -> Mapping[str, torch.Tensor] | None:
    """What `Process.sampling_noise("calibrated", ...)` needs, or None for a process with nothing to measure.

    images: of the training set (n, C, H, W) in [0, 1]. The model, in eval mode, sees each image once at each level of the
    chain, with noise that is a function of (seed, level, image). Of several processes each takes some levels.
    `stop` is called after each level; the result is None if it returned True in any process.
    """
    if not process.calibrates:
        return None

    def sums(levels: list[int]) -> torch.Tensor:
        """`Process.moments` at each level, summed over images: (levels, S)."""
        rows = []
        for level in levels:
            batches = []
            for indices in torch.arange(len(images)).split(batch_size):
                k = torch.full((len(indices),), level, device=precision.device)
                places = [(level, int(i)) for i in indices]
                eps = normal_by_index(precision.device, seed, Purpose.SPECTRUM_NOISE, places, tuple(images.shape[1:]))
                with precision.autocast():
                    batches.append(process.moments(model, images[indices].to(precision.device), k, eps, len(images)))
            rows.append(torch.stack(batches).sum(0))
            if stop():
                break
        return torch.stack(rows)

    levels = list(process.chain[:-1])
    measured = distributed.compute_rows(levels, sums)
    if len(measured) < len(levels):
        return None
    rows = measured.new_zeros(process.K + 1, measured.shape[1]).index_copy_(0, torch.tensor(levels), measured)
    # An empty tensor, as calibrations are tensors, wherever they are kept.
    computed_in = {"computed_in": torch.empty(0, dtype=precision.dtype)}
    return {**process.calibration(rows, len(images)), **computed_in}
