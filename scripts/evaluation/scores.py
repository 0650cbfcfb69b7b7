"""Scores of samples: of a checkpoint's, or of those that another program made."""

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from model_code.prior import StandardNormal
from model_code.unet import image_shape
from scripts.config.paths import user_path
from scripts.data.datasets import Split, load_images, open_images
from scripts.data.images import (
    FolderImages,
    Images,
    ImageSource,
    UnreadableImage,
    checksum,
    checksums,
    spread_evenly,
)
from scripts.data.labels import require_classes
from scripts.data.loader import to_unit_range
from scripts.errors import UserError, printable
from scripts.evaluation.distances import Reference
from scripts.evaluation.features import (
    SPLITS,
    Extractor,
    NativeFolder,
    cached_features,
    data_set_images,
    features_of,
)
from scripts.evaluation.metrics import Inputs, Metric
from scripts.evaluation.pixels import PixelInputs
from scripts.evaluation.references import find_reference, first_size, readable_features
from scripts.evaluation.results import Point, Result
from scripts.runtime import distributed
from scripts.runtime.device import resolve_device
from scripts.runtime.progress import warn
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import Sampler, load_sampler, with_own_images
from scripts.storage.record import Part, Record

Scores = tuple[list[Result], dict[str, Part], dict[str, Part]]
"""Results, what the record has of what was read, and settings by score."""
PARTS: tuple[Split, ...] = ("train", "held_out")
PER_INIT = 10
"""Samples of each initial image where those are compared, unless --per_init says otherwise."""


@dataclass(frozen=True)
class SampleFiles:
    """Samples that another program made, with what scores need of a `Sampler`."""

    name: str
    images: ImageSource
    """At the configuration's size."""
    native: Images
    """As a folder or an array that is a reference is read."""
    initial: np.ndarray
    """Int64 (N,): their initial images, as an export with --per_init says in `origins.txt`;
    otherwise one for each."""
    seed: int

    @classmethod
    def read(cls, text: str, config: ConfigDict, seed: int) -> "SampleFiles":
        """All images of a folder or an array. Raises UserError, see `open_images`, and for an
        `origins.txt` that is not of these images.
        """
        images = open_images(text, "--samples", image_shape(config.data), config.data)
        path = user_path(text, "--samples")
        native: Images = images
        if path.suffix in (".npy", ".npz"):
            native = open_images(text, "--samples", None, config.data)
        elif isinstance(images, FolderImages):
            native = NativeFolder(path if path.is_dir() else path.parent, images.paths)
        initial = np.arange(len(images))
        origins = (path.parent if path.suffix == ".npz" else path) / "origins.txt"
        if origins.is_file():
            lines = origins.read_text(errors="replace").split()
            if len(lines) != len(images) or not all(map(str.isdecimal, lines)):
                found = f"{len(lines)} lines for the {len(images)} images of --samples={text}"
                right = "must be a number for each; export into an empty directory"
                raise UserError(f"{origins}: {found}: {right}")
            initial = np.array(lines, int)
        return cls(text, images, native, initial, seed)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) at the configuration's size."""
        return self.images.shape

    def record(self) -> Record:
        """What identifies the images."""
        files = {"samples": self.images.version()}
        return Record(weights={"samples": self.name}, options={"seed": self.seed}, files=files)

    def independent(self, indices: Sequence[int]) -> torch.Tensor:
        """Images (B, C, H, W) in [0, 1]. Raises UserError for one that cannot be read."""
        try:
            return to_unit_range(np.stack([self.images[i] for i in indices]))
        except UnreadableImage as error:
            raise UserError(f"--samples={self.name}: {error}") from None


def initial_images(
    source: Sampler | SampleFiles, data: ConfigDict, num_samples: int
) -> tuple[np.ndarray, bool]:
    """The initial image of each sample, int64 (N,), or its mirror image; and whether these are
    positions in the training set.

    Without initial images, and of samples that another program made, every sample has a number of
    its own.
    """
    if isinstance(source, SampleFiles):
        return source.initial[:num_samples], False
    if isinstance(source.prior, StandardNormal):
        return np.arange(num_samples), False
    origins = np.array(source.origins(range(num_samples)))
    if source.initial_images is not None:
        return origins, source.initial_images.settings.get("init") == "train"
    # The prior has one state for each training image, if all could be read, or two with mirror
    # images.
    copies = 1 + data.random_flip
    return origins // copies, len(source.prior) == copies * len(load_images(data, "train"))


