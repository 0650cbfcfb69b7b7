"""How fast a configuration runs here, beside what this machine's matrix products reach.

python -m scripts.tools.benchmark --config configs/mnist/small_mnist.py [--config.training.batch_size=32 ...] [--repeats=10]
python -m scripts.tools.benchmark --config configs/mnist/small_mnist.py --against=diffusers    # needs pip install diffusers
"""

import json
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from absl import flags
from ml_collections import ConfigDict

from scripts.config import define_config_flag, run, validate
from scripts.device import Precision, device_name, resolve_device
from scripts.sampling.reverse import IndependentNoise, reverse_process
from scripts.timing import WARM_UP
from scripts.timing import seconds as timed
from scripts.tools.rivals import Diffusers
from scripts.training.cost import forward_flops
from scripts.training.step import Trainer

CONFIG = define_config_flag()
REPEATS = flags.DEFINE_integer(
    "repeats", 10, "Timed runs of each row, after some that are not; medians are reported.", lower_bound=1
)
AGAINST = flags.DEFINE_enum("against", None, ["diffusers"], "Compare with this package's network of the same size.")
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of a table.")


Measurement = tuple[str, Callable[[], object], float, float]
"""What is measured, a function that does it once, its work in FLOP, and how many images (or matrices) that is."""


def main() -> int:
    """Measure and print."""
    config = CONFIG.value
    validate(config)
    device = resolve_device(config.device)
    rows = compare(config, device) if AGAINST.value else measure(config, device)
    header = {
        "device": device_name(device),
        "precision": str(Precision.of(config, device)),
        "compile": config.compile,
        "torch": torch.__version__,
        "batch_size": config.training.batch_size,
        "repeats": REPEATS.value,
    }
    if AGAINST.value:
        header["diffusers"] = version("diffusers")
    if JSON.value:
        print(json.dumps({**header, "rows": rows}))
        return 0
    print(", ".join(f"{key} {value}" for key, value in header.items()))
    if AGAINST.value:
        print(f"{'':<28}{'ours, ms':>10}{'diffusers, ms':>15}{'ratio':>8}{'quartiles':>16}")
        for row in rows:
            print("{name:<28}{ours_ms:>10.1f}{diffusers_ms:>15.1f}{ratio:>8.2f}{low:>10.2f} {high:.2f}".format(**row))
        return 0
    print(f"{'':<28}{'ms':>10}{'images/s':>12}{'GFLOP/s':>12}{'of peak':>10}{'first, s':>10}{'peak, GB':>10}")
    for row in rows:
        line = "{name:<28}{ms:>10.2f}{images_per_s:>12.1f}{gflops:>12.1f}{of_peak:>10.0%}{first_s:>10.2f}".format(**row)
        print(line + (f"{row['peak_gb']:>10.2f}" if "peak_gb" in row else f"{'-':>10}"))  # of a GPU's memory
    return 0


def measure(config: ConfigDict, device: torch.device) -> list[dict[str, Any]]:
    """A row for each measurement; the first call of each, which may compile, is reported apart."""
    rows: list[dict[str, Any]] = []
    for name, once, flop, images in prepare(config, device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        first = timed(once, device)
        seconds = statistics.median(timings(once, device))
        row = {"name": name, "ms": 1e3 * seconds, "images_per_s": images / seconds, "gflops": flop / seconds / 1e9}
        rows.append({**row, "of_peak": row["gflops"] / (rows or [row])[0]["gflops"], "first_s": first})
        if device.type == "cuda":
            rows[-1]["peak_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return rows


def compare(config: ConfigDict, device: torch.device) -> list[dict[str, Any]]:
    """A row for the training step and one for the forward pass: ours and diffusers' in turn, so that both meet the same load.

    Ours is the whole step: noise, blur, forward and backward pass, clipping, Adam, averages. Theirs has its inputs ready, and
    neither clips nor averages.
    """
    trainer, rival = Trainer(config, device), Diffusers(config, device)
    images = torch.rand(config.training.batch_size, config.data.num_channels, config.data.image_size, config.data.image_size)
    u, k = images.to(device), torch.full((len(images),), config.model.K, device=device)
    pairs: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
        ("training step", lambda: trainer.train_step(images), lambda: rival.train_step(u, k, u)),
        ("U-Net forward", forward_pass(trainer, u, k), lambda: rival.forward(u, k)),
    ]
    rows = []
    for name, ours, theirs in pairs:
        for once in (ours, theirs) * WARM_UP:
            once()
        seconds = [(timed(ours, device), timed(theirs, device)) for _ in range(REPEATS.value)]
        ratios = [b / a for a, b in seconds]
        medians = [1e3 * statistics.median(side) for side in zip(*seconds, strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        row = {"name": name, "ours_ms": medians[0], "diffusers_ms": medians[1], "ratio": statistics.median(ratios)}
        rows.append({**row, "low": low, "high": high})
    return rows


def prepare(config: ConfigDict, device: torch.device) -> list[Measurement]:
    """The measurements for one configuration; the first one is the matrix product."""
    batch_size, K = config.training.batch_size, config.model.K
    shape = (config.data.num_channels, config.data.image_size, config.data.image_size)
    trainer = Trainer(config, device)
    images = torch.rand(batch_size, *shape)
    u = images.to(device)
    k = torch.full((batch_size,), K, device=device)
    n = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(n, n, device=device, dtype=trainer.precision.dtype if trainer.precision.enabled else torch.float32)
    steps = min(K, 10)  # every step of the reverse process costs the same

    def sample() -> None:
        trainer.model.eval()
        with trainer.precision.autocast():
            reverse_process(trainer.model, u, steps, 0.0125, IndependentNoise(0, range(batch_size), shape))

    forward_flop = batch_size * forward_flops(config)
    size = config.data.image_size
    blur_flop = batch_size * config.data.num_channels * 4 * 2 * size**3  # four products of size x size matrices
    measurements: list[Measurement] = [
        (f"matrix product {n}x{n}", lambda: matrix @ matrix, 2 * n**3, 1),
        ("training step", lambda: trainer.train_step(images), 3 * forward_flop, batch_size),
        ("U-Net forward", forward_pass(trainer, u, k), forward_flop, batch_size),
        ("blur", lambda: trainer.blur(u, k), blur_flop, batch_size),
        # A sample takes K steps, of which `steps` are run.
        (f"sampling, {steps} of {K} steps", sample, steps * forward_flop, batch_size * steps / K),
    ]
    return measurements


def forward_pass(trainer: Trainer, u: torch.Tensor, k: torch.Tensor) -> Callable[[], object]:
    """A function that runs the network once, nothing kept for gradients."""

    def forward() -> None:
        trainer.model.eval()
        with torch.no_grad(), trainer.precision.autocast():
            trainer.model(u, k)

    return forward


def timings(once: Callable[[], object], device: torch.device) -> list[float]:
    """Seconds of --repeats calls after some that are not timed."""
    for _ in range(WARM_UP):
        once()
    return [timed(once, device) for _ in range(REPEATS.value)]


if __name__ == "__main__":
    run(main)
