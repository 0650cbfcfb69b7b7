"""How fast a configuration runs here, beside what this machine's matrix products reach.

python -m scripts.benchmark --config configs/mnist/small_mnist.py [--config.training.batch_size=32 ...] [--repeats=10]
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from absl import flags
from ml_collections import ConfigDict

from scripts.config import define_config_flag, run, validate
from scripts.cost import forward_flops
from scripts.device import resolve_device
from scripts.sampling import IndependentNoise, reverse_process
from scripts.train_step import Trainer

CONFIG = define_config_flag()
REPEATS = flags.DEFINE_integer(
    "repeats", 10, "Timed runs of each row, after two that are not; medians are reported.", lower_bound=1
)
JSON = flags.DEFINE_bool("json", False, "Print one line of JSON instead of a table.")

Measurement = tuple[str, Callable[[], object], float, float]
"""What is measured, a function that does it once, its work in FLOP, and how many images (or matrices) that is."""


def main() -> int:
    """Measure and print."""
    config = CONFIG.value
    validate(config)
    device = resolve_device(config.device)
    measurements, precision = prepare(config, device)
    rows: list[dict[str, Any]] = []
    for name, once, flop, images in measurements:
        seconds = median_seconds(once, REPEATS.value, device)
        rows.append({"name": name, "ms": 1e3 * seconds, "images_per_s": images / seconds, "gflops": flop / seconds / 1e9})
    for row in rows:
        row["of_peak"] = row["gflops"] / rows[0]["gflops"]
    header = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "precision": precision,
        "torch": torch.__version__,
        "batch_size": config.training.batch_size,
        "repeats": REPEATS.value,
    }
    if JSON.value:
        print(json.dumps({**header, "rows": rows}))
        return 0
    print(", ".join(f"{key} {value}" for key, value in header.items()))
    print(f"{'':<28}{'ms':>10}{'images/s':>12}{'GFLOP/s':>12}{'of peak':>10}")
    for row in rows:
        print("{name:<28}{ms:>10.2f}{images_per_s:>12.1f}{gflops:>12.1f}{of_peak:>10.0%}".format(**row))
    return 0


def prepare(config: ConfigDict, device: torch.device) -> tuple[list[Measurement], str]:
    """The measurements for one configuration, and the precision that they use; the first one is the matrix product."""
    batch_size, K = config.training.batch_size, config.model.K
    shape = (config.data.num_channels, config.data.image_size, config.data.image_size)
    trainer = Trainer(config, device)
    images = torch.rand(batch_size, *shape)
    u = images.to(device)
    k = torch.full((batch_size,), K, device=device)
    n = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(n, n, device=device, dtype=trainer.precision.dtype if trainer.precision.enabled else torch.float32)
    steps = min(K, 10)  # every step of the reverse process costs the same

    def forward() -> None:
        trainer.model.eval()
        with torch.no_grad(), trainer.precision.autocast():
            trainer.model(u, k)

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
        ("U-Net forward", forward, forward_flop, batch_size),
        ("blur", lambda: trainer.blur(u, k), blur_flop, batch_size),
        # A sample takes K steps, of which `steps` are run.
        (f"sampling, {steps} of {K} steps", sample, steps * forward_flop, batch_size * steps / K),
    ]
    return measurements, str(trainer.precision)


def median_seconds(once: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Median over `repeats` calls after two to warm up, each waited for."""
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        once()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[2:])


if __name__ == "__main__":
    run(main)
