"""The bound on -log p(u_0) of a checkpoint: levels to look at, what the network does there, a table
and a picture by level.
"""

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from ml_collections import ConfigDict

from model_code.elbo import bits_per_dim
from model_code.prior import Prior
from model_code.process import ReverseKernel
from scripts.data.datasets import load_images
from scripts.data.labels import require_classes
from scripts.data.loader import OrderedBatches, Reading, none_readable
from scripts.data.training_set import build_prior
from scripts.data.values import EIGHT_BIT
from scripts.errors import UserError
from scripts.estimate import Estimate
from scripts.evaluation.features import SPLITS, data_set_images
from scripts.evaluation.results import Point, Result, error_bars, save_figure
from scripts.runtime import distributed
from scripts.runtime.progress import progress_bar
from scripts.sampling.bound import Measurement, measure
from scripts.sampling.initial_images import DataPrior
from scripts.sampling.sampler import Sampler, load_sampler, with_own_images
from scripts.storage.checkpoint import TrainedModel
from scripts.storage.files import atomic_write, make_directory
from scripts.storage.record import Record


class LevelRow(NamedTuple):
    """One row of the table by level: means over the images that were looked at at level k."""

    k: int
    num_images: int
    squared_error: float
    """||A_{k-1} u_0 - mu(u_k, k)||^2 for heat dissipation, else NaN."""
    squared_error_se: float
    term_nats: float
    """L_{k-1}, for k = 1 the reconstruction term L_0."""
    term_se: float
    term_without_errors: float
    """What the term would be without errors, the part of the sampling noise alone; NaN as well."""


def level_table(measurement: Measurement, process: Any, kernel: ReverseKernel) -> list[LevelRow]:
    """A row for the last level before 0 and for every level of the intermediate terms that was
    looked at, in the order of k.

    With protocol 'released' k = 1 has two rows, as its sum counts that level twice.
    """
    levels = measurement.levels
    drawn_before = torch.zeros_like(levels, dtype=torch.bool)
    drawn_before[:, 1:] = levels[:, 1:] == levels[:, :-1]
    errors_at = [(kernel.chain[-2], measurement.first_errors)]
    for level in levels.unique().tolist():
        errors_at.append((level, measurement.errors[(levels == level) & ~drawn_before]))
    rows = []
    for i, (k, errors) in enumerate(errors_at):
        with_zero = torch.cat([errors, torch.zeros_like(errors[:1])])
        terms = process.terms(with_zero, torch.full((len(with_zero),), k), kernel, last=i == 0)
        term, square = Estimate.of(terms[:-1]), Estimate.of(errors.sum(1))
        without_errors = terms[-1].item()
        if not getattr(process, "marginal_noise", True):
            # Errors are the terms themselves, and there is nothing to tell apart.
            square, without_errors = Estimate(math.nan, math.nan, len(errors)), math.nan
        values = (square.value, square.standard_error, term.value, term.standard_error)
        rows.append(LevelRow(k, len(errors), *values, without_errors))
    return rows


