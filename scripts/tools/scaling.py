"""How time grows with batch, image size, levels and numbers of images: measured here, as tables and a picture.

python -m scripts.tools.scaling --config configs/mnist/quickstart.py [--repeats=5] [--out=docs]

Writes performance.json and performance.png, and the tables in performance.md between two marks; its other text stays.
"""

import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from absl import flags
from ml_collections import ConfigDict

from model_code import build_blur, build_model
from model_code.elbo import prior_kl_bound
from model_code.prior import PriorBank
from scripts.config import ROOT, define_config_flag, run, sampling_delta, validate
from scripts.data.datasets import load_images
from scripts.data.loader import Batch, clean_batches
from scripts.device import Precision, device_name, resolve_device
from scripts.errors import UserError
from scripts.evaluation.likelihood import BoundEstimator
from scripts.evaluation.plots import Panel, plot_scaling
from scripts.io import atomic_write, make_directory, user_path
from scripts.progress import progress_bar
from scripts.provenance import commit, now
from scripts.sampling.sampler import Sampler
from scripts.timing import processor_name, seconds
from scripts.training.cost import forward_flops
from scripts.training.step import Trainer

CONFIG = define_config_flag()
REPEATS = flags.DEFINE_integer("repeats", 5, "Timed runs of each point, after one that is not.", lower_bound=1)
OUT = flags.DEFINE_string("out", str(ROOT / "docs"), "Directory of performance.md, performance.png and performance.json.")

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"

BATCH_SIZES = (8, 16, 32, 64, 128)
IMAGE_SIZES = (16, 32, 48, 64)
IMAGES_AT_SIZES = 16
LEVELS = (5, 10, 20, 40, 80)
IMAGES_AT_LEVELS = 8
SAMPLES = (2, 4, 8, 16, 32)
BOUND_IMAGES = (8, 16, 32, 64)
LEVELS_PER_IMAGE = 10
PRIOR_IMAGES = (125, 250, 500, 1000, 2000, 4000)


@dataclass(frozen=True)
class Point:
    """One thing to time."""

    x: int
    once: Callable[[], object]
    work: float
    """In GFLOP; tells the progress bar how long a run may take."""
    amount: float
    """What the time is divided by in the table's last column."""


@dataclass(frozen=True)
class Curve:
    """The same work as one number grows."""

    title: str
    x_label: str
    per: str
    """What `amount` of a point counts: the table says "ms per" it."""
    power: int
    """The time is expected to grow with x to this power."""
    points: Sequence[Point]


def main() -> int:
    """Measure, write, print."""
    validate(CONFIG.value)
    out = make_directory(user_path(OUT.value, "--out"), "--out")
    print(report(CONFIG.value, resolve_device(CONFIG.value.device), REPEATS.value, out))
    return 0


def report(config: ConfigDict, device: torch.device, repeats: int, out: Path) -> str:
    """Measure, and write the three files in `out`; returns the tables. Raises UserError, before that, if it cannot be."""
    page = Page(out / "performance.md")
    curves = [*training_curves(config, device), *inference_curves(config, device)]
    described = header(config, device)
    results = measure(curves, repeats, device)
    with atomic_write(out / "performance.json") as temporary:
        temporary.write_text(json.dumps({"header": described, "curves": results}, indent=1) + "\n")
    panels = [
        Panel(curve.title, curve.x_label, [p.x for p in curve.points], [row["seconds"] for row in found["rows"]], curve.power)
        for curve, found in zip(curves, results, strict=True)
    ]
    plot_scaling(out / "performance.png", panels, "{device}; {processor}; {precision}".format(**described))
    tables = "\n".join(table_lines(described, results))
    page.write(tables)
    return tables


class Page:
    """A Markdown file, of which the part between two marks is ours."""

    def __init__(self, path: Path) -> None:
        """A file that is not there begins empty. Raises UserError for one without the marks."""
        self.path = path
        text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
        self.before, begin, rest = text.partition(BEGIN)
        _, end, self.after = rest.partition(END)
        if not begin or not end:
            raise UserError(f"{path}: the tables go between the lines {BEGIN} and {END}, which it lacks; choose another --out")

    def write(self, tables: str) -> None:
        """Put `tables` there."""
        with atomic_write(self.path) as temporary:
            temporary.write_text(f"{self.before}{BEGIN}\n{tables}\n{END}{self.after}")


def training_curves(config: ConfigDict, device: torch.device) -> Iterator[Curve]:
    """Training steps, by batch size and by image size, on noise."""

    def step(trainer: Trainer, batch_size: int, size: int, work: float) -> Point:
        images = torch.rand(batch_size, config.data.num_channels, size, size)
        return Point(batch_size, lambda: trainer.train_step(images), 3 * batch_size * work, batch_size)

    trainer, flops = Trainer(config, device), forward_flops(config) / 1e9
    size = config.data.image_size
    points = [step(trainer, batch_size, size, flops) for batch_size in BATCH_SIZES]
    yield Curve(f"Training step, images of {size} pixels", "batch size", "image", 1, points)

    points = []
    for size in IMAGE_SIZES:
        resized = config.copy_and_resolve_references()
        resized.data.image_size = size
        validate(resized)
        point = step(Trainer(resized, device), IMAGES_AT_SIZES, size, forward_flops(resized) / 1e9)
        points.append(Point(size, point.once, point.work, IMAGES_AT_SIZES * size**2 / 1000))
    yield Curve(f"Training step, {IMAGES_AT_SIZES} images", "height and width in pixels", "1000 pixels", 2, points)


