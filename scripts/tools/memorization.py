"""Do samples repeat training images? Distances to the nearest training image, compared with those of held-out images.

python -m scripts.tools.memorization --config C --workdir W [--checkpoint 0] [--delta D] [--num_gen 500]

Distances are Euclidean, between pixels and, where images have classes, between features of a classifier, which then also says
which class it sees in each sample. Writes `memorization_delta_D.json` and `.png` to <workdir>/evaluation.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from scipy.stats import chisquare

from scripts.config.flags import define_config_flag, define_path_flag, run
from scripts.data.datasets import LABELLED, load_images, load_labelled
from scripts.data.images import ImageSource
from scripts.data.loader import clean_batches
from scripts.estimate import Estimate, wilson_interval
from scripts.evaluation.classifier import ClassifierFeatures, classifier_features
from scripts.sampling.choice import Choice
from scripts.sampling.output import grid, to_uint8
from scripts.sampling.sampler import load_sampler
from scripts.storage.files import atomic_write, make_directory

BATCH_SIZE, COLUMNS = 100, 12
COPY = 1 / 3
"""A copy's nearest training image is at less than this fraction of the second nearest's distance (Yoon et al., 2023)."""
NEAR = 0.01
"""Samples are compared with the distance that this fraction of held-out images is below."""
CONFIDENT = 0.9

Extract = Callable[[torch.Tensor], np.ndarray]
"""From images uint8 (B, C, H, W) to features float32 (B, d)."""
Block = tuple[np.ndarray, np.ndarray]
"""Indices of images int64 (n,) and their features float32 (n, d)."""


def pixels(images: torch.Tensor) -> np.ndarray:
    """Images themselves as features, with values in [0, 1]."""
    return (images.flatten(1).float() / 255).numpy()


def features(images: ImageSource, extract: Extract) -> Iterator[Block]:
    """Features of all readable images, in blocks."""
    for batch in clean_batches(images, BATCH_SIZE, num_workers=0, uniform_dequantization=False):
        yield batch.indices.numpy(), extract(to_uint8(batch.images))


def nearest(points: np.ndarray, blocks: Iterable[Block]) -> tuple[np.ndarray, np.ndarray]:
    """The two nearest of all images of `blocks` to each of `points` (N, d): index int64 (N, 2), distance float64 (N, 2)."""
    x = torch.from_numpy(points).double()
    distance, index = torch.full((len(x), 2), math.inf, dtype=torch.float64), torch.full((len(x), 2), -1)
    for indices, rows in blocks:
        # Not by a matrix product, which would not give exactly 0 between equal images.
        d = torch.cdist(x, torch.from_numpy(rows).double(), compute_mode="donot_use_mm_for_euclid_dist")
        distance, order = torch.cat([distance, d], 1).topk(2, largest=False)
        index = torch.cat([index, torch.from_numpy(indices).expand(len(x), -1)], 1).gather(1, order)
    return index.numpy(), distance.numpy()


def proportion(hits: np.ndarray) -> dict[str, float]:
    """How often a bool array (N,) is True, with the 95% Wilson interval."""
    low, high = wilson_interval(float(hits.mean()), len(hits))
    return {"value": float(hits.mean()), "low": low, "high": high, "num_images": len(hits)}


def nearer_than_held_out(samples: np.ndarray, held_out: np.ndarray) -> dict[str, float]:
    """The fraction of samples at less than the distance that `NEAR` of held-out images are below; distances float64 (N,), (M,).

    The 95% interval counts both errors: the number of held-out images below the true quantile is binomial, so the threshold is
    drawn from that distribution, and for each threshold the fraction is drawn from its posterior under Jeffreys' prior.
    """
    rng = np.random.default_rng(0)
    rank = rng.binomial(len(held_out), NEAR, 10_000) + rng.random(10_000)  # uniform between neighbouring distances
    thresholds = np.interp(rank, np.arange(len(held_out) + 1), [0.0, *np.sort(held_out)])
    counts = np.searchsorted(np.sort(samples), thresholds)
    low, high = np.quantile(rng.beta(counts + 0.5, len(samples) - counts + 0.5), [0.025, 0.975])
    value = float((samples < np.quantile(held_out, NEAR, method="weibull")).mean())
    return {"value": value, "low": min(low, value), "high": max(high, value), "num_images": len(samples)}


def compare(samples: np.ndarray, held_out: np.ndarray) -> dict[str, Any]:
    """Mean distances with standard errors, and proportions with 95% intervals; distances as `nearest` gives them."""
    return {
        "mean_distance": asdict(Estimate.of(torch.from_numpy(samples[:, 0]))),
        "mean_distance_held_out": asdict(Estimate.of(torch.from_numpy(held_out[:, 0]))),
        f"nearer_than_{1 - NEAR:.0%}_of_held_out": nearer_than_held_out(samples[:, 0], held_out[:, 0]),
        "copies": proportion(samples[:, 0] < COPY * samples[:, 1]),
        "copies_held_out": proportion(held_out[:, 0] < COPY * held_out[:, 1]),
    }


def classify(
    classifier: ClassifierFeatures, samples: np.ndarray, held_out: np.ndarray, class_counts: np.ndarray
) -> dict[str, Any]:
    """The classes that the classifier sees in samples with features (N, d), and how sure it is; held-out images (M, d) too.

    class_counts: training images of each class, int64 (classes,). The chi-squared test is of samples having these frequencies.
    """
    ours, theirs = (classifier.probabilities(rows).numpy() for rows in (samples, held_out))
    observed = np.bincount(ours.argmax(1), minlength=len(class_counts))
    test = chisquare(observed, len(samples) * class_counts / class_counts.sum())
    return {
        "accuracy_on_held_out": classifier.accuracy,
        f"surer_than_{CONFIDENT}": proportion(ours.max(1) > CONFIDENT),
        f"surer_than_{CONFIDENT}_held_out": proportion(theirs.max(1) > CONFIDENT),
        "samples_of_each_class": observed.tolist(),
        "chi_squared": {"value": test.statistic, "degrees_of_freedom": len(observed) - 1, "p_value": test.pvalue},
    }


def study(config: ConfigDict, workdir: Path, checkpoint: int, delta: str | None, num_gen: int) -> tuple[dict[str, Any], Path]:
    """Draw samples, compare them, write figures and picture. Returns the figures, plain data, and the picture's path.

    Raises UserError if the checkpoint or the data set is missing.
    """
    sampler, trained = load_sampler(config, workdir, checkpoint, choice=Choice(delta))
    train, held_out = load_images(config.data, "train"), load_images(config.data, "held_out")
    directory = make_directory(workdir / "evaluation", "--workdir")
    extractors: dict[str, Extract] = {"pixels": pixels}
    if config.data.dataset.lower() in LABELLED:
        extractors["classifier"] = classifier_features(directory, config.data, sampler.precision.device)
    indices = range(num_gen)
    batches = [indices[start : start + BATCH_SIZE] for start in indices[::BATCH_SIZE]]
    samples = torch.cat([to_uint8(sampler.independent(batch)) for batch in batches])
    figures: dict[str, Any] = {"checkpoint_step": trained.step, "delta": sampler.label, "seed": sampler.seed}
    picture = Figure(figsize=(9, 2.2 * len(extractors)), layout="constrained")
    axes = picture.subplots(len(extractors), squeeze=False)[:, 0]
    for ax, (space, extract) in zip(axes, extractors.items(), strict=True):
        ours, theirs = extract(samples), np.concatenate([rows for _, rows in features(held_out, extract)])
        index, distance = nearest(np.concatenate([ours, theirs]), features(train, extract))
        figures[space] = compare(distance[:num_gen], distance[num_gen:])
        if isinstance(extract, ClassifierFeatures):
            class_counts = np.bincount(load_labelled(config.data, "train")[1], minlength=extract.num_classes)
            figures["classes"] = classify(extract, ours, theirs, class_counts)
        first = distance[:num_gen, 0].argsort()[:COLUMNS]
        originals = torch.from_numpy(np.stack([train[int(i)] for i in index[first, 0]]))
        ax.imshow(grid(torch.cat([samples[first], originals]) / 255, len(first)))
        ax.set_title(f"Samples nearest to a training image by {space}, and below each that image", fontsize=9)
        ax.axis("off")
    path = directory / f"memorization_delta_{sampler.label}.png"
    with atomic_write(path) as temporary:
        picture.savefig(temporary, dpi=150)
    with atomic_write(path.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")
    return figures, path


def main() -> int:
    """Print and write what `study` finds for the flags."""
    values = flags.FLAGS
    figures, path = study(values.config, values.workdir, values.checkpoint, values.delta, values.num_gen)
    print(json.dumps(figures, indent=2))
    print(f"{path} and {path.with_suffix('.json').name}")
    return 0


if __name__ == "__main__":
    define_config_flag()
    define_path_flag("workdir", "Run directory that train.py made.", required=True)
    flags.DEFINE_integer("checkpoint", 0, "n for checkpoints/checkpoint_n.pth, 0 for the newest.", lower_bound=0)
    flags.DEFINE_string("delta", None, "Sampling noise: a standard deviation, or spectral; by default the configuration's.")
    flags.DEFINE_integer("num_gen", 500, "Samples to draw.", lower_bound=2)
    run(main)
