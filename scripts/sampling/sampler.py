"""A trained model ready to draw from, and the four kinds of samples."""

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict
from torch.nn.functional import one_hot

from model_code.guidance import conditioned
from model_code.prior import Prior
from model_code.process import CalibrationState, Denoiser, Process, ReverseKernel
from scripts.config.resolve import TRAINING_ONLY, Experiment
from scripts.data.datasets import Split, load_images
from scripts.data.images import fingerprint
from scripts.data.labels import find_classes, require_classes
from scripts.errors import UserError, printable
from scripts.runtime import distributed
from scripts.runtime.device import Precision, resolve_device, to_device
from scripts.runtime.progress import warn_once
from scripts.runtime.randomness import Purpose, stream
from scripts.sampling import editing
from scripts.sampling.bound import bound
from scripts.sampling.choice import Choice, parse_interval
from scripts.sampling.initial_images import (
    DataPrior,
    InitialImages,
    open_initial_images,
    unit_images,
)
from scripts.sampling.reverse import (
    SAMPLERS,
    Draw,
    IndependentNoise,
    OnStep,
    SphericalNoise,
    linear_path,
)
from scripts.storage.checkpoint import TrainedModel, load_trained
from scripts.storage.record import Record

CONFIGURED = Choice()
"""What the configuration says."""


