"""Calibration of a trained network: moments of its output by level, for reverse kernels."""

from collections.abc import Callable

import torch
from ml_collections import ConfigDict

from model_code.calibration import calibration_state, level_state, measured_bins, moments
from model_code.gaussian import GaussianProcess
from model_code.guidance import conditioned
from model_code.process import Denoiser, at_level
from scripts.data.images import ImageSource, spread_evenly
from scripts.data.loader import readable_batch
from scripts.runtime import distributed
from scripts.runtime.device import Precision
from scripts.runtime.randomness import Purpose, normal_by_index


def calibration_images(
    source: ImageSource, num_images: int, config: ConfigDict
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return `num_images` training images, evenly spread, float32 (n, C, H, W) in [0, 1], and their
    classes (n,) if the network is told them.
    """
    batch = readable_batch(source, spread_evenly(len(source), num_images), config.data)
    return batch.images, batch.labels if config.model.class_conditional else None


@torch.no_grad()
def calibrate(
    process: GaussianProcess,
    model: Denoiser,
    precision: Precision,
    images: torch.Tensor,
    seed: int,
    batch_size: int,
    stop: Callable[[], bool] = lambda: False,
    labels: torch.Tensor | None = None,
) -> dict[str, torch.Tensor] | None:
    """What `GaussianProcess.reverse_kernel("calibrated", ...)` needs.

    images: of the training set (n, C, H, W) in [0, 1]. The model, in eval mode, sees each image
    once at each level of the chain, with noise that is a function of (seed, level, image); a
    class-conditional one is told their labels (n,), without guidance. Of
    several processes each takes some levels. `stop` is called after each level; the result is None
    if it returned True in any process.
    """
    levels, groups = process.chain[:-1], measured_bins(process, len(images))
    mine: dict[int, dict[str, torch.Tensor]] = {}
    for k in levels[distributed.rank() :: distributed.world_size()]:
        sums = torch.zeros(())
        for indices in torch.arange(len(images)).split(batch_size):
            u0 = images[indices].to(precision.device)
            levels_of_batch = at_level(k, u0)
            places = [(k, int(i)) for i in indices]
            shape = tuple(images.shape[1:])
            eps = normal_by_index(precision.device, seed, Purpose.SPECTRUM_NOISE, places, shape)
            z, _ = process.corrupt(u0, levels_of_batch, eps)
            told = model
            if labels is not None:
                told = conditioned(model, labels[indices].to(precision.device))
            with precision.autocast():
                F = told(z, levels_of_batch)
            sums = sums + moments(process, u0, z, F, levels_of_batch).cpu()
        mine[k] = level_state(process, groups, sums, k, len(images))
        if stop():
            break
    every = {k: state for part in distributed.gather(mine) for k, state in part.items()}
    if len(every) < len(levels):
        return None
    # An empty tensor, as calibrations are tensors, wherever they are stored.
    computed_in = {"computed_in": torch.empty(0, dtype=precision.dtype)}
    return calibration_state(process, groups, every, len(images)) | computed_in
