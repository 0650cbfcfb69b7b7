"""FID, KID and precision, recall, density and coverage of a trained model's samples."""

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ml_collections import ConfigDict

from scripts import distributed
from scripts.data.images import FolderImages, list_images
from scripts.errors import UserError
from scripts.evaluation import distances
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.distances import Estimate
from scripts.evaluation.features import Extractor, Images, kept_features
from scripts.evaluation.inception import InceptionFeatures, check_mode, weights_file
from scripts.evaluation.references import FEWEST, data_set_images, find_reference, folder_images, reference_features
from scripts.evaluation.results import Result, common_settings
from scripts.evaluation.statistics_files import Reference, custom_files, statistics_folder, write_custom_statistics
from scripts.io import make_directory, user_path
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import Sampler, load_sampler, weights_checksum

METRICS = ("fid", "kid", "prdc")


def evaluate_samples(
    config: ConfigDict,
    workdir: Path,
    checkpoint: int,
    *,
    metrics: tuple[str, ...],
    delta: float | None,
    seed: int | None,
    batch_size: int,
    num_gen: int,
    reference: str,
    dataset_split: str,
    cleanfid_mode: str,
    feature_extractor: str,
    inception_path: str,
) -> list[Result]:
    """Scores of samples 0..num_gen-1 of a checkpoint (0: the newest), as uint8 images, against a reference.

    metrics: any of fid, kid and prdc. reference: the name of clean-fid statistics or, with dataset_split "custom", of custom
    ones, the path of an .npz or of a folder, or "" for the configuration's own data set. feature_extractor: "inception" or
    "classifier". Features are kept in <workdir>/evaluation: an interrupted evaluation continues, another one uses them again.
    With the classifier and the configuration's own training images, each result's settings have its floor: `floor_settings`.

    Of several processes all sample and compute features; only process 0 has scores, the others get none.

    Raises UserError for whatever is missing or does not fit, before anything is sampled.
    """
    _check(metrics, batch_size, num_gen, feature_extractor)
    sampler, trained = load_sampler(config, workdir, checkpoint, delta=delta, seed=seed, from_data=None)
    directory = workdir / "evaluation"
    device = sampler.precision.device
    with distributed.main_first():  # which fetches or trains it
        extractor = _extractor(feature_extractor, directory, config.data, device, cleanfid_mode, inception_path)
    against = find_reference(reference, dataset_split, config.data, metrics, extractor, directory, batch_size)
    if "fid" in metrics and num_gen <= extractor.num_features:
        warnings.warn(
            f"FID of {num_gen} samples in {extractor.num_features} dimensions is far too high; raise --num_gen", stacklevel=2
        )
    made_by = generated_settings(config, sampler, trained.step, weights_checksum(trained.model)) | extractor.settings

    def compute(indices: range) -> np.ndarray:
        return extractor(to_uint8(sampler.independent(indices)))

    generated = kept_features(directory, made_by, num_gen, batch_size, compute, "features of samples")
    held_out = None
    if feature_extractor == "classifier" and dataset_split == "train":
        held_out = reference_features(directory, data_set_images(config.data, "held_out"), extractor, batch_size)
    if not distributed.is_main():
        return []
    estimates = scores(metrics, generated, against, sampler.seed, device)
    floor: dict[str, dict[str, Any]] = {}
    if held_out is not None:
        floor = floor_settings(metrics, generated, held_out, against, sampler.seed, device)
        for score, settings in floor.items():
            print(
                "{}: floor {floor:.4g} +- {floor_standard_error:.2g}, of {floor_images} held-out images; as many samples have "
                "{value_at_floor_images:.4g}".format(score, **settings),
                flush=True,
            )
    common = common_settings(config, checkpoint=checkpoint, step=trained.step, delta=sampler.delta, seed=sampler.seed) | {
        "reference": against.description,
        "reference_images": None if against.features is None else len(against.features),
        **{f"features_{key}": value for key, value in extractor.settings.items()},
    }
    return [
        Result(score, estimate.value, estimate.standard_error, estimate.num_images, common | floor.get(score, {}))
        for score, estimate in estimates.items()
    ]


