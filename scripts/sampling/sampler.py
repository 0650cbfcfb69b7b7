"""A trained model ready to draw from, and the four kinds of samples."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from model_code import build_process
from model_code.kernels import ReverseKernel
from model_code.prior import DataPrior, Prior
from model_code.process import Denoiser, Measured, Process
from scripts.config.checks import validate
from scripts.config.comparison import TRAINING_ONLY
from scripts.data.datasets import load_images
from scripts.data.loader import first_readable, to_unit_range
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.device import Precision, to_device
from scripts.runtime.randomness import STREAM_VERSION, Purpose, stream
from scripts.sampling.choice import Choice
from scripts.sampling.reverse import Draw, IndependentNoise, OnStep, SharedNoise, SphericalNoise, linear_path, reverse_process
from scripts.storage.checkpoint import TrainedModel, load_trained, saved_config

CONFIGURED = Choice()
"""What the configuration says."""


@dataclass(frozen=True)
class Sampler:
    """A trained model with its prior and settings. Sample i is a function of (seed, i), whatever batch it is drawn in."""

    model: Denoiser
    """On the device to compute on, in eval mode."""
    process: Process
    """On the same device."""
    prior: Prior
    kernel: ReverseKernel
    label: str
    """Of kernel and chain, for directories and records."""
    prior_std: float
    """Standard deviation of the noise on the prior's means."""
    seed: int
    precision: Precision
    shape: tuple[int, int, int]
    """(C, H, W) of an image."""

    @property
    def num_steps(self) -> int:
        """Network calls for a sample."""
        return len(self.kernel.chain) - 1

    def settings(self, config: ConfigDict, trained: TrainedModel) -> dict[str, Any]:
        """All that sample i depends on besides i, as plain data.

        Cached features, exports and sweeps are used again only where all of it agrees.
        """
        model = {key: value for key, value in config.model.to_dict().items() if f"model.{key}" not in TRAINING_ONLY}
        return {
            "checkpoint_step": trained.step,
            "weights_crc32": trained.weights_crc32,
            "seed": self.seed,
            "delta": self.kernel.label,
            "chain": list(self.kernel.chain),
            "precision": self.precision.name,
            "prior_images": len(self.prior),
            "shape": list(self.shape),
            "model": json.loads(json.dumps(model)),  # tuples become lists, as they do in files
            "randomness_version": STREAM_VERSION,
            "prior_std": self.prior_std,
            "kernel_crc32": self.kernel.checksum(),
        }

    def independent(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples with their own prior states and noise: (B, C, H, W), about [0, 1], on the CPU."""
        noise = IndependentNoise(self.seed, indices, self.shape, self.precision.device)
        return self._draw(self._means(indices), noise, noise, on_step)

    def same_init(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples that start from the very same state, that of the first index, and differ in the noise on the way."""
        first = SharedNoise(self.seed, indices[0], self.shape, len(indices), self.precision.device)
        noise = IndependentNoise(self.seed, indices, self.shape, self.precision.device)
        return self._draw(self._means(indices[:1]), first, noise, on_step)

    def share_noise(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples with their own prior means and the noise of the first index."""
        noise = SharedNoise(self.seed, indices[0], self.shape, len(indices), self.precision.device)
        return self._draw(self._means(indices), noise, noise, on_step)

    def interpolate(self, ends: tuple[int, int], num_points: int, on_step: OnStep | None = None) -> torch.Tensor:
        """`num_points` (at least 2) samples from one index to another: prior means on a line, noise on a great circle.

        The first and the last are the samples that `independent(ends)` gives.
        """
        noise = SphericalNoise(self.seed, ends, self.shape, num_points, self.precision.device)
        return self._draw(linear_path(self._means(ends), num_points), noise, noise, on_step)

    def _means(self, indices: Sequence[int]) -> torch.Tensor:
        """The prior mean that each sample index starts from, drawn uniformly."""
        chosen = [int(stream(self.seed, Purpose.SAMPLE_PRIOR, position=i).integers(len(self.prior))) for i in indices]
        return self.prior.means(torch.tensor(chosen))

    def _draw(self, means: torch.Tensor, prior_draw: Draw, draw: Draw, on_step: OnStep | None) -> torch.Tensor:
        first, to_images = self.kernel.chain[0], self.process.to_images
        u_K = means.to(self.precision.device) + self.prior_std * prior_draw(self.process.K + 1)

        def observe(k: int, state: torch.Tensor) -> None:
            if on_step is not None:
                on_step(k, to_images(state))

        observe(first, u_K)
        with self.precision.autocast():
            return to_images(reverse_process(self.process, self.model, u_K, self.kernel, draw, observe)).cpu()


def make_sampler(
    config: ConfigDict,
    model: Denoiser,
    process: Process,
    prior: Prior,
    precision: Precision,
    measured: Measured,
    *,
    choice: Choice = CONFIGURED,
    seed: int | None = None,
    scoring: bool = False,
) -> Sampler:
    """The sampler for a model; `measured` is what `Process.calibration` gave for it, other arguments as of `load_sampler`.

    scoring: samples are for scores, for which the release adds noise to the prior states, as it does not for pictures.
    """
    kernel = choice.kernel(process, config, measured)
    return Sampler(
        model=model,
        process=process,
        prior=prior,
        kernel=kernel,
        label=choice.label(kernel),
        prior_std=kernel.prior_std if process.protocol == "paper" or scoring else 0.0,
        seed=config.seed if seed is None else seed,
        precision=precision,
        shape=(config.data.num_channels, config.data.image_size, config.data.image_size),
    )


def load_sampler(
    config: ConfigDict | None,
    workdir: Path,
    checkpoint: int,
    *,
    choice: Choice = CONFIGURED,
    seed: int | None = None,
    precision: str = "float32",
    from_data: bool = False,
    scoring: bool = False,
) -> tuple[Sampler, TrainedModel]:
    """The sampler for a checkpoint (0: the newest) of a run, and where it came from; config None: the checkpoint's own.

    `choice` and `seed` default to the configuration's. Prior states come from the checkpoint, or from the training images with
    `from_data` and where it holds none, as those of the release. Raises UserError for whatever is missing or does not fit.
    """
    config = saved_config(workdir, checkpoint) if config is None else config
    validate(config)
    device = distributed.device(config.device)
    trained = load_trained(config, workdir, checkpoint)
    if distributed.world_size() > 1 and len(set(distributed.gather(trained.weights_crc32))) > 1:
        # A training that goes on replaces the newest.
        raise UserError(f"{trained.path}: changed while it was read; --checkpoint=n names one that no training replaces")
    process = build_process(config)
    prior = trained.prior
    if prior is None or from_data:
        if not from_data:
            print(f"{trained.path} holds no prior: initial states are made from the images of {config.data.dataset}")
        prior = data_prior(config, process)
    computed_in = Precision.named(device, precision)
    model = to_device(trained.model, device, config.compile, autocast=computed_in.enabled)
    measured = trained.measured() if choice.uses_measured(config) else None
    sampler = make_sampler(
        config, model, process.to(device), prior, computed_in, measured, choice=choice, seed=seed, scoring=scoring
    )
    return sampler, trained


def data_prior(config: ConfigDict, process: Process) -> DataPrior:
    """Prior states made from the training images when asked for.

    As in `clean_batches`, with `data.random_flip` state 2i is of image i and state 2i + 1 of its mirror image. An unreadable
    image is replaced by the next readable one, with a warning.
    """
    data, source = config.data, load_images(config.data, "train")
    copies = 2 if data.random_flip else 1

    def images(indices: list[int]) -> torch.Tensor:
        unreadable: list[str] = []
        found = [(first_readable(source, i // copies, unreadable)[1], i % copies) for i in indices]
        if unreadable:
            warnings.warn(f"prior: skipped unreadable images {', '.join(dict.fromkeys(unreadable))}", stacklevel=2)
        pixels = np.stack([image[..., ::-1] if mirrored else image for image, mirrored in found])
        return to_unit_range(pixels, 0.5 if data.uniform_dequantization else None)

    return DataPrior(len(source) * copies, images, process.build_prior)
