"""Scores of a trained model's samples."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts.data.datasets import Split, load_images
from scripts.data.images import checksum, checksums
from scripts.errors import UserError
from scripts.evaluation.distances import Reference
from scripts.evaluation.features import (
    SPLITS,
    Extractor,
    cached_features,
    data_set_images,
    features_of,
)
from scripts.evaluation.metrics import Inputs, Metric
from scripts.evaluation.pixels import PixelInputs, SampleFiles, initial_images
from scripts.evaluation.references import find_reference, first_size, readable_features
from scripts.evaluation.results import Result
from scripts.runtime import distributed
from scripts.runtime.device import resolve_device
from scripts.runtime.progress import warn
from scripts.sampling.choice import Choice
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import Sampler, load_sampler, with_own_images
from scripts.storage.record import Record

PARTS: tuple[Split, ...] = ("train", "held_out")
PER_SEED = 10
"""Samples of each seed where those are compared, unless --per_init says otherwise."""


@dataclass(frozen=True)
class SampleEvaluation:
    """Scores of a checkpoint's samples 0..num_gen-1, as uint8 images, against a reference."""

    config: ConfigDict
    workdir: Path
    cache: Path
    """Where features are kept, so that an interrupted evaluation continues."""
    metrics: Sequence[Metric]
    batch_size: int
    num_gen: int
    reference: str = ""
    """Name of clean-fid statistics or, with dataset_split "custom", of custom ones; path of an .npz
    or of a folder; "" for the configuration's own data set."""
    dataset_split: str = "train"
    make_extractor: Callable[[], Extractor] | None = None
    """Of features, for metrics that need them; it may download or train."""
    k: int = 5
    precision: str = "float32"
    given: SampleFiles | None = None
    """Samples to score instead."""

    def record(self, *, checkpoint: int, choice: Choice, seed: int | None) -> Record:
        """All that scores depend on, known without samples. Raises UserError as the call does."""
        measures = {"measures": [metric.name for metric in self.metrics], "k": self.k}
        return self._prepare(checkpoint, choice, seed)[2].add(metric=measures)

    def __call__(self, *, checkpoint: int, choice: Choice, seed: int | None) -> list[Result]:
        """Scores of a checkpoint (0: the newest); none in processes other than 0, which only sample
        and compute features.

        Compared with the configuration's own training images, the settings of each result include
        the score of held-out images, see `held_out_settings`. Raises UserError for whatever is
        missing or does not fit, before anything is sampled.
        """
        sampler, made_by, record = self._prepare(checkpoint, choice, seed)
        compute = self._of_pixels if self._needs_pixels else self._of_features
        return compute(sampler, made_by, record)

    def _of_pixels(
        self, sampler: Sampler | SampleFiles, made_by: Record, record: Record
    ) -> list[Result]:
        samples = self._generated(
            sampler, made_by.add(metric={"extractor": "pixels"}), torch.Tensor.numpy
        )
        inputs = PixelInputs(samples, sampler, self.config.data)
        results = scores(self.metrics, inputs)  # by all processes
        record = record.add(
            data={"samples_crc32": checksum(checksums(samples))}, reference=inputs.read
        )
        return [
            replace(result, settings=record.row() | result.settings)
            for result in results
            if distributed.is_main()
        ]

    def _of_features(
        self, sampler: Sampler | SampleFiles, made_by: Record, record: Record
    ) -> list[Result]:
        extractor = self._extractor
        if (
            any(metric.name == "fid" for metric in self.metrics)
            and self.num_gen <= extractor.num_features
        ):
            text = f"FID of {self.num_gen} samples in {extractor.num_features} dimensions is far too high; raise --num_gen"
            warnings.warn(text, stacklevel=2)
        if self.given is None or not self.reference:
            made_by = made_by.add(metric=extractor.settings)
            generated = self._generated(
                sampler, made_by, functools.partial(features_of, extractor=extractor)
            )
        else:  # as the reference is read
            native = self.given.native
            generated = readable_features(self.cache, native, extractor, self.batch_size, "samples")
            if len(generated) < len(native):
                raise UserError(
                    f"--samples={self.given.name}: {len(native) - len(generated)} images cannot be "
                    "read"
                )
            generated = generated[: self.num_gen]
        record = record.add(data=self._sizes(sampler, self._reference))
        groups = initial_images(sampler, self.config.data, self.num_gen)
        inputs = Inputs(
            generated["features"],
            self._reference,
            sampler.seed,
            self.k,
            resolve_device(self.config.device),
            groups,
        )
        real: dict[str, dict[str, Any]] = {}
        if not self.reference and self.dataset_split == "train":
            images = data_set_images(self.config.data, "held_out")
            held_out = readable_features(
                self.cache, images, extractor, self.batch_size, "held-out images"
            )["features"]
            real = (
                held_out_settings(self.metrics, inputs, held_out) if distributed.is_main() else {}
            )
        if not distributed.is_main():
            return []
        record = record.add(data={"samples_crc32": checksum(generated["crc32"])})
        return [
            replace(result, settings=record.row() | result.settings | real.get(result.score, {}))
            for result in scores(self.metrics, inputs)
        ]

    @property
    def _needs_pixels(self) -> bool:
        return any(metric.needs in ("pixels", "initial images") for metric in self.metrics)

    @functools.cached_property
    def _extractor(self) -> Extractor:
        assert self.make_extractor is not None
        with distributed.main_first():
            return self.make_extractor()

    @functools.cached_property
    def _reference(self) -> Reference:
        return find_reference(
            self.reference,
            self.dataset_split,
            self.config.data,
            self.cache,
            self.metrics,
            self.k,
            self._extractor,
            self.batch_size,
        )

    def _prepare(
        self, checkpoint: int, choice: Choice, seed: int | None
    ) -> tuple[Sampler | SampleFiles, Record, Record]:
        """Where samples come from, all that they depend on, and what all scores have in common."""
        for metric in self.metrics:
            if self.num_gen < metric.fewest(self.k):
                raise UserError(
                    f"--num_gen={self.num_gen}: {metric.name} needs at least "
                    f"{metric.fewest(self.k)} samples"
                )
        if self.given is not None:
            if self.num_gen > (found := len(self.given.images)):
                raise UserError(
                    f"--num_gen={self.num_gen}: --samples={self.given.name} has {found} images"
                )
            sampler: Sampler | SampleFiles = self.given
            made_by, known = self.given.record(), dict[str, int]()
        else:
            if any(metric.needs == "initial images" for metric in self.metrics):
                choice = self._by_seed(choice)
            sampler, made_by, known = self._sampler(checkpoint, choice, seed)
        record = made_by.add(options={"num_gen": self.num_gen})
        if self._needs_pixels:
            for split in PARTS:  # before anything is sampled
                if len(load_images(self.config.data, split)) < 2:
                    raise UserError(
                        f"{self.config.data.dataset}: there is one {split} image, where this mode "
                        "needs at least 2"
                    )
            reference = {"reference": f"{self.config.data.dataset} train"}
            record = record.add(metric={"extractor": "pixels"}, reference=reference)
            return sampler, made_by, with_own_images(record, self.config.data, PARTS, known)
        against = self._reference
        record = record.add(
            reference={
                "reference": against.description,
                "reference_images": None if against.features is None else len(against.features),
                "reference_crc32": against.crc32,
            },
            metric={f"features_{key}": value for key, value in self._extractor.settings.items()},
        )
        own = () if self.reference else {SPLITS[self.dataset_split], "held_out"}
        return sampler, made_by, with_own_images(record, self.config.data, own, known)

    def _sampler(
        self, checkpoint: int, choice: Choice, seed: int | None
    ) -> tuple[Sampler, Record, dict[str, int]]:
        """With what its samples depend on, and the fingerprint of the images that the checkpoint
        knows.
        """
        sampler, trained = load_sampler(
            self.config,
            self.workdir,
            checkpoint,
            choice=choice,
            seed=seed,
            precision=self.precision,
            scoring=True,
        )
        if (
            any(metric.needs == "initial images" for metric in self.metrics)
            and sampler.initial_images is not None
        ):
            most = sampler.initial_images.count * sampler.initial_images.per_image
            if self.num_gen > most:  # one image twice would count as two initial images
                raise UserError(
                    f"--num_gen={self.num_gen}: must be at most {most}, all samples of the images "
                    f"of {choice.init}"
                )
        return sampler, sampler.record(self.config, trained), dict(trained.data)

    def _sizes(self, sampler: Sampler | SampleFiles, against: Reference) -> dict[str, Any]:
        """(H, W) of samples and reference images for the record, and a line where they differ."""
        size = first_size(sampler.native) if isinstance(sampler, SampleFiles) else sampler.shape[1:]
        if against.size is None or size is None or not self.reference or against.size == size:
            return {}
        ours, theirs = shown_size(size), shown_size(against.size)
        warn(f"samples are {ours} pixels, reference images {theirs}; each is taken at its own size")
        return {"samples_size": size, "reference_size": against.size}

    def _generated(
        self,
        sampler: Sampler | SampleFiles,
        made_by: Record,
        extract: Callable[[torch.Tensor], np.ndarray],
    ) -> np.ndarray:
        def compute(indices: range) -> np.ndarray:
            return extract(to_uint8(sampler.independent(indices)))

        if self.given is not None and (size := first_size(self.given.native)) != sampler.shape[1:]:
            made = shown_size(sampler.shape[1:])
            warn(
                f"samples are {shown_size(size)} pixels, and made {made} as the data set's images "
                "are"
            )
        return cached_features(
            self.cache, made_by.key, self.num_gen, self.batch_size, compute, "features of samples"
        )

    def _by_seed(self, choice: Choice) -> Choice:
        """The choice with initial images of which several samples are drawn.

        Raises UserError where that cannot be.
        """
        per_init = PER_SEED if choice.per_init is None else choice.per_init
        if per_init < 2 or self.num_gen % per_init or self.num_gen < 2 * per_init:
            right = "--per_init must be at least 2 and --num_gen a multiple of it, at least 2 times as many"
            raise UserError(f"--num_gen={self.num_gen} --per_init={per_init}: {right}")
        return replace(choice, init=choice.init or "train", per_init=per_init)