@dataclass
class BoundEvaluation:
    """Evaluates the bound at one setting after another; the network runs again if weights, seed or
    the kernel's mean change.
    """

    config: ConfigDict
    workdir: Path
    directory: Path
    """For tables and pictures by level."""
    split: str
    """A value of --dataset_split, see `features.SPLITS`."""
    num_images: int
    """Spread evenly over the split, 0 for all."""
    num_levels_per_image: int
    exact: bool
    """All levels, not `num_levels_per_image`."""
    batch_size: int
    dequantize: bool = True
    """Add uniform noise to the 8-bit values, without which images have no density and no
    bits/dim."""
    precision: str = "float32"
    _measured: tuple[tuple[object, ...], Prior, Measurement] | None = field(
        default=None, init=False
    )

    def record(self, point: Point) -> Record:
        """All that the bound depends on, without running the network.

        Raises UserError as the call does.
        """
        return self._prepare(point)[2]

    def _prepare(self, point: Point) -> tuple[Sampler, TrainedModel, Record]:
        sampler, trained = load_sampler(
            self.workdir,
            point.checkpoint,
            config=self.config,
            choice=point,
            seed=point.seed,
            precision=self.precision,
            scoring=True,
        )
        process: Any = sampler.process
        if not hasattr(process, "prior_term"):
            raise UserError(f"--mode=elbo: {type(process).__name__} has no bound on the likelihood")
        try:
            num_terms = len(process.bound_levels(sampler.kernel))
        except ValueError as error:
            raise UserError(str(error)) from None
        num_levels = num_terms if self.exact else min(num_terms, self.num_levels_per_image)
        images = data_set_images(self.config.data, self.split)
        eight_bit = images.dtype == EIGHT_BIT
        if process.discrete and not eight_bit:
            shown = f"config.data.value_range = {self.config.data.value_range}"
            name = self.config.model.process
            raise UserError(f"--mode=elbo: {shown}: the bound of {name} is of 8-bit images only")
        record = sampler.record(trained).add(
            data={
                "dataset_split": self.split,
                "dequantized": self.dequantize and eight_bit and not process.discrete,
            },
            metric={
                "protocol": process.protocol,
                "num_levels_per_image": num_levels,
                "exact": num_levels == num_terms,
            },
            options={"most_images": self.num_images},
        )
        require_classes(images, sampler.classes, self.config.data)
        record = with_own_images(record, self.config.data, [SPLITS[self.split]], trained.data)
        return sampler, trained, record

    def __call__(self, point: Point) -> list[Result]:
        """The bound in nats ("ELBO") and in bits per dimension ("BPD"), each with its value for
        every image.

        Prints its parts, and writes them by level to a folder in `directory`. Of several processes
        each runs the network on its part of the images, and only process 0 has results, the others
        get none. Raises UserError for a delta of 0.
        """
        sampler, trained, record = self._prepare(point)
        kernel, dequantize = sampler.kernel, record.data["dequantized"]
        guidance = sampler.guidance, sampler.interval
        key = trained.weights_crc32, sampler.seed, kernel.chain, kernel.checksum(), guidance
        if self._measured is None or self._measured[0] != key:
            sampler = replace(sampler, prior=self._prior(sampler, trained.dequantized, dequantize))
            self._measured = (key, sampler.prior, self._measure(sampler, dequantize))
        _, prior, measurement = self._measured
        if not distributed.is_main():
            return []
        process: Any = sampler.process
        bound = measurement.bound(process, prior, kernel)
        settings = record.add(data={"images_crc32": measurement.images_crc32}).row()
        nats = {name: Estimate.of(part) for name, part in bound.items()}
        settings["nats"] = {name: asdict(part) for name, part in nats.items()}
        looked_at = "all" if settings["exact"] else settings["num_levels_per_image"]
        print(
            f"bound on -log p(u_0): step {trained.step}, delta {kernel.label}, "
            f"seed {sampler.seed}, {len(bound['total'])} images ({self.split}), "
            f"{looked_at} of {measurement.num_levels} levels for each"
            + (", given their classes" if sampler.tells_classes else "")
        )
        for name, part in nats.items():
            print(f"  {name:<15}{part!s:>24} nats")
        name = f"bound_step_{trained.step}_delta_{sampler.label}_{settings['key'][:8]}"
        folder = self.directory / name
        title = f"step {trained.step}, delta {sampler.label}, {len(bound['total'])} images"
        write_by_level(folder, level_table(measurement, process, kernel), title)
        print(f"by level: {folder / 'bound_by_level.png'}")
        scores = {"ELBO": (bound["total"], "nats")}
        if self.dequantize and not dequantize and not process.discrete:
            print("  no bits/dim: these are of 8-bit images, and this is a density of [0, 1]")
        if dequantize or process.discrete:
            num_pixels = math.prod(sampler.shape)
            scores["BPD"] = bits_per_dim(bound["total"], num_pixels, process.discrete), "bits/dim"
        return [
            Result(score, Estimate.of(values), {**settings, "unit": unit}, per_image=values.numpy())
            for score, (values, unit) in scores.items()
        ]

    def _measure(self, sampler: Sampler, dequantize: bool) -> Measurement:
        data, K = self.config.data, sampler.num_steps
        num_levels = K if self.exact else self.num_levels_per_image
        images = data_set_images(data, self.split)
        # Images that make about one batch for the network.
        at_a_time = max(1, self.batch_size // min(K, num_levels + 1))
        batches = OrderedBatches(
            images, at_a_time, data.num_workers, dequantize, self.num_images, sampler.seed
        )
        with progress_bar(len(batches.chosen), "image", "likelihood bound") as bar:
            return measure(sampler, batches, self.batch_size, num_levels, bar.update)

    def _prior(self, sampler: Sampler, is_dequantized: bool, dequantize: bool) -> Prior:
        """The prior over training images, dequantised as the images are."""
        data = self.config.data
        process: Any = sampler.process
        if isinstance(sampler.prior, DataPrior):
            images = load_images(data, "train")
            batches = OrderedBatches(
                images, self.batch_size, data.num_workers, dequantize, mirrored=data.random_flip
            )
            readable = Reading("training images").batches(batches)
            prior = build_prior(process, readable, bool(sampler.classes))
            prior = prior.gathered(distributed.gather_rows)
            if len(prior) == 0:
                raise none_readable([images.name(0)])
            return prior
        if is_dequantized and not dequantize and not process.discrete:
            raise UserError(
                "--nodequantize: the model was trained on dequantised images; leave it out"
            )
        return sampler.prior.dequantized() if dequantize and not is_dequantized else sampler.prior


def write_by_level(folder: Path, rows: list[LevelRow], title: str) -> None:
    """Write `bound_by_level.csv` and `bound_by_level.png`, with a row and a point per level.

    The picture has panels over the blur level k, both logarithmic: terms of the bound for k > 1
    and, where there are any, squared errors for all k. A line shows what the terms would be if the
    network made no errors, where that is above 0.
    """
    make_directory(folder, "evaluation results")
    with atomic_write(folder / "bound_by_level.csv") as temporary:
        header = ",".join(LevelRow._fields)
        np.savetxt(temporary, rows, "%.12g", ",", header=header, comments="")
    k, _, squares, squares_se, terms, terms_se, least = np.array(rows).T
    has_errors = bool(np.isfinite(squares).any())
    figure = Figure(figsize=(7, 7), layout="constrained")
    panels = figure.subplots(1 + has_errors, 1, sharex=True, squeeze=False)[:, 0]
    above, lowest = panels[0], panels[-1]
    # The first row is the reconstruction term, which may be negative.
    error_bars(above, k[1:], terms[1:], terms_se[1:])
    label = "without errors of the network"
    above.plot(k[1:], least[1:], color="gray", ls="--", lw=1, label=label)
    above.legend()
    above.set(title=title, ylabel="$L_{k-1}$ in nats", yscale="log")
    if has_errors:
        error_bars(lowest, k, squares, squares_se)
        lowest.set(ylabel=r"$\|A_{k-1} u_0 - \mu(u_k, k)\|^2$", yscale="log")
    lowest.xaxis.set_major_locator(MaxNLocator(integer=True))
    lowest.set(xlabel="level $k$")
    save_figure(figure, folder / "bound_by_level.png")
