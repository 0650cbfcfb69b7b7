"""Sets of samples: the four kinds drawn from a trained model, and the files that show them."""

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from ml_collections import ConfigDict
from PIL import Image

from model_code import build_blur
from model_code.process import Denoiser
from scripts import distributed
from scripts.checkpoint import TrainedModel, load_trained
from scripts.config import validate
from scripts.data.datasets import load_images
from scripts.device import Precision, to_device
from scripts.errors import UserError
from scripts.io import make_directory, replacing
from scripts.progress import progress_bar
from scripts.sampling import output as visuals
from scripts.sampling.reverse import (
    DataPrior,
    IndependentNoise,
    Noise,
    OnStep,
    Prior,
    SharedNoise,
    SphericalNoise,
    linear_path,
    prior_means,
    reverse_process,
)

FRAMES = 100
"""Roughly how many states of the process are kept for pictures, unless asked otherwise."""
INTERPOLATION_COLUMNS = 10


def sampling_delta(config: ConfigDict) -> float:
    """The sampling noise that a configuration asks for, a standard deviation like its sigma."""
    return config.model.delta_over_sigma * config.model.sigma


@dataclass(frozen=True)
class Sampler:
    """A trained model with its prior and settings. Sample i is a function of (seed, i), whatever batch it is drawn in."""

    model: Denoiser
    """On the device to compute on, in eval mode."""
    prior: Prior
    K: int
    delta: float
    """Sampling noise, a standard deviation."""
    prior_delta: float
    """Noise on the prior states; the paper's is delta."""
    seed: int
    precision: Precision
    shape: tuple[int, int, int]
    """(C, H, W) of an image."""

    @classmethod
    def from_config(
        cls, config: ConfigDict, model: Denoiser, prior: Prior, device: torch.device, delta: float | None, seed: int | None
    ) -> "Sampler":
        """With K, precision and image shape as `config` says, and `delta` and `seed` too where they are None."""
        delta = sampling_delta(config) if delta is None else delta
        return cls(
            model=model,
            prior=prior,
            K=config.model.K,
            delta=delta,
            # The release starts from blurred images without noise.
            prior_delta=0.0 if config.model.protocol == "released" else delta,
            seed=config.seed if seed is None else seed,
            precision=Precision.of(config, device),
            shape=(config.data.num_channels, config.data.image_size, config.data.image_size),
        )

    def independent(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples with their own prior states and noise: (B, C, H, W), about [0, 1], on the CPU."""
        noise = IndependentNoise(self.seed, indices, self.shape)
        return self._draw(self._prior_states(indices, noise), noise, on_step)

    def same_init(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples that start from the very same state, that of the first index, and differ in the noise on the way."""
        u_K = self._prior_states(indices[:1], IndependentNoise(self.seed, indices[:1], self.shape))
        return self._draw(u_K.repeat(len(indices), 1, 1, 1), IndependentNoise(self.seed, indices, self.shape), on_step)

    def share_noise(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples with their own prior means and the noise of the first index."""
        noise = SharedNoise(self.seed, indices[0], self.shape, len(indices))
        return self._draw(self._prior_states(indices, noise), noise, on_step)

    def interpolate(self, ends: tuple[int, int], num_points: int, on_step: OnStep | None = None) -> torch.Tensor:
        """`num_points` (at least 2) samples from one index to another: prior means on a line, noise on a great circle.

        The first and the last are the samples that `independent(ends)` gives.
        """
        noise = SphericalNoise(self.seed, ends, self.shape, num_points)
        means = linear_path(prior_means(self.prior, self.seed, ends), num_points)
        return self._draw(means + self.prior_delta * noise(self.K + 1), noise, on_step)

    def _prior_states(self, indices: Sequence[int], noise: Noise) -> torch.Tensor:
        return prior_means(self.prior, self.seed, indices) + self.prior_delta * noise(self.K + 1)

    def _draw(self, u_K: torch.Tensor, noise: Noise, on_step: OnStep | None) -> torch.Tensor:
        u_K = u_K.to(self.precision.device)
        if on_step is not None:
            on_step(self.K, u_K)
        with self.precision.autocast():
            return reverse_process(self.model, u_K, self.K, self.delta, noise, on_step).cpu()


def load_sampler(
    config: ConfigDict,
    workdir: Path,
    checkpoint: int,
    *,
    delta: float | None = None,
    seed: int | None = None,
    from_data: bool | None = False,
) -> tuple[Sampler, TrainedModel]:
    """The sampler for a checkpoint (0: the newest) of a run, and where it came from.

    `delta` and `seed` default to the config's. Prior states come from the checkpoint's bank or, with `from_data`, from the
    training images; None takes these only where there is no bank. Raises UserError for whatever is missing or does not fit.
    """
    validate(config)
    device = distributed.device(config.device)
    trained = load_trained(config, workdir, checkpoint)
    require_same_weights(trained)
    prior: Prior
    if from_data or (from_data is None and trained.prior is None):
        prior = DataPrior(load_images(config.data, "train"), build_blur(config), config.data.uniform_dequantization)
    elif trained.prior is None:
        raise UserError(f"{trained.path} has no prior bank, as the release's files have none: use --prior=data")
    else:
        prior = trained.prior
    model = to_device(trained.model, device, config.compile)
    return Sampler.from_config(config, model, prior, device, delta, seed), trained


Kind = Literal["independent", "same_init", "share_noise"]


def frame_levels(K: int, every: int) -> list[int]:
    """Levels of the states to keep, from K down to 0: every `every`-th step, and both ends."""
    return sorted({*range(K, 0, -every), 0}, reverse=True)


class StateRecorder:
    """An `on_step` that writes the states of `levels` to a .npy file as they come, so memory does not grow with K.

    The file is float32 (len(levels), B, C, H, W).
    """

    def __init__(self, path: Path, levels: Sequence[int], batch_shape: tuple[int, ...]) -> None:
        self.row = {level: row for row, level in enumerate(levels)}
        self.states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(len(levels), *batch_shape))
        with path.open("r+b") as file:
            # A full disk is an error here; without its space on disk, a write to the memory map would end the process.
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)

    def __call__(self, k: int, u_k: torch.Tensor) -> None:
        if k in self.row:
            self.states[self.row[k]] = u_k.float().cpu().numpy()


def sample_set(
    directory: Path,
    sampler: Sampler,
    indices: Sequence[int],
    kind: Kind = "independent",
    every: int | None = None,
    on_step: OnStep | None = None,
) -> None:
    """Draw samples in one batch and write `samples.npy`, `init.png`, `final.png`, `final.npy`, `process.gif`, `process.mp4`.

    `samples.npy` holds every `every`-th state (default: about a hundred in all), float32 (states, B, C, H, W).
    """
    make_directory(directory, "output directory")
    levels = frame_levels(sampler.K, every or max(1, sampler.K // FRAMES))
    with replacing(directory / "samples.npy") as temporary, progress_bar(sampler.K, "step", "sampling") as bar:
        recorder = StateRecorder(temporary, levels, (len(indices), *sampler.shape))

        def observe(k: int, u_k: torch.Tensor) -> None:
            recorder(k, u_k)
            if on_step is not None:
                on_step(k, u_k)
            bar.update(k < sampler.K)

        final = getattr(sampler, kind)(indices, observe)
        recorder.states.flush()
    with replacing(directory / "final.npy") as temporary:
        np.save(temporary, final.numpy())
    visuals.save_png(directory / "init.png", torch.from_numpy(recorder.states[0]))
    visuals.save_png(directory / "final.png", final)
    frames = [visuals.grid(torch.from_numpy(state)) for state in recorder.states]
    visuals.save_gif(directory / "process.gif", frames)
    visuals.save_mp4(directory / "process.mp4", frames)


def interpolation_set(directory: Path, sampler: Sampler, ends: tuple[int, int], num_points: int) -> None:
    """Draw a path between two samples and write pictures of it.

    `init_input.png` has the initial states and `interpolation.png` the samples along the path, row by row;
    `base_sample.png` the samples at both ends, `process.mp4` how all of them come about.
    """
    make_directory(directory, "output directory")
    levels = set(frame_levels(sampler.K, max(1, sampler.K // FRAMES)))
    columns = min(num_points, INTERPOLATION_COLUMNS)
    frames: list[np.ndarray] = []
    with progress_bar(sampler.K, "step", "sampling") as bar:

        def observe(k: int, u_k: torch.Tensor) -> None:
            if k == sampler.K:
                visuals.save_png(directory / "init_input.png", u_k.cpu(), columns)
            if k in levels:
                frames.append(visuals.grid(u_k.cpu(), columns))
            bar.update(k < sampler.K)

        points = sampler.interpolate(ends, num_points, observe)
    visuals.save_png(directory / "base_sample.png", points[[0, -1]])
    visuals.save_png(directory / "interpolation.png", points, columns)
    visuals.save_mp4(directory / "process.mp4", frames)


def export(directory: Path, sampler: Sampler, trained: TrainedModel, num_samples: int, batch_size: int) -> None:
    """Write samples 0..num_samples-1 as `000000.png`, ..., `batch_size` at a time: those that are not there yet.

    Of several processes each draws so many at a time, and process 0 writes all. What the images depend on is kept as
    `export.json`. Raises UserError if the directory holds images made otherwise.
    """
    settings = {
        "checkpoint_step": trained.step,
        "weights_crc32": weights_checksum(trained.model),
        "seed": sampler.seed,
        "delta": sampler.delta,
        "prior_delta": sampler.prior_delta,
        "prior_images": len(sampler.prior),
        "precision": sampler.precision.name,
    }
    missing: list[int] = []
    if distributed.is_main():
        make_directory(directory, "--export_dir")
        _check_export(directory, settings)
        missing = [i for i in range(num_samples) if not (directory / f"{i:06d}.png").exists()]
    missing = distributed.from_main(missing)
    with progress_bar(num_samples, "image", "export", initial=num_samples - len(missing)) as bar:
        for start in range(0, len(missing), batch_size * distributed.world_size()):
            indices = missing[start : start + batch_size * distributed.world_size()]
            images = distributed.compute_rows(indices, lambda mine: visuals.to_uint8(sampler.independent(mine)))
            if distributed.is_main():
                _write_images(directory, indices, images)
            bar.update(len(indices))


def _write_images(directory: Path, indices: Sequence[int], images: torch.Tensor) -> None:
    for index, image in zip(indices, images.permute(0, 2, 3, 1).numpy(), strict=True):
        with replacing(directory / f"{index:06d}.png", durable=False) as temporary:
            Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(temporary)


def _check_export(directory: Path, settings: dict[str, object]) -> None:
    record = directory / "export.json"
    if record.exists():
        try:
            before = dict(json.loads(record.read_text()))
        except (ValueError, TypeError):
            raise UserError(f"{record}: damaged; delete this directory, or choose another --export_dir") from None
        changed = [f"{key} was {before.get(key)}, now {value}" for key, value in settings.items() if before.get(key) != value]
        if changed:
            raise UserError(f"--export_dir={directory}: it holds samples made otherwise ({'; '.join(changed)}); choose another")
    elif any(directory.glob("*.png")):
        raise UserError(f"--export_dir={directory}: it holds images that are not an earlier export's; choose an empty one")
    else:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(settings, indent=2) + "\n")


def require_same_weights(trained: TrainedModel) -> None:
    """Raise UserError if processes have read different checkpoints: a training that goes on replaces the newest."""
    if distributed.world_size() > 1 and len(set(distributed.gather(weights_checksum(trained.model)))) > 1:
        raise UserError(f"{trained.path}: changed while it was read; --checkpoint=n names one that no training replaces")


def weights_checksum(model: torch.nn.Module) -> int:
    """A number that tells one set of weights from another."""
    checksum = 0
    for weight in model.parameters():
        checksum = zlib.crc32(weight.detach().cpu().numpy().tobytes(), checksum)
    return checksum
