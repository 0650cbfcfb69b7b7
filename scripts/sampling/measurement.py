"""Measuring the spectrum of the sampling noise: the errors of a trained network by level and ring of frequencies."""

from collections.abc import Mapping

import numpy as np
import torch

from model_code.process import Denoiser, Process
from scripts.data.images import ImageSource
from scripts.data.loader import first_readable, to_unit_range
from scripts.runtime import distributed
from scripts.runtime.device import Precision
from scripts.runtime.randomness import Purpose, normal_by_index

ENOUGH_IMAGES = 48
"""From so many images on, a level's errors are precise to a few per cent in the smallest rings, and are not smoothed."""


def images_to_measure(source: ImageSource, num_images: int, dequantized: bool) -> torch.Tensor:
    """`num_images` training images, spread evenly over the source: float32 (n, C, H, W) in [0, 1]."""
    wanted = np.linspace(0, len(source) - 1, min(num_images, len(source))).astype(int)
    pixels = np.stack([first_readable(source, int(i), [])[1] for i in wanted])
    return to_unit_range(pixels, 0.5 if dequantized else None)


@torch.no_grad()
def measure_noise(
    process: Process, model: Denoiser, precision: Precision, images: torch.Tensor, seed: int, batch_size: int
) -> Mapping[str, torch.Tensor] | None:
    """What `Process.sampling_noise("spectral", ...)` needs, or None for a process without such noise.

    images: of the training set (n, C, H, W) in [0, 1]. The model, in eval mode, sees each image once at each level, with noise
    that is a function of (seed, level, image). Of several processes each takes some levels.
    """

    def mean_errors(levels: range) -> torch.Tensor:
        """`Process.errors` at each level, averaged over images: (levels, S)."""
        rows = []
        for level in levels:
            total = torch.zeros(())
            for indices in torch.arange(len(images)).split(batch_size):
                k = torch.full((len(indices),), level, device=precision.device)
                places = [(level, int(i)) for i in indices]
                eps = normal_by_index(precision.device, seed, Purpose.SPECTRUM_NOISE, places, tuple(images.shape[1:]))
                with precision.autocast():
                    errors = process.errors(model, images[indices].to(precision.device), k, eps)
                total = total + errors.sum(0).cpu()
            rows.append(total / len(images))
        return torch.stack(rows)

    measured = distributed.compute_rows(range(1, process.K + 1), mean_errors)
    if len(images) < ENOUGH_IMAGES and process.K > 2:
        # Errors change slowly from level to level, except at k = 1, where sharp images are predicted.
        padded = torch.cat([measured[1:2], measured[1:], measured[-1:]])
        measured[1:] = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return process.measured_noise(torch.cat([torch.zeros_like(measured[:1]), measured]))
