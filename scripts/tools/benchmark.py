"""Measure how fast a configuration runs on this machine, beside a matrix product.

python -m scripts.tools.benchmark --config configs/mnist/quickstart.py [--seconds=10]
"""

import copy
import platform
from collections.abc import Callable, Iterator

import torch
from torch.utils.benchmark import Timer

from scripts.config.flags import Values, run
from scripts.config.resolve import Experiment, resolve
from scripts.runtime.device import Precision, device_name, resolve_device
from scripts.sampling.reverse import IndependentNoise, reverse_process
from scripts.training.plan import Work
from scripts.training.step import Trainer

Task = tuple[str, Callable[[], object], float]
"""A name, what to time, and its GFLOP."""


def main(flags: Values) -> int:
    """Measure and print a row for each task; speeds are compared with the matrix product's."""
    experiment = resolve(flags.config)
    config = experiment.config
    device = resolve_device(config.device)
    print(f"{torch.backends.cpu.get_cpu_capability()}; {device_name(device)}")
    print(
        f"{Precision.of(config, device)}; torch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )
    print(f"{'':<34}     median  quartiles   GFLOP/s  of product  peak GB")
    fastest = 0.0
    for name, task, gflop in tasks(experiment, device):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = Timer("task()", globals={"task": task}, num_threads=torch.get_num_threads())
        times = clock.blocked_autorange(min_run_time=flags.seconds)
        row = f"{name:<34}{1e3 * times.median:>8.3g} ms{times.iqr / times.median:>11.0%}"
        speed = gflop / times.median
        fastest = fastest or speed
        row += f"{speed:>10.1f}{speed / fastest:>12.0%}"
        if device.type == "cuda":
            row += f"{torch.cuda.max_memory_allocated(device) / 1e9:>9.2f}"
        print(row)
    return 0


def tasks(experiment: Experiment, device: torch.device) -> Iterator[Task]:
    """Yield a matrix product, then training and sampling on noise."""
    config = experiment.config
    trainer, work = Trainer(experiment, device), Work.of(experiment)
    n, shape = config.training.batch_size, experiment.shape
    images = torch.rand(n, *shape)
    u = images.to(device)
    k = torch.full((n,), config.model.K, device=device)
    noise = IndependentNoise(0, range(n), shape, device)
    kernel = trainer.process.reverse_kernel(chain=trainer.process.chain[-2:])

    network = copy.deepcopy(trainer.model).eval()

    @torch.no_grad()
    def forward() -> None:
        with trainer.precision.autocast():
            network(u, k)

    @torch.no_grad()
    def sample() -> None:
        reverse_process(trainer.process, network, u, kernel, noise)

    # A product of large matrices is about the fastest computation that there is.
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(side, side, device=device, dtype=trainer.precision.dtype)
    gflop = n * work.forward / 1e9
    yield f"matrix product {side}x{side}", lambda: matrix @ matrix, 2 * side**3 / 1e9
    step = f"training step, {n} of {shape[1]}x{shape[2]}"
    yield step, lambda: trainer.train_step(images), n * work.training / 1e9
    yield "U-Net forward", forward, gflop
    yield "sampling, one level, float32", sample, gflop


if __name__ == "__main__":
    run("benchmark", main)