@dataclass(frozen=True)
class SampleEvaluation:
    """Scores of samples 0..num_gen-1 of a checkpoint, as uint8 images, against a reference."""

    config: ConfigDict
    workdir: Path
    cache: Path
    """Directory of features, from which an interrupted evaluation continues."""
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
    files: SampleFiles | None = None
    """Samples to score in place of a checkpoint's."""
    per_class: bool = False
    """The scores of each class, too, against the reference's images of it."""

    def record(self, point: Point) -> Record:
        """All that scores depend on, without any samples. Raises UserError as the call does."""
        measures: Part = {"measures": [metric.name for metric in self.metrics], "k": self.k}
        if self.per_class:
            measures["per_class"] = True
        return self._prepare(point)[2].add(metric=measures)

    def __call__(self, point: Point) -> list[Result]:
        """Scores of a checkpoint (0: the newest); none in processes other than 0, which only sample
        and compute features.

        Compared with the configuration's own training images, the settings of each result include
        the score of held-out images, see `held_out_settings`. Raises UserError for whatever is
        missing or does not fit, before anything is sampled.
        """
        source, samples_record, record = self._prepare(point)
        compute = self._of_pixels if self._of_images else self._of_features
        results, read, held_out = compute(source, samples_record)
        settings = record.add(**read).row()
        return [
            replace(result, settings=settings | result.settings | held_out.get(result.score, {}))
            for result in results
            if distributed.is_main()
        ]

    def _of_pixels(self, source: Sampler | SampleFiles, samples_record: Record) -> Scores:
        samples_record = samples_record.add(metric={"extractor": "pixels"})
        samples = self._generated(source, samples_record, torch.Tensor.numpy)
        groups, in_training = initial_images(source, self.config.data, self.num_gen)
        inputs = PixelInputs(
            samples,
            groups,
            self.config.data,
            source.seed,
            self._device,
            groups if in_training else None,
            source if isinstance(source, Sampler) else None,
        )
        results = scores(self.metrics, inputs)  # by all processes
        crc32 = {"samples_crc32": checksum(checksums(samples))}
        return results, {"data": crc32, "reference": inputs.read}, {}

    def _of_features(self, source: Sampler | SampleFiles, samples_record: Record) -> Scores:
        extractor, reference, data = self._extractor, self._reference, self.config.data
        names = [metric.name for metric in self.metrics]
        if "fid" in names and self.num_gen <= extractor.num_features:
            text = (
                f"FID of {self.num_gen} samples in {extractor.num_features} dimensions is far too "
                "high; raise --num_gen"
            )
            warnings.warn(text, stacklevel=2)

        def readable(images: Images, what: str) -> np.ndarray:
            return readable_features(self.cache, images, extractor, self.batch_size, what)

        if isinstance(source, SampleFiles) and self.reference:  # as the reference is read
            generated = readable(source.native, "samples")
            if unreadable := len(source.native) - len(generated):
                raise UserError(f"--samples={source.name}: {unreadable} images cannot be read")
            generated, size = generated[: self.num_gen], first_size(source.native)
        else:
            samples_record = samples_record.add(metric=extractor.settings)
            extract = functools.partial(features_of, extractor=extractor)
            generated, size = self._generated(source, samples_record, extract), source.shape[1:]
        data_read: dict[str, Any] = {"samples_crc32": checksum(generated["crc32"])}
        if self.reference and reference.size is not None and size not in (None, reference.size):
            sizes = f"samples are {shown(size)} pixels, reference images {shown(reference.size)}"
            warn(f"{sizes}; each is taken at its own size")
            data_read |= {"samples_size": size, "reference_size": reference.size}
        groups, _ = initial_images(source, data, self.num_gen)
        features = generated["features"]
        labels = self._labels(source)
        predict = getattr(extractor, "predict", None)
        inputs = Inputs(
            features, reference, source.seed, self.k, self._device, groups, labels, predict
        )
        held_out = None
        if not self.reference and self.dataset_split == "train":
            images = data_set_images(data, "held_out")
            held_out = readable(images, "held-out images")
        if not distributed.is_main():
            return [], {}, {}
        real: dict[str, dict[str, Any]] = {}
        if held_out is not None:
            classes = None if images.labels is None else images.labels[held_out["index"]]
            real = held_out_settings(self.metrics, inputs, held_out["features"], classes)
        results = scores(self.metrics, inputs)
        if self.per_class:
            of_class = scores_of_classes(self.metrics, inputs, self._class_names)
            results = [
                replace(result, settings=result.settings | {"per_class": of_class[result.score]})
                for result in results
            ]
        return results, {"data": data_read}, real

    def _labels(self, source: Sampler | SampleFiles) -> np.ndarray | None:
        """The class that each sample is to be of, int64 (N,)."""
        if isinstance(source, SampleFiles):
            return None
        labels = source.labels(range(self.num_gen))
        return None if labels is None else labels.numpy()

    @functools.cached_property
    def _class_names(self) -> tuple[str, ...]:
        return data_set_images(self.config.data, self.dataset_split).classes

    @property
    def _of_images(self) -> bool:
        return any(metric.needs in ("pixels", "initial images") for metric in self.metrics)

    @property
    def _device(self) -> torch.device:
        return resolve_device(self.config.device)

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

    def _prepare(self, point: Point) -> tuple[Sampler | SampleFiles, Record, Record]:
        """Where samples come from, all that they depend on, and what all scores have in common."""
        data = self.config.data
        for metric in self.metrics:
            if self.num_gen < (fewest := metric.fewest(self.k)):
                raise UserError(
                    f"--num_gen={self.num_gen}: {metric.name} needs at least {fewest} samples"
                )
        source: Sampler | SampleFiles
        if self.files is not None:
            source, at_training = self.files, dict[str, int]()
            samples_record, available = source.record(), len(source.images)
            if self.num_gen > available:
                raise UserError(
                    f"--num_gen={self.num_gen}: --samples={source.name} has {available} images"
                )
        else:
            source, samples_record, at_training = self._sampler(point)
        record = samples_record.add(options={"num_gen": self.num_gen})
        if self._of_images:
            for split in PARTS:  # before anything is sampled
                if len(load_images(data, split)) < 2:
                    raise UserError(
                        f"{data.dataset}: there is one {split} image, where this mode needs at "
                        "least 2"
                    )
            settings, read = {"extractor": "pixels"}, set(PARTS)
            against: dict[str, Any] = {"reference": f"{data.dataset} train"}
        else:
            features, reference = self._extractor.settings, self._reference
            settings = {f"features_{key}": value for key, value in features.items()}
            self._check_classes(source)
            read = set() if self.reference else {SPLITS[self.dataset_split], "held_out"}
            against = {
                "reference": reference.description,
                "reference_images": None if reference.features is None else len(reference.features),
                "reference_crc32": reference.crc32,
            }
        record = record.add(metric=settings, reference=against)
        return source, samples_record, with_own_images(record, data, read, at_training)

    def _check_classes(self, source: Sampler | SampleFiles) -> None:
        """Raise UserError unless there are classes where scores need them, and enough images."""
        if not self.per_class and all(metric.name != "classes" for metric in self.metrics):
            return
        labels, data = self._labels(source), self.config.data
        if labels is None:
            flag = "--per_class" if self.per_class else "--mode=classes"
            other = "train a class-conditional network, or choose --init=train or held_out"
            raise UserError(f"{flag}: samples are of no classes; {other}")
        if isinstance(source, Sampler):
            require_classes(data_set_images(data, self.dataset_split), source.classes, data)
        if not self._class_names:
            raise UserError(f"{data.dataset}: has no labels; set config.data.labels")
        reference = self._reference.labels
        assert reference is not None
        fewest = max(metric.fewest(self.k) for metric in self.metrics)
        for label, name in enumerate(self._class_names if self.per_class else ()):
            there = [np.count_nonzero(of == label) for of in (labels, reference)]
            if min(there) < fewest:
                counts = f"{there[0]} samples and {there[1]} reference images of {printable(name)}"
                raise UserError(f"--per_class: {counts}, where at least {fewest} are needed")

    def _sampler(self, point: Point) -> tuple[Sampler, Record, dict[str, int]]:
        """With what its samples depend on, and the fingerprint of the training's images."""
        compares_initial = any(metric.needs == "initial images" for metric in self.metrics)
        if compares_initial:
            per_init = PER_INIT if point.per_init is None else point.per_init
            if per_init < 2 or self.num_gen % per_init or self.num_gen < 2 * per_init:
                raise UserError(
                    f"--num_gen={self.num_gen} --per_init={per_init}: --per_init must be at least "
                    "2 and --num_gen a multiple of it, at least 2 times as many"
                )
            point = replace(point, init=point.init or "train", per_init=per_init)
        sampler, trained = load_sampler(
            self.workdir,
            point.checkpoint,
            config=self.config,
            choice=point,
            seed=point.seed,
            precision=self.precision,
            scoring=True,
        )
        initial = sampler.initial_images
        if compares_initial and initial is not None:
            most = initial.count * initial.per_image
            if self.num_gen > most:  # one image twice would count as two initial images
                raise UserError(
                    f"--num_gen={self.num_gen}: must be at most {most}, all samples of the images "
                    f"of {point.init}"
                )
        return sampler, sampler.record(trained), dict(trained.data)

    def _generated(
        self,
        source: Sampler | SampleFiles,
        record: Record,
        extract: Callable[[torch.Tensor], np.ndarray],
    ) -> np.ndarray:
        def compute(indices: range) -> np.ndarray:
            return extract(to_uint8(source.independent(indices)))

        if isinstance(source, SampleFiles):
            size, made = first_size(source.native), source.shape[1:]
            if size != made:
                sizes = f"samples are {shown(size)} pixels, and made {shown(made)}"
                warn(f"{sizes} as the data set's images are")
        return cached_features(
            self.cache, record.key, self.num_gen, self.batch_size, compute, "features of samples"
        )