def shown_size(size: tuple[int, ...] | None) -> str:
    """(H, W) as width x height."""
    return "of unknown size" if size is None else f"{size[1]} x {size[0]}"


def scores(metrics: Sequence[Metric], inputs: Inputs | PixelInputs) -> list[Result]:
    """All results of the metrics."""
    return [
        replace(result, groups=inputs.groups)
        for metric in metrics
        for result in metric.compute(inputs)
    ]


def held_out_settings(
    metrics: Sequence[Metric], inputs: Inputs, held_out: np.ndarray
) -> dict[str, dict[str, Any]]:
    """For each score, printed and returned, what held-out images (H, d) get in place of samples, as
    a perfect model would.

    Scores depend on the number of images, so the score of equally many samples is given with it.
    Metrics that need more images than are held out are left out.
    """
    count = min(len(inputs.generated), len(held_out))
    metrics = [metric for metric in metrics if count >= metric.fewest(inputs.k)]
    evenly = np.linspace(0, len(held_out) - 1, count).astype(
        int
    )  # data sets may be sorted by class
    settings, groups = {}, None if inputs.groups is None else inputs.groups[:count]
    for real, samples in zip(
        scores(metrics, replace(inputs, generated=held_out[evenly], groups=None)),
        scores(metrics, replace(inputs, generated=inputs.generated[:count], groups=groups)),
        strict=True,
    ):
        value = samples.estimate.value
        print(
            f"{real.score}: {count} held-out images have {real.estimate}; as many samples "
            f"{value:.4g}",
            flush=True,
        )
        settings[real.score] = {
            "held_out": real.estimate.value,
            "held_out_standard_error": real.estimate.standard_error,
            "held_out_images": count,
            "value_at_held_out_images": value,
        }
    return settings