def _check(metrics: Sequence[str], batch_size: int, num_gen: int, feature_extractor: str) -> None:
    for metric in metrics:
        if metric not in METRICS:
            raise UserError(f"--mode={metric}: must be one of {', '.join(METRICS)}")
        if num_gen < FEWEST[metric]:
            raise UserError(f"--num_gen={num_gen}: {metric} needs at least {FEWEST[metric]} samples")
    _check_batch_size(batch_size)
    if feature_extractor not in ("inception", "classifier"):
        raise UserError(f"--feature_extractor={feature_extractor}: must be inception or classifier")


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"--batch_size={batch_size}: must be at least 1")


def _extractor(
    name: str, directory: Path, data: ConfigDict, device: torch.device, cleanfid_mode: str, inception_path: str
) -> Extractor:
    if name == "inception":
        mode = check_mode(cleanfid_mode)
        return InceptionFeatures(mode, weights_file(mode, inception_path), device)
    classifier = classifier_features(directory, data, device)
    print(f"classifier: {classifier.accuracy:.2%} of held-out images right", flush=True)
    return classifier


def generated_settings(config: ConfigDict, sampler: Sampler, step: int, weights: int) -> dict[str, Any]:
    """All that the samples depend on."""
    return {
        "images": "generated",
        "checkpoint_step": step,
        "model_crc32": weights,
        "seed": sampler.seed,
        "delta": sampler.delta,
        "prior_delta": sampler.prior_delta,
        "prior_images": len(sampler.prior),
        "K": sampler.K,
        "blur_sigma_min": config.model.blur_sigma_min,
        "blur_sigma_max": config.model.blur_sigma_max,
        "precision": sampler.precision.name,
    }


def scores(
    metrics: Sequence[str], generated: np.ndarray, reference: Reference, seed: int, device: torch.device
) -> dict[str, Estimate]:
    """Each score by its name in the log files. generated: features (N, d)."""
    found: dict[str, Estimate] = {}
    if "fid" in metrics:
        assert reference.gaussian is not None
        found["FID"] = distances.frechet_estimate(generated, reference.gaussian)
    if "kid" in metrics:
        assert reference.features is not None
        found["KID"] = distances.kernel_estimate(generated, reference.features, seed)
    if "prdc" in metrics:
        assert reference.features is not None
        found |= distances.prdc_estimates(generated, reference.features, device)
    return found


def floor_settings(
    metrics: Sequence[str], generated: np.ndarray, held_out: np.ndarray, reference: Reference, seed: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    """For each score, what held-out images get in place of samples: no model of the training images need come below that.

    Scores depend on the number of images, so that the score of just as many samples goes with it. Features (N, d) and (H, d).
    """
    count = min(len(generated), len(held_out))
    evenly = np.linspace(0, len(held_out) - 1, count).astype(int)  # data sets may be sorted by class
    floor = scores(metrics, held_out[evenly], reference, seed, device)
    as_many = scores(metrics, generated[:count], reference, seed, device)
    return {
        score: {
            "floor": estimate.value,
            "floor_standard_error": estimate.standard_error,
            "floor_images": count,
            "value_at_floor_images": as_many[score].value,
        }
        for score, estimate in floor.items()
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

    They are where clean-fid keeps its own and named as its own, so that it finds them too. image_size: scale and crop images to
    that many pixels first; None takes them as they are. The path of the file with mean and covariance; features are beside it.
    Raises UserError for whatever is missing, does not fit or is there already.
    """
    mode = check_mode(cleanfid_mode)
    _check_batch_size(batch_size)
    custom_files(custom_name, mode)
    folder = user_path(dataset_path, "--dataset_path")
    images: Images = folder_images(folder)
    if image_size is not None:
        images = FolderImages(folder, list_images(folder), image_size, 3)
    extractor = InceptionFeatures(mode, weights_file(mode, inception_path), device)
    directory = make_directory(statistics_folder(), "clean-fid's statistics")
    with tempfile.TemporaryDirectory(prefix=".features-", dir=directory) as temporary:
        features = reference_features(Path(temporary), images, extractor, batch_size)
    return write_custom_statistics(custom_name, mode, Reference.of(str(folder), features))