def shown(size: tuple[int, ...] | None) -> str:
    """(H, W) as width x height."""
    return "of unknown size" if size is None else f"{size[1]} x {size[0]}"


def scores(metrics: Sequence[Metric], inputs: Inputs | PixelInputs) -> list[Result]:
    """All results of the metrics."""
    return [
        replace(result, groups=inputs.groups)
        for metric in metrics
        for result in metric.compute(inputs)
    ]


def chosen(inputs: Inputs, rows: np.ndarray) -> Inputs:
    """These samples alone."""
    groups, labels = (
        None if array is None else array[rows] for array in (inputs.groups, inputs.labels)
    )
    return replace(inputs, generated=inputs.generated[rows], groups=groups, labels=labels)


def scores_of_classes(
    metrics: Sequence[Metric], inputs: Inputs, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """For each score, printed and returned, that of each class by name: samples that are to be of
    it, against the reference's images of it.
    """
    features, classes = inputs.reference.features, inputs.reference.labels
    assert inputs.labels is not None
    assert features is not None
    assert classes is not None
    table: dict[str, dict[str, Any]] = {}
    for label, name in enumerate(names):
        rows = np.flatnonzero(inputs.labels == label)
        reference = Reference(f"{inputs.reference.description}, {name}", features[classes == label])
        for result in scores(metrics, replace(chosen(inputs, rows), reference=reference)):
            print(f"{printable(name)}: {result}", flush=True)
            row = result.estimate
            error = row.standard_error if np.isfinite(row.standard_error) else None
            values = {"value": row.value, "standard_error": error, "num_images": row.num_images}
            table.setdefault(result.score, {})[name] = values
    return table


def held_out_settings(
    metrics: Sequence[Metric],
    inputs: Inputs,
    held_out: np.ndarray,
    classes: np.ndarray | None = None,
) -> dict[str, dict[str, Any]]:
    """For each score, printed and returned, what held-out images (H, d) of classes (H,) get in
    place of samples, as a perfect model would.

    Scores depend on the number of images, so the score of equally many samples comes with it.
    Metrics that need more images than are held out are left out.
    """
    count = min(len(inputs.generated), len(held_out))
    metrics = [metric for metric in metrics if count >= metric.fewest(inputs.k)]
    rows = spread_evenly(len(held_out), count)
    of_rows = None if classes is None else classes[rows]
    real = replace(inputs, generated=held_out[rows], groups=None, labels=of_rows)
    as_many = chosen(inputs, np.arange(count))
    settings = {}
    for result, own in zip(scores(metrics, real), scores(metrics, as_many), strict=True):
        score, value = result.score, own.estimate.value
        print(
            f"{score}: {count} held-out images have {result.estimate}; as many samples {value:.4g}",
            flush=True,
        )
        settings[score] = {
            "held_out": result.estimate.value,
            "held_out_standard_error": result.estimate.standard_error,
            "held_out_images": count,
            "value_at_held_out_images": value,
        }
    return settings