def inference_curves(config: ConfigDict, device: torch.device) -> Iterator[Curve]:
    """Sampling, by levels and by number of images, and the bound's parts, by number of images; with the config's own data."""
    data, K = config.data, config.model.K
    source = load_images(data, "train")
    batches = clean_batches(source, config.eval.batch_size, data.num_workers, data.uniform_dequantization)
    images = torch.cat([batch.images for batch in batches])
    blur = build_blur(config)
    bank = PriorBank.from_images(images, blur)
    model, work = build_model(config).eval().to(device), forward_flops(config) / 1e9

    def sampling(K: int, num_images: int) -> Callable[[], object]:
        with_K = config.copy_and_resolve_references()
        with_K.model.K = K  # the last level, so the prior, is the same for all K
        sampler = Sampler.from_config(with_K, model, bank, device, None, None)
        return lambda: sampler.independent(range(num_images))

    n = IMAGES_AT_LEVELS
    points = [Point(levels, sampling(levels, n), levels * n * work, levels * n) for levels in LEVELS]
    yield Curve(f"Sampling {n} images", "levels K", "image and level", 1, points)
    points = [Point(n, sampling(K, n), K * n * work, n) for n in SAMPLES]
    yield Curve(f"Sampling, K = {K}", "images", "image", 1, points)

    calls = min(K, LEVELS_PER_IMAGE + 1)
    estimator = BoundEstimator(
        model=model,
        blur=build_blur(config).to(device),
        precision=Precision.of(config, device),
        sigma=config.model.sigma,
        protocol=config.model.protocol,
        batch_size=config.eval.batch_size,
    )

    def bound(num_images: int) -> Callable[[], object]:
        parts = torch.arange(num_images).split(max(1, config.eval.batch_size // calls))
        return lambda: estimator.measure((Batch(images[part], part, ()) for part in parts), bank, 0, LEVELS_PER_IMAGE)

    points = [Point(n, bound(n), calls * n * work, n) for n in BOUND_IMAGES if n <= len(images)]
    yield Curve(f"Bound, {calls} levels for each image", "images", "image", 1, points)

    def prior(num_images: int) -> Callable[[], object]:
        return lambda: prior_kl_bound(images[:num_images], bank, config.model.sigma, sampling_delta(config))

    pair = 2 * bank.coefficients[0].numel() / 1e9
    points = [Point(n, prior(n), n * len(bank) * pair, n) for n in PRIOR_IMAGES if n <= len(images)]
    yield Curve(f"Prior term L_K over {len(bank)} training images", "images", "image", 1, points)


def measure(curves: Sequence[Curve], repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """All durations as plain data. Each round runs every point once, so that a slow minute does not hit one point alone."""
    points = [point for curve in curves for point in curve.points]
    runs: dict[int, list[float]] = {id(point): [] for point in points}
    with progress_bar((1 + repeats) * sum(round(point.work) for point in points), "GFLOP", "measuring") as bar:
        for _ in range(1 + repeats):
            for point in points:
                runs[id(point)].append(seconds(point.once, device))
                bar.update(round(point.work))
    return [
        {
            "title": curve.title,
            "x_label": curve.x_label,
            "per": curve.per,
            "rows": [{"x": p.x, "amount": p.amount, "seconds": runs[id(p)][1:]} for p in curve.points],
        }
        for curve in curves
    ]


def header(config: ConfigDict, device: torch.device) -> dict[str, str]:
    """Where and with what the measurements were made."""
    return {
        "command": shlex.join(["python", "-m", "scripts.tools.scaling", *sys.argv[1:]]),
        "device": device_name(device),
        "processor": processor_name(),
        "precision": str(Precision.of(config, device)),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit() or "unknown",
        "time": now(),
    }


def table_lines(described: dict[str, str], curves: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The `header` and what `measure` gave, as Markdown."""
    yield from ("```", *(f"{key:<12}{value}" for key, value in described.items()), "```")
    for curve in curves:
        yield from ("", f"**{curve['title']}**", "")
        yield f"| {curve['x_label']} | median | fastest to slowest of {len(curve['rows'][0]['seconds'])} | per {curve['per']} |"
        yield "|---:|---:|---:|---:|"
        for row in curve["rows"]:
            median = statistics.median(row["seconds"])
            spread = f"{milliseconds(min(row['seconds']))} to {milliseconds(max(row['seconds']))}"
            yield f"| {row['x']} | {milliseconds(median)} | {spread} | {milliseconds(median / row['amount'])} |"


def milliseconds(duration: float) -> str:
    """Seconds as ms with three digits."""
    ms = 1e3 * duration
    return f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


if __name__ == "__main__":
    run(main)
