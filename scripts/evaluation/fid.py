"""FID, KID and precision, recall, density and coverage of a trained model's samples."""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts import distributed
from scripts.data.images import FolderImages, Images, list_images
from scripts.errors import UserError
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.features import Extractor, cached_features
from scripts.evaluation.inception import InceptionFeatures, weights_file
from scripts.evaluation.metrics import Inputs, Metric
from scripts.evaluation.references import data_set_images, find_reference, folder_images, reference_features
from scripts.evaluation.results import Result
from scripts.evaluation.statistics_files import Reference, custom_files, statistics_folder, write_custom_statistics
from scripts.io import make_directory, user_path
from scripts.provenance import config_hash
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import Sampler, load_sampler


@dataclass(frozen=True)
class SampleEvaluation:
    """Scores of a checkpoint's samples 0..num_gen-1, as uint8 images, against a reference."""

    config: ConfigDict
    workdir: Path
    metrics: Sequence[Metric]
    batch_size: int
    num_gen: int
    reference: str
    """Name of clean-fid statistics or, with dataset_split "custom", of custom ones; path of an .npz or of a folder; "" for the
    configuration's own data set."""
    dataset_split: str
    cleanfid_mode: str
    feature_extractor: str
    """"inception" or "classifier"."""
    inception_path: str
    k: int = 5
    precision: str = "float32"

    def __call__(self, *, checkpoint: int, delta: str | float | None, seed: int | None) -> list[Result]:
        """Scores of a checkpoint (0: the newest); none in processes other than 0, which only sample and compute features.

        Features are cached in <workdir>/evaluation, so that an interrupted evaluation continues. With the classifier and the
        configuration's own training images the settings of each result include the score of held-out images, see
        `floor_settings`. Raises UserError for whatever is missing or does not fit, before anything is sampled.
        """
        for metric in self.metrics:
            if self.num_gen < metric.fewest(self.k):
                raise UserError(f"--num_gen={self.num_gen}: {metric.name} needs at least {metric.fewest(self.k)} samples")
        sampler, trained = load_sampler(
            self.config, self.workdir, checkpoint, delta=delta, seed=seed, precision=self.precision, scoring=True
        )
        made_by = sampler.settings(self.config, trained)
        directory = self.workdir / "evaluation"
        with distributed.main_first():  # it may download or train
            extractor = self._extractor(directory, sampler.precision.device)
        against = find_reference(
            self.reference, self.dataset_split, self.config.data, self.metrics, self.k, extractor, directory, self.batch_size
        )
        if any(metric.needs == "moments" for metric in self.metrics) and self.num_gen <= extractor.num_features:
            warnings.warn(
                f"FID of {self.num_gen} samples in {extractor.num_features} dimensions is far too high; raise --num_gen",
                stacklevel=2,
            )
        inputs = Inputs(
            generated=self._generated_features(directory, sampler, made_by, extractor),
            reference=against,
            seed=sampler.seed,
            k=self.k,
            device=sampler.precision.device,
        )
        held_out = None
        if self.feature_extractor == "classifier" and self.dataset_split == "train":
            images = data_set_images(self.config.data, "held_out")
            held_out = reference_features(directory, images, extractor, self.batch_size)
        if not distributed.is_main():
            return []
        common = made_by | {
            "checkpoint": checkpoint,
            "config_hash": config_hash(self.config),
            "reference": against.description,
            "reference_images": None if against.features is None else len(against.features),
            **{f"features_{key}": value for key, value in extractor.settings.items()},
        }
        floor = {} if held_out is None else floor_settings(self.metrics, inputs, held_out)
        return [
            replace(result, settings=common | result.settings | floor.get(result.score, {}))
            for result in scores(self.metrics, inputs)
        ]

    def _extractor(self, directory: Path, device: torch.device) -> Extractor:
        if self.feature_extractor == "inception":
            return InceptionFeatures(self.cleanfid_mode, weights_file(self.cleanfid_mode, self.inception_path), device)
        classifier = classifier_features(directory, self.config.data, device)
        print(f"classifier: {classifier.accuracy:.2%} of held-out images right", flush=True)
        return classifier

    def _generated_features(
        self, directory: Path, sampler: Sampler, made_by: dict[str, Any], extractor: Extractor
    ) -> np.ndarray:
        settings = {"images": "generated", **made_by, **extractor.settings}

        def compute(indices: range) -> np.ndarray:
            return extractor(to_uint8(sampler.independent(indices)))

        return cached_features(directory, settings, self.num_gen, self.batch_size, compute, "features of samples")


def scores(metrics: Sequence[Metric], inputs: Inputs) -> list[Result]:
    """All results of the metrics."""
    return [result for metric in metrics for result in metric.compute(inputs)]


def floor_settings(metrics: Sequence[Metric], inputs: Inputs, held_out: np.ndarray) -> dict[str, dict[str, Any]]:
    """For each score, printed and returned, what held-out images (H, d) get in place of samples: what a perfect model would.

    Scores depend on the number of images, so the score of equally many samples is given with it.
    """
    count = min(len(inputs.generated), len(held_out))
    evenly = np.linspace(0, len(held_out) - 1, count).astype(int)  # data sets may be sorted by class
    floor = scores(metrics, replace(inputs, generated=held_out[evenly]))
    as_many = scores(metrics, replace(inputs, generated=inputs.generated[:count]))
    for of_held_out, of_samples in zip(floor, as_many, strict=True):
        print(
            f"{of_held_out.score}: floor {of_held_out.estimate}, of {count} held-out images; as many samples have "
            f"{of_samples.estimate.value:.4g}",
            flush=True,
        )
    return {
        of_held_out.score: {
            "floor": of_held_out.estimate.value,
            "floor_standard_error": of_held_out.estimate.standard_error,
            "floor_images": count,
            "value_at_floor_images": of_samples.estimate.value,
        }
        for of_held_out, of_samples in zip(floor, as_many, strict=True)
    }


def save_statistics(
    custom_name: str,
    dataset_path: str,
    *,
    image_size: int | None,
    cleanfid_mode: str,
    batch_size: int,
    inception_path: str,
    device: torch.device,
) -> Path:
    """Make statistics of a folder of images, for `--dataset_name_cleanfid=<custom_name> --dataset_split=custom`.

    They are stored where clean-fid keeps its own and under its naming scheme, so that it finds them too. image_size: scale and
    crop images to that many pixels first; None takes them as they are. Returns the file with mean and covariance; features are
    beside it. Raises UserError for whatever is missing, does not fit or exists already.
    """
    custom_files(custom_name, cleanfid_mode)
    folder = user_path(dataset_path, "--dataset_path")
    images: Images = folder_images(folder)
    if image_size is not None:
        images = FolderImages(folder, list_images(folder), image_size, 3)
    extractor = InceptionFeatures(cleanfid_mode, weights_file(cleanfid_mode, inception_path), device)
    directory = make_directory(statistics_folder(), "clean-fid's statistics")
    with tempfile.TemporaryDirectory(prefix=".features-", dir=directory) as temporary:
        features = reference_features(Path(temporary), images, extractor, batch_size)
    return write_custom_statistics(custom_name, cleanfid_mode, Reference.of(str(folder), features))
