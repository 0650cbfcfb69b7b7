"""How time grows with batch, image size, K and number of images: measured here, for docs/performance.md.

python -m scripts.scaling --config configs/mnist/pretrained.py --workdir runs/mnist/pretrained --out docs/performance.md

Writes tables between two markers in the file that --out names, and a picture and the same numbers as JSON beside it. A few
minutes on two processor cores.
"""

import contextlib
import io
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from absl import flags
from ml_collections import ConfigDict, config_flags

from scripts.benchmark import seconds_of
from scripts.bound import LikelihoodEvaluation
from scripts.config import define_config_flag, run
from scripts.cost import num_parameters
from scripts.device import Precision, device_name, resolve_device
from scripts.errors import UserError
from scripts.files import replacing, user_path
from scripts.plots import plot_scaling
from scripts.progress import progress_bar
from scripts.samples import load_sampler
from scripts.sampling import IndependentNoise, reverse_process
from scripts.train_step import Trainer

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
STEP_BATCHES = (8, 16, 32, 64, 128)
STEP_SIZES = (16, 32, 64, 128)
SIZE_BATCH = 8
SAMPLING_K = (25, 50, 100, 200)
SAMPLING_IMAGES = (1, 4, 16, 64)
EVALUATION_IMAGES = (32, 64, 128, 256)
REPEATS = 3
"""Medians of so many, after one that is not timed; of the longer ones, sampling and evaluation, one."""


@dataclass(frozen=True)
class Series:
    """Seconds that something takes, over a size."""

    title: str
    x: str
    seconds: dict[int, float]


def measure(config: ConfigDict, workdir: Path) -> list[Series]:
    """All series, with the network of `config` and, for evaluations, the weights in `workdir`."""
    device = resolve_device(config.device)
    sampler, _ = load_sampler(config, workdir, 0)

    def step(batch_size: int, image_size: int) -> float:
        sized = config.copy_and_resolve_references()
        sized.training.batch_size, sized.data.image_size = batch_size, image_size
        trainer = Trainer(sized, device)
        images = torch.rand(batch_size, config.data.num_channels, image_size, image_size)
        return _median(lambda: trainer.train_step(images), device, REPEATS)

    def sample(K: int, num_images: int) -> float:
        # As many levels as are asked for, whatever the network was trained for: every call costs the same.
        noise = IndependentNoise(0, range(num_images), sampler.shape)
        u = torch.rand(num_images, *sampler.shape, device=device)
        with sampler.precision.autocast():
            return _median(lambda: reverse_process(sampler.model, u, K, sampler.delta, noise), device, 1)

    def bound(num_images: int) -> float:
        evaluation = LikelihoodEvaluation(
            config, workdir, split="test", num_images=num_images, num_levels_per_image=10, exact=False,
            batch_size=config.eval.batch_size,
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            return seconds_of(
                lambda: evaluation(checkpoint=0, delta=sampler.delta, seed=sampler.seed, directory=Path(folder)), device
            )

    size, K, few = config.data.image_size, config.model.K, SAMPLING_IMAGES[2]
    plan: list[tuple[str, str, Sequence[int], Callable[[int], float]]] = [
        (f"training step, {size} pixels", "batch", STEP_BATCHES, lambda n: step(n, size)),
        (f"training step, batch {SIZE_BATCH}", "image size in pixels", STEP_SIZES, lambda n: step(SIZE_BATCH, n)),
        (f"sampling {few} images", "K", SAMPLING_K, lambda n: sample(n, few)),
        (f"sampling, K = {K}", "images", SAMPLING_IMAGES, lambda n: sample(K, n)),
        ("bound, 10 levels an image", "images", EVALUATION_IMAGES, bound),
    ]
    series = []
    with progress_bar(sum(len(values) for _, _, values, _ in plan), "measurement", "scaling") as bar:
        for title, x, values, seconds in plan:
            found = {}
            for value in values:
                found[value] = seconds(value)
                bar.update()
            series.append(Series(title, x, found))
    return series


def _median(once: Callable[[], object], device: torch.device, repeats: int) -> float:
    if repeats > 1:
        once()
    return statistics.median(seconds_of(once, device) for _ in range(repeats))


def tables(series: Sequence[Series], header: str) -> str:
    """Markdown: what was measured on, and a table for each series."""
    lines = [header]
    for part in series:
        lines += [
            "",
            f"| {part.title}: {part.x} | " + " | ".join(map(str, part.seconds)) + " |",
            "|---" * (1 + len(part.seconds)) + "|",
            "| seconds | " + " | ".join(f"{seconds:.3g}" for seconds in part.seconds.values()) + " |",
        ]
    return "\n".join(lines)


def between_markers(text: str, new: str, path: Path) -> str:
    """`text` with `new` between the markers in it. Raises UserError, naming `path`, if they are not there."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"--out={path}: must hold the lines {BEGIN} and {END}, between which the tables go")
    return f"{before}{BEGIN}\n{new}\n{END}{after}"


def main() -> int:
    """Measure for the flags, and write."""
    config, out = flags.FLAGS.config, user_path(flags.FLAGS.out, "--out")
    if not out.is_file():
        raise UserError(f"--out={out}: there is no such file")
    between_markers(out.read_text(), "", out)  # wrong files are named before minutes have passed
    series = measure(config, user_path(flags.FLAGS.workdir, "--workdir"))
    device = resolve_device(config.device)
    millions = num_parameters(config) / 1e6
    header = (
        f"Measured on {device_name(device)} with torch {torch.__version__}, {Precision.of(config, device)}: "
        f"the network of {config_flags.get_config_filename(flags.FLAGS['config'])}, {millions:.2f}M parameters."
    )
    text = between_markers(out.read_text(), tables(series, header), out)
    with replacing(out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps({"header": header, "series": [asdict(part) for part in series]}, indent=2) + "\n")
    plot_scaling(out.with_suffix(".png"), [(part.title, part.x, part.seconds) for part in series])
    with replacing(out) as temporary:
        temporary.write_text(text)
    print(tables(series, header))
    return 0


if __name__ == "__main__":
    define_config_flag()
    flags.DEFINE_string("workdir", None, "Run directory whose weights are evaluated and sampled from.", required=True)
    flags.DEFINE_string("out", None, "Markdown file with the two markers.", required=True)
    run(main)