@dataclass(frozen=True)
class Sampler:
    """A trained model with its prior and settings.

    Sample i is a function of (seed, i), whatever batch it is drawn in.
    """

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
    initial_images: InitialImages | None = None
    """What samples start from in place of the images of the prior."""
    steps: str | None = None
    """What --steps said, of which the kernel's chain came."""
    sampler: str = "reverse"
    """A key of `reverse.SAMPLERS`."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Of how many images and in what precision the kernel was measured, if it was."""
    files: dict[str, str] = field(default_factory=dict)
    """Versions of images that samples start from and that are not in the checkpoint, as
    `InitialImages.files`.
    """
    dequantized: bool = True
    """Whether the prior is of dequantised images."""
    classes: Mapping[str, int] = field(default_factory=dict)
    """What the network is told: how many training images each class has, by name; or empty."""
    asked: tuple[int, ...] = ()
    """The classes of samples: sample i is of asked[i % len(asked)]. Without, those of the images
    that they start from, or drawn in the data's proportions."""
    guidance: float = 1.0
    interval: tuple[int, int] = (1, sys.maxsize)
    """Levels at which the network is guided, both included, see `guidance.conditioned`."""

    def __post_init__(self) -> None:
        """Raises UserError for guidance that would do nothing."""
        levels = self.kernel.chain[:-1]
        lowest, highest = self.interval
        if not any(lowest <= k <= highest for k in levels):
            near = f"must hold a level that is visited; {near_levels(levels, lowest)}"
            raise UserError(f"--guidance_interval={lowest},{highest}: {near}")
        images = self.initial_images
        known = self.asked or images is None or images.labels is not None
        if self.guidance != 1 and not known:
            right = "must be 1 where samples start from images whose class is not known"
            raise UserError(f"--guidance={self.guidance:g}: {right}; --class of sample.py says it")

    @property
    def num_steps(self) -> int:
        """Steps of a sample, each with one network call, or two of Heun's method."""
        return len(self.kernel.chain) - 1

    def record(self, trained: TrainedModel) -> Record:
        """All that sample i depends on besides i."""
        config = trained.experiment.config
        settings = config.model.to_dict().items()
        model = {key: value for key, value in settings if f"model.{key}" not in TRAINING_ONLY}
        kernel: dict[str, Any] = {
            "delta": self.kernel.label,
            "chain": self.kernel.chain,
            "prior_std": self.prior_std,
            "kernel_crc32": self.kernel.checksum(),
            **self.calibration,
        }
        if self.steps is not None:
            kernel["steps"] = self.steps
        if self.sampler != "reverse":
            kernel["sampler"] = self.sampler
        initial: dict[str, Any] = {"prior_images": len(self.prior), "shape": self.shape}
        if self.classes:
            names = list(self.classes)
            initial["class"] = [names[label] for label in self.asked]
            kernel |= {"guidance": self.guidance, "guidance_interval": self.interval}
        if self.initial_images is not None:
            initial |= self.initial_images.settings
            initial["per_init"] = self.initial_images.per_image
            initial["from_level"] = self.kernel.chain[0]
        weights = {"checkpoint_step": trained.step, "weights_crc32": trained.weights_crc32}
        record = Record(
            weights=weights | {"model": model},
            kernel=kernel,
            data=initial,
            options={"seed": self.seed},
            precision=self.precision.name,
            files=self.files,
        )
        own: tuple[Split, ...] = ("train", "held_out")
        used = [split for split in own if split in self.files]
        return with_own_images(record, config.data, used, trained.data)

    def independent(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples with their own prior states and noise: (B, C, H, W), about [0, 1], on the CPU."""
        noise = self._noise(indices)
        return self._draw(self._means(indices), noise, noise, on_step, self.labels(indices))

    def same_init(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples that start from the very same state, that of the first index, and differ in the
        noise on the way.

        Raises UserError where there is none on the way: all would be alike.
        """
        first, noise = self._noise(indices[:1]), self._noise(indices)
        *levels, _ = self.kernel.chain[:-1]  # the step to 0 has no noise
        if not any(self.kernel.noise(first(k), k).any() for k in levels):
            why = f"no noise is drawn on the way (delta {self.label}; see --eta, --delta, --steps)"
            raise UserError(f"--same_init: {why}, and all samples would be alike")
        labels = self.labels(indices if self.asked else [indices[0]] * len(indices))
        means = self._means(indices[:1]).expand(len(indices), -1, -1, -1)
        return self._draw(means, first, noise, on_step, labels)

    def share_noise(self, indices: Sequence[int], on_step: OnStep | None = None) -> torch.Tensor:
        """Samples with their own prior means and the noise of the first index.

        Raises UserError where there is one prior mean, as of N(0, I): all would be alike.
        """
        if len(self.prior) == 1:
            why = "there is one initial mean"
            raise UserError(f"--share_noise: {why}, and all samples would be alike")
        noise = self._noise(indices[:1])
        return self._draw(self._means(indices), noise, noise, on_step, self.labels(indices))

    def interpolate(
        self, ends: tuple[int, int], num_points: int, on_step: OnStep | None = None
    ) -> torch.Tensor:
        """`num_points` (at least 2) samples from one index to another: prior means on a line, noise
        on a great circle; the embedding of their classes on a line.

        The first and the last are the samples that `independent(ends)` gives.
        """
        noise = SphericalNoise(self.seed, ends, self.shape, num_points, self.precision.device)
        means, labels = linear_path(self._means(ends), num_points), self.labels(ends)
        if labels is not None and self.classes:
            weights = one_hot(labels, len(self.classes)).float()[:, :, None, None]
            labels = linear_path(weights, num_points)[:, :, 0, 0]
        return self._draw(means, noise, noise, on_step, labels)

    def starting_from(self, initial_images: InitialImages, level: int | None = None) -> "Sampler":
        """The same model with samples that start from these images, blurred to `level`, None for K.

        Raises UserError for a level that is not visited.
        """
        *levels, _ = self.kernel.chain
        k = levels[0] if level is None else level
        if k not in levels:
            near = f"must be a level that is visited; {near_levels(levels, k)}"
            raise UserError(f"--from_level={k}: {near}")
        kernel = self.kernel.starting_at(k)

        def corrupt(images: torch.Tensor) -> torch.Tensor:
            return self.process.mean_state(images.to(self.precision.device), k)

        black = torch.zeros(1, *self.shape)
        if torch.equal(corrupt(black), corrupt(black + 1)):
            needed = "nothing of an image is left there; give a lower one"
            raise UserError(f"--from_level={k}: {needed}")
        label = f"{self.label}_init_{initial_images.settings.get('init')}"
        return replace(
            self,
            prior=DataPrior(initial_images.count, initial_images.images, corrupt),
            kernel=kernel,
            label=label if k == levels[0] else f"{label}_from_{k}",
            prior_std=kernel.prior_std if self.prior_std > 0 else 0.0,
            initial_images=initial_images,
            files=initial_images.files,
        )

    def from_images(
        self,
        images: torch.Tensor,
        per_image: int = 1,
        level: int | None = None,
        on_step: OnStep | None = None,
    ) -> torch.Tensor:
        """`per_image` (M) samples from each of images (S, C, H, W) in [0, 1], blurred to `level`
        (None: K) and made again.

        (S, M, C, H, W), about [0, 1], on the CPU; they differ in the noise. Sample (s, m) has the
        noise of index s M + m.
        """
        initial_images = InitialImages(images.__getitem__, len(images), per_image)
        sampler = self.starting_from(initial_images, level)
        samples = sampler.independent(range(len(images) * per_image), on_step)
        return samples.unflatten(0, (len(images), per_image))

    # Methods whose first argument is the sampler, each in a file of its own.
    super_resolve = editing.super_resolve
    inpaint = editing.inpaint
    edit = editing.edit
    bound = bound

    def origins(self, indices: Sequence[int]) -> list[int]:
        """Which of the prior's images each sample starts from: drawn uniformly, or one of
        `initial_images` after the other.
        """
        if self.initial_images is not None:
            return self.initial_images.origins(self.seed, indices)
        rows = np.arange(len(self.prior))
        if self.asked and self.prior.labels is not None:
            labels = self.prior.labels.numpy()
            of_class = [rows[labels == label] for label in self.asked]
        else:
            of_class = [rows]
        origins = []
        for i in indices:
            images = of_class[i % len(of_class)]
            drawn = stream(self.seed, Purpose.SAMPLE_PRIOR, position=i).integers(len(images))
            origins.append(int(images[drawn]))
        return origins

    def labels(self, indices: Sequence[int]) -> torch.Tensor | None:
        """The class of each sample, int64 (n,); None where images that they start from have none.

        Class-conditional networks are told them.
        """
        images = self.initial_images
        if images is not None and images.labels is not None:
            return torch.from_numpy(images.labels[self.origins(indices)])
        if self.asked:
            return torch.tensor([self.asked[i % len(self.asked)] for i in indices])
        if self.prior.labels is not None:
            return self.prior.labels[self.origins(indices)]
        if images is not None or not self.classes:
            return None
        share = np.array(list(self.classes.values())) / sum(self.classes.values())
        streams = (stream(self.seed, Purpose.SAMPLE_CLASS, position=i) for i in indices)
        return torch.tensor([int(each.choice(len(share), p=share)) for each in streams])

    @property
    def tells_classes(self) -> bool:
        """Whether the network is told classes: with a guidance of 0 at all levels it is not."""
        guided = self.guidance != 0 or self.interval != (1, self.process.K)
        return bool(self.classes) and guided

    def denoiser(self, labels: torch.Tensor | None) -> Denoiser:
        """The network, told classes or what each counts for, see `UNet.forward`, and guided."""
        if labels is None or not self.tells_classes:
            return self.model
        y = labels.to(self.precision.device)
        return conditioned(self.model, y, self.guidance, self.interval)

    def _noise(self, indices: Sequence[int]) -> IndependentNoise:
        return IndependentNoise(self.seed, indices, self.shape, self.precision.device)

    def _means(self, indices: Sequence[int]) -> torch.Tensor:
        return self.prior.means(torch.tensor(self.origins(indices)))

    def _draw(
        self,
        means: torch.Tensor,
        prior_draw: Draw,
        draw: Draw,
        on_step: OnStep | None,
        labels: torch.Tensor | None,
    ) -> torch.Tensor:
        first, to_images = self.kernel.chain[0], self.process.to_images
        u_K = means.to(self.precision.device) + self.prior_std * prior_draw(self.process.K + 1)

        def observe(k: int, state: torch.Tensor) -> None:
            if on_step is not None:
                on_step(k, to_images(state))

        observe(first, u_K)
        with torch.no_grad(), self.precision.autocast():
            run: Any = SAMPLERS[self.sampler]
            model = self.denoiser(labels)
            return to_images(run(self.process, model, u_K, self.kernel, draw, observe)).cpu()


def near_levels(levels: Sequence[int], k: int) -> str:
    """The two levels nearest to k, for messages."""
    near = sorted(sorted(levels, key=lambda j: abs(j - k))[:2])
    return f"near it {' and '.join(map(str, near))}"


def make_sampler(
    experiment: Experiment,
    model: Denoiser,
    prior: Prior,
    precision: Precision,
    calibration: CalibrationState,
    *,
    choice: Choice = CONFIGURED,
    seed: int | None = None,
    scoring: bool = False,
    classes: Mapping[str, int] | None = None,
) -> Sampler:
    """The sampler for a model; `calibration` is what was measured of it, `classes` what it is told,
    see `Sampler.classes`, other arguments as of `load_sampler`.

    scoring: samples are for scores, for which the release adds noise to the prior states, as it
    does not for pictures.
    """
    process = experiment.process.to(precision.device)
    kernel = choice.kernel(process, experiment.config.model.sampling_noise, calibration)
    made_from: dict[str, Any] = {}
    if calibration is not None and getattr(kernel, "fit", None) is not None:
        # Older ones lack them.
        num_images, computed_in = calibration.get("num_images"), calibration.get("computed_in")
        made_from["calibration_images"] = None if num_images is None else int(num_images)
        dtype = None if computed_in is None else str(computed_in.dtype).removeprefix("torch.")
        made_from["calibration_precision"] = dtype
    asked = asked_classes(choice, classes or {})
    interval = parse_interval(choice.guidance_interval, process.K)
    guidance = 1.0 if choice.guidance is None else choice.guidance
    if guidance != 1 and made_from:
        print(f"guidance {guidance:g}: reverse kernels measured at guidance 1 serve every guidance")
    return Sampler(
        model=model,
        process=process,
        prior=prior,
        kernel=kernel,
        label=choice.label(kernel),
        prior_std=kernel.prior_std if process.protocol == "paper" or scoring else 0.0,
        seed=experiment.config.seed if seed is None else seed,
        steps=choice.steps,
        sampler=choice.sampler,
        calibration=made_from,
        precision=precision,
        shape=experiment.shape,
        classes=classes or {},
        asked=asked,
        guidance=guidance,
        interval=interval,
    )


def asked_classes(choice: Choice, classes: Mapping[str, int]) -> tuple[int, ...]:
    """The classes that samples of a network that is told these are asked to be of.

    Raises UserError for those that do not exist, and for a network that is told none.
    """
    for flag, value in (("class", choice.classes), ("guidance", choice.guidance)):
        chooses_images = flag == "class" and choice.init in ("train", "held_out")
        if value is not None and not classes and not chooses_images:
            here = "the network is not told classes (config.model.class_conditional = False)"
            other = "; --init=train or held_out chooses images of one" if flag == "class" else ""
            raise UserError(f"--{flag}={value}: {here}{other}")
    if choice.classes is None or not classes:
        return ()
    asked, counts = find_classes(choice.classes, list(classes)), list(classes.values())
    if empty := [label for label in asked if counts[label] == 0]:
        name = printable(list(classes)[empty[0]])
        raise UserError(f"--class={choice.classes}: no training image was of {name}")
    return asked


def load_sampler(
    workdir: Path | str,
    checkpoint: int = 0,
    *,
    config: ConfigDict | None = None,
    choice: Choice = CONFIGURED,
    seed: int | None = None,
    precision: str = "float32",
    from_data: bool = False,
    scoring: bool = False,
) -> tuple[Sampler, TrainedModel]:
    """The sampler for a checkpoint (0: the newest) of a run directory, a published model or a
    checkpoint's file, and where it came from.

    config: None for the checkpoint's own; `choice` and `seed` default to the configuration's;
    precision: of the network, "auto" is the fastest here. Prior states come from `choice.init` or
    the checkpoint, or from the training images with `from_data` and where it holds none, as those
    of the release. Raises UserError for whatever is missing or does not fit.
    """
    trained = load_trained(config, workdir, checkpoint)
    config, process = trained.experiment.config, trained.experiment.process
    device = resolve_device(config.device)
    computed_in = Precision.named(device, precision)
    initial_images = None
    if choice.init is not None:
        initial_images = open_initial_images(
            choice.init, config.data, choice.per_init or 1, choice.classes
        )
    if choice.init in ("train", "held_out") or from_data:
        split: Split = "held_out" if choice.init == "held_out" else "train"
        require_classes(load_images(config.data, split), trained.classes, config.data)
    if len(set(distributed.gather(trained.weights_crc32))) > 1:
        # A training that continues replaces the newest.
        changed = "changed while it was read; --checkpoint=n names one that no training replaces"
        raise UserError(f"{trained.path}: {changed}")
    files: dict[str, str] = {}
    if initial_images is not None:
        # `starting_from` blurs them.
        prior: Prior = DataPrior(initial_images.count, initial_images.images, lambda u: u)
    elif trained.prior is None or from_data:
        files["train"] = load_images(config.data, "train").version()
        prior = data_prior(config, process)
        if trained.prior is None:
            made = f"initial states are made from the images of {config.data.dataset}"
            print(f"{trained.path} holds no prior: {made}")
    else:
        prior = trained.prior
    model = to_device(
        trained.model, computed_in.device, config.compile, autocast=computed_in.enabled
    )
    calibration = None
    if choice.uses_calibration(config.model.sampling_noise, process):
        calibration = trained.calibration()
    sampler = make_sampler(
        trained.experiment,
        model,
        prior,
        computed_in,
        calibration,
        choice=choice,
        seed=seed,
        scoring=scoring,
        classes=trained.classes,
    )
    if initial_images is not None:
        sampler = sampler.starting_from(initial_images, choice.from_level)
    else:
        sampler = replace(sampler, files=files)
    return replace(sampler, dequantized=trained.dequantized), trained


def with_own_images(
    record: Record, data: ConfigDict, splits: Collection[Split], known: Mapping[str, int]
) -> Record:
    """The record of what reads these splits of the configuration's data set, too.

    known: the fingerprint in the checkpoint, `TrainedModel.data`. Where images are others, a
    warning and the record say so.
    """
    for split in splits:
        source = load_images(data, split)
        record = record.add(files={split: source.version()})
        now = fingerprint(source)
        prefix = "held_out_" if split == "held_out" else ""
        changed = [key for key in now if known.get(prefix + key, now[key]) != now[key]]
        if not changed:
            continue
        number = f"{now['num_images']} images, {known.get(prefix + 'num_images')} then"
        parts = ("names", "pixels", "labels")
        words = {"num_images": number} | {f"{part}_crc32": f"other {part}" for part in parts}
        what = ", ".join(words[key] for key in changed)
        warn_once(
            f"the {split} images of {data.dataset!r} are not those of the checkpoint's run: {what}"
        )
        others = {*record.data.get("other_images", ()), split}
        record = record.add(data={"other_images": sorted(others)})
    return record


def data_prior(config: ConfigDict, process: Process) -> DataPrior:
    """Prior states made from the training images when asked for.

    As in `OrderedBatches`, with `data.random_flip` state 2i is of image i and state 2i + 1 of its
    mirror image.
    """
    source = load_images(config.data, "train")
    copies = 2 if config.data.random_flip else 1
    read = unit_images(source, config.data)

    def images(indices: list[int]) -> torch.Tensor:
        mirrored = torch.tensor(indices)[:, None, None, None] % copies == 1
        originals = read([i // copies for i in indices])
        return torch.where(mirrored, originals.flip(-1), originals)

    def corrupt(images: torch.Tensor) -> torch.Tensor:
        return process.build_prior([images]).means(torch.arange(len(images)))

    labels = None
    if config.model.class_conditional and source.labels is not None:
        labels = torch.from_numpy(source.labels).repeat_interleave(copies)
    return DataPrior(len(source) * copies, images, corrupt, labels)
