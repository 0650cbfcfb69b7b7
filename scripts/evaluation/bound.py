"""The bound as a user asks for it: of a checkpoint, on a split of its data, with a table and a picture by level."""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from model_code import build_blur
from model_code.elbo import Bound, Estimate, gaussian_kl_constant
from model_code.prior import PriorBank
from scripts import distributed
from scripts.checkpoint import TrainedModel, load_trained
from scripts.config import validate
from scripts.data.datasets import Split, load_images
from scripts.data.loader import Batch, HeldOutBatches, clean_batches, none_readable
from scripts.device import Precision, to_device
from scripts.errors import UserError
from scripts.evaluation.likelihood import BoundEstimator, LevelRow, Measurement, drawing_errors, level_table
from scripts.evaluation.plots import plot_by_level
from scripts.evaluation.results import Result, common_settings
from scripts.io import make_directory, replacing
from scripts.progress import progress_bar
from scripts.sampling.sampler import require_same_weights

SPLITS: dict[str, Split] = {"test": "held_out", "train": "train"}


class LikelihoodEvaluation:
    """Evaluates the bound at one setting after another; the network runs again only if checkpoint or seed change."""

    def __init__(
        self,
        config: ConfigDict,
        workdir: Path,
        *,
        split: str,
        num_images: int,
        num_levels_per_image: int,
        exact: bool,
        batch_size: int,
    ) -> None:
        """split: "test" or "train"; num_images: spread evenly over it, 0 for all; exact: all levels, not so many per image.

        Raises UserError for a configuration, a split or images that cannot be evaluated.
        """
        validate(config)
        if split not in SPLITS:
            raise UserError(f"--dataset_split={split}: the bound is computed on one of {', '.join(SPLITS)}")
        self.config, self.workdir = config, workdir
        self.split, self.num_images = split, num_images
        self.num_levels_per_image, self.exact, self.batch_size = num_levels_per_image, exact, batch_size
        self.device = distributed.device(config.device)
        self.images = load_images(config.data, SPLITS[split])
        self._measured: tuple[tuple[int, int], TrainedModel, PriorBank, Measurement] | None = None

    def __call__(self, *, checkpoint: int, delta: float, seed: int, directory: Path) -> list[Result]:
        """The bound in nats ("ELBO") and, for dequantised data, in bits per dimension ("BPD").

        Prints its parts, and writes them by level to a folder in `directory`. Raises UserError for a delta of 0. Of several
        processes each runs the network on its part of the images, and only process 0 has results, the others get none.
        """
        if delta == 0:
            raise UserError("--delta=0: the bound is infinite without sampling noise; delta must be greater than 0")
        trained, bank, measurement = self._measure(checkpoint, seed)
        if not distributed.is_main():
            return []
        sigma = self.config.model.sigma
        bound = measurement.bound(bank, sigma, delta)
        settings = {
            **common_settings(self.config, checkpoint=checkpoint, step=trained.step, delta=delta, seed=seed),
            "protocol": self.config.model.protocol,
            "dataset_split": self.split,
            "num_levels_per_image": measurement.levels.shape[1],
            "exact": measurement.exact,
        }
        print(describe(bound, settings, measurement.num_levels))
        if measurement.exact and self.num_levels_per_image < measurement.num_levels:
            print(describe_drawing(bound, self.num_levels_per_image))
        suffix = ("" if self.split == "test" else f"_{self.split}") + ("_exact" if measurement.exact else "")
        folder = directory / f"bound_step_{trained.step}_delta_{delta:g}_seed_{seed}{suffix}"
        floor = gaussian_kl_constant(measurement.num_pixels, sigma, delta)
        write_by_level(folder, bound, level_table(measurement, sigma, delta), floor, settings)
        print(f"by level: {folder / 'bound_by_level.png'}")
        total = Estimate.of(bound.total)
        num_images = len(bound.total)
        results = [Result("ELBO", total.value, total.standard_error, num_images, {**settings, "unit": "nats"})]
        if self.config.data.uniform_dequantization:
            bits = Estimate.of(bound.bits_per_dim)
            results.append(Result("BPD", bits.value, bits.standard_error, num_images, {**settings, "unit": "bits/dim"}))
        else:
            print("no bits/dim: the data was not dequantised (config.data.uniform_dequantization is False), so has no density")
        return results

    def _measure(self, checkpoint: int, seed: int) -> tuple[TrainedModel, PriorBank, Measurement]:
        if self._measured is None or self._measured[0] != (checkpoint, seed):
            config = self.config
            trained = load_trained(config, self.workdir, checkpoint)
            require_same_weights(trained)
            bank = self._bank_from_data() if trained.prior is None else trained.prior
            estimator = BoundEstimator(
                model=to_device(trained.model, self.device, config.compile),
                blur=build_blur(config).to(self.device),
                precision=Precision.of(config, self.device),
                sigma=config.model.sigma,
                protocol=config.model.protocol,
                batch_size=self.batch_size,
            )
            num_levels = None if self.exact else self.num_levels_per_image
            measurement = estimator.measure(self._batches(seed), bank, seed, num_levels).gathered()
            if len(measurement.levels) == 0:
                raise none_readable([self.images.name(0)])
            self._measured = ((checkpoint, seed), trained, bank, measurement)
        return self._measured[1:]

    def _batches(self, seed: int) -> Iterator[Batch]:
        """The images, as many at a time as make about one batch for the network."""
        data = self.config.data
        calls_per_image = self.config.model.K if self.exact else min(self.config.model.K, self.num_levels_per_image + 1)
        at_a_time = max(1, self.batch_size // calls_per_image)
        batches = HeldOutBatches(self.images, seed, at_a_time, self.num_images, data.uniform_dequantization, data.num_workers)
        with progress_bar(len(batches.chosen), "image", "likelihood bound") as bar:
            for batch in batches:
                yield batch
                bar.update(len(batch.images))

    def _bank_from_data(self) -> PriorBank:
        """The prior over training images, which the release's checkpoints do not hold."""
        data = self.config.data
        batches = clean_batches(load_images(data, "train"), self.batch_size, data.num_workers, data.uniform_dequantization)
        return PriorBank.from_batches((batch.images for batch in batches), build_blur(self.config))


def describe(bound: Bound, settings: dict, num_levels: int) -> str:
    """A few lines for a person: the parts of the bound with their standard errors."""
    looked_at = "all" if settings["exact"] else str(settings["num_levels_per_image"])
    lines = [
        f"bound on -log p(u_0): step {settings['checkpoint_step']}, delta {settings['delta']:g}, seed {settings['seed']}, "
        f"{len(bound.total)} images ({settings['dataset_split']}), {looked_at} of {num_levels} levels for each"
    ]
    lines += [f"  {name:<15}{part.value:>14.4f} +- {part.standard_error:.2g} nats" for name, part in _parts(bound).items()]
    return "\n".join(lines)


def describe_drawing(bound: Bound, num_draws: int) -> str:
    """From all terms of a bound, what drawing some levels per image would do to its mean over these images."""
    stratified, independent = drawing_errors(bound.terms, num_draws)
    return (
        f"  with {num_draws} levels per image their choice would add an error of {stratified:.3g} nats; drawn independently of "
        f"each other, {independent:.3g}, {independent / stratified:.1f} times as much"
    )


def _parts(bound: Bound) -> dict[str, Estimate]:
    """The parts of the bound and their sum, as means over images in nats."""
    parts = {
        "prior": bound.prior,
        "intermediate": bound.intermediate,
        "reconstruction": bound.reconstruction,
        "total": bound.total,
    }
    return {name: Estimate.of(values) for name, values in parts.items()}


def write_by_level(folder: Path, bound: Bound, rows: list[LevelRow], floor: float, settings: dict) -> None:
    """Write `bound.json` with the parts, `bound_by_level.csv` and `bound_by_level.png` with a row and a point per level.

    floor: what a term is when the mean is right, in nats.
    """
    make_directory(folder, "evaluation results")
    parts = {name: asdict(part) for name, part in _parts(bound).items()}
    with replacing(folder / "bound.json") as temporary:
        temporary.write_text(json.dumps({**settings, "num_images": len(bound.total), "nats": parts}, indent=2) + "\n")
    with replacing(folder / "bound_by_level.csv") as temporary, temporary.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["k", "num_images", "squared_error", "squared_error_standard_error", "term_nats", "term_standard_error"])
        for row in rows:
            error, term = row.squared_error, row.term
            table.writerow([row.k, row.num_images, error.value, error.standard_error, term.value, term.standard_error])
    title = f"step {settings['checkpoint_step']}, delta {settings['delta']:g}, {len(bound.total)} images"
    plot_by_level(
        folder / "bound_by_level.png",
        [row.k for row in rows],
        [row.term for row in rows[1:]],
        [row.squared_error for row in rows],
        floor,
        title,
    )
