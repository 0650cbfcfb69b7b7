"""Do samples repeat training images? Each sample beside the training images nearest to it, and held-out images for comparison.

python -m scripts.tools.memorization --config C --workdir W [--checkpoint 0] [--delta D] [--num_gen 500]

Where the data set has classes: also what a classifier makes of the samples. `memorization_delta_D.json` and `.png` go to
<workdir>/evaluation.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict

from model_code.elbo import Estimate
from scripts.config import define_config_flag, finite, run
from scripts.data.datasets import load_images
from scripts.data.images import ImageSource
from scripts.data.labels import has_labels
from scripts.evaluation.classifier import ClassifierFeatures, classifier_features
from scripts.evaluation.features import Extractor, image_features, kept_features
from scripts.evaluation.fid import generated_settings
from scripts.evaluation.plots import plot_memorization
from scripts.evaluation.results import common_settings, versions
from scripts.io import atomic_write, make_directory, user_path
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import load_sampler, weights_checksum

BATCH_SIZE = 100
COPY = 1 / 3
"""A sample whose nearest training image is this much nearer than the second nearest is called a copy (Yoon et al., 2023)."""
NEAR = 0.01
"""Samples are compared with the distance below which this part of held-out images lies."""
CONFIDENT = 0.9


class Pixels:
    """Images as they are, for distances between them: values in [0, 1], all in a row."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """shape: (C, H, W)."""
        self.settings: dict[str, Any] = {"extractor": "pixels"}
        self.num_features = math.prod(shape)

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        """Images uint8 (B, C, H, W) to float32 (B, C H W)."""
        return (pixels.flatten(1).float() / 255).numpy()


@dataclass(frozen=True)
class Neighbours:
    """The nearest training images of some images."""

    index: torch.Tensor
    """int64 (N,): the nearest."""
    distance: torch.Tensor
    """float64 (N,): how far that is; Euclidean."""
    second: torch.Tensor
    """float64 (N,): how far the second nearest is; infinite where there is none."""

    def part(self, which: slice) -> "Neighbours":
        """Those of some of the images."""
        return Neighbours(self.index[which], self.distance[which], self.second[which])

    def copies(self) -> torch.Tensor:
        """bool (N,): the nearest stands out among all others. An exact copy does, unless it is in the training set twice."""
        return self.distance < COPY * self.second


def nearest(points: np.ndarray, blocks: Iterable[np.ndarray]) -> Neighbours:
    """The neighbours of points (N, d) among all rows of `blocks`, (n_i, d) each; rows with NaN, unreadable images, are none."""
    x = torch.from_numpy(points).double()
    distance = torch.full((len(x), 2), math.inf, dtype=torch.float64)
    index = torch.full((len(x), 2), -1)
    first = 0
    for block in blocks:
        y = torch.from_numpy(block).double()
        # Subtracted one by one: a matrix product would not give 0 for the same image.
        d = torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").nan_to_num(nan=math.inf)
        ids = torch.arange(first, first + len(y)).expand(len(x), -1)
        distance, order = torch.cat([distance, d], 1).topk(2, largest=False)
        index = torch.cat([index, ids], 1).gather(1, order)
        first += len(y)
    return Neighbours(index[:, 0], distance[:, 0], distance[:, 1])


@dataclass(frozen=True)
class Comparison:
    """Samples and held-out images in one space, by what they are nearest to among training images."""

    space: str
    samples: Neighbours
    held_out: Neighbours

    def figures(self) -> dict[str, Any]:
        """Plain data, estimates with standard errors: middle distances, parts of samples that are nearer than held-out images.

        The error of such a part does not count that the threshold is itself an estimate, from as many held-out images.
        """
        threshold = float(self.held_out.distance.quantile(NEAR))
        return {
            "median_distance": _median(self.samples.distance),
            "median_distance_held_out": _median(self.held_out.distance),
            "mean_distance": _plain(self.samples.distance),
            "mean_distance_held_out": _plain(self.held_out.distance),
            f"nearer_than_{1 - NEAR:.0%}_of_held_out": _plain((self.samples.distance < threshold).double()),
            "copies": _plain(self.samples.copies().double()),
            "copies_held_out": _plain(self.held_out.copies().double()),
        }


def _plain(values: torch.Tensor) -> dict[str, float]:
    return {**asdict(Estimate.of(values)), "num_images": len(values)}


def _median(values: torch.Tensor) -> dict[str, float]:
    """With half the way between the quantiles that a median moves to if the count below it is off by its standard deviation.

    That count is binomial, sqrt(N) / 2 whatever the distribution.
    """
    off = min(0.5, 0.5 / math.sqrt(len(values)))
    low, middle, high = values.quantile(torch.tensor([0.5 - off, 0.5, 0.5 + off], dtype=values.dtype)).tolist()
    error = (high - low) / 2 if len(values) > 1 else math.inf
    return {"value": middle, "standard_error": error, "num_images": len(values)}


def study(
    config: ConfigDict, workdir: Path, checkpoint: int, *, delta: float | None, seed: int | None, num_gen: int
) -> tuple[dict[str, Any], Path]:
    """Draw samples, compare them, and write figures and picture: the figures, plain data, and the picture's path.

    Samples are kept in <workdir>/evaluation, so that what was cut off goes on. Raises UserError for whatever is missing.
    """
    sampler, trained = load_sampler(config, workdir, checkpoint, delta=delta, seed=seed, from_data=None)
    train, held_out = (load_images(config.data, split) for split in ("train", "held_out"))
    directory = make_directory(workdir / "evaluation", "--workdir")
    made_by = generated_settings(config, sampler, trained.step, weights_checksum(trained.model))
    extractors: dict[str, Extractor] = {"pixels": Pixels(sampler.shape)}
    if has_labels(config.data):
        extractors["classifier"] = classifier_features(directory, config.data, sampler.precision.device)

    def draw(indices: range) -> np.ndarray:
        return to_uint8(sampler.independent(indices)).flatten(1).float().numpy()

    drawn = kept_features(directory, made_by | {"extractor": "none"}, num_gen, BATCH_SIZE, draw, "samples")
    pixels = torch.from_numpy(drawn).to(torch.uint8).view(-1, *sampler.shape)
    comparisons = []
    for space, extractor in extractors.items():
        apart = np.concatenate(list(_blocks(held_out, extractor)))
        points = np.concatenate([extractor(pixels), apart[~np.isnan(apart[:, 0])]])
        both = nearest(points, _blocks(train, extractor))  # of all at once: training images are read once
        comparisons.append(Comparison(space, both.part(slice(num_gen)), both.part(slice(num_gen, None))))
    figures: dict[str, Any] = {
        **common_settings(config, checkpoint=checkpoint, step=trained.step, delta=sampler.delta, seed=sampler.seed),
        "versions": versions(),
        "training_images": len(train),
        "spaces": {comparison.space: comparison.figures() for comparison in comparisons},
    }
    if isinstance(classifier := extractors.get("classifier"), ClassifierFeatures):
        figures["classifier"] = verdicts(classifier, pixels, held_out)
    path = directory / f"memorization_delta_{sampler.delta:g}.png"
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    plot_memorization(path, pixels, train, comparisons, f"{len(pixels)} samples, delta {sampler.delta:g}, step {trained.step}")
    return figures, path


def _blocks(images: ImageSource, extractor: Extractor) -> Iterable[np.ndarray]:
    for start in range(0, len(images), BATCH_SIZE):
        yield image_features(images, range(start, min(start + BATCH_SIZE, len(images))), extractor)


def verdicts(classifier: ClassifierFeatures, pixels: torch.Tensor, held_out: ImageSource) -> dict[str, Any]:
    """How sure the classifier is of samples uint8 (N, C, H, W), and of held-out images for comparison: plain data."""
    probabilities, classes = classifier.probabilities(classifier(pixels)).max(1)
    features = np.concatenate(list(_blocks(held_out, classifier)))
    counts = torch.bincount(classes, minlength=classifier.num_classes)
    compared = classifier.probabilities(features).max(1).values
    return {
        "accuracy_on_held_out": classifier.accuracy,
        f"surer_than_{CONFIDENT}": _plain((probabilities > CONFIDENT).double()),
        f"surer_than_{CONFIDENT}_held_out": _plain((compared > CONFIDENT).double()),
        "samples_of_each_class": counts.tolist(),
        "classes_among_samples": int((counts > 0).sum()),
        "rarest_class": _plain((classes == counts.argmin()).double()),
        "commonest_class": _plain((classes == counts.argmax()).double()),
    }


def report(figures: dict[str, Any]) -> str:
    """The figures in lines for a person."""

    def line(name: str, estimate: Any) -> str:
        if not isinstance(estimate, dict):
            return f"{name.replace('_', ' ')}: {estimate}"
        return f"{name.replace('_', ' ')}: {{value:.4g}} +- {{standard_error:.2g}} (N = {{num_images}})".format(**estimate)

    sections = dict(figures["spaces"])
    if "classifier" in figures:
        sections["verdict of the classifier"] = figures["classifier"]
    lines = []
    for title, values in sections.items():
        lines += [title, *(f"  {line(name, value)}" for name, value in values.items())]
    return "\n".join(lines)


def main() -> int:
    """Print what `study` finds for the flags."""
    values = flags.FLAGS
    finite("--delta", values.delta)
    figures, path = study(
        values.config,
        user_path(values.workdir, "--workdir"),
        values.checkpoint,
        delta=values.delta,
        seed=values.seed,
        num_gen=values.num_gen,
    )
    print(report(figures))
    print(f"{path} and {path.with_suffix('.json').name}")
    return 0


if __name__ == "__main__":
    define_config_flag()
    flags.DEFINE_string("workdir", None, "Run directory that train.py made.", required=True)
    flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
    flags.DEFINE_float("delta", None, "Sampling noise; by default config.model.delta_over_sigma * sigma.", lower_bound=0)
    flags.DEFINE_integer("seed", None, "Samples are a function of it; by default config.seed.", 0, 2**64 - 1)
    flags.DEFINE_integer("num_gen", 500, "Samples to draw.", lower_bound=2)
    run(main)
