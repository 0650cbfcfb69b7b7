"""How fast a configuration runs on this machine, beside a matrix product of the same precision.

python -m scripts.tools.benchmark --config configs/mnist/quickstart.py [--config.training.batch_size=32 ...] [--seconds=10]
python -m scripts.tools.benchmark --config configs/mnist/quickstart.py --scaling     # batch sizes and image sizes
python -m scripts.tools.benchmark --config configs/mnist/small_mnist.py --against=diffusers    # needs pip install diffusers
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles

import torch
import torch.nn.functional as F
from absl import flags
from ml_collections import ConfigDict
from torch import nn
from torch.utils.benchmark import Timer, timer

from scripts.config import define_config_flag, run, validate
from scripts.device import Precision, device_name, resolve_device, to_device
from scripts.errors import UserError
from scripts.randomness import Purpose, normal_batch
from scripts.sampling.reverse import BLOCK, IndependentNoise, reverse_process
from scripts.training.plan import Work
from scripts.training.step import Trainer

CONFIG = define_config_flag()
SECONDS = flags.DEFINE_float("seconds", 5.0, "Time to spend on each row at least.", lower_bound=0.0)
SCALING = flags.DEFINE_bool("scaling", False, "Time per image against batch size and image size instead.")
AGAINST = flags.DEFINE_enum("against", None, ["diffusers"], "Compare with this package's network of the same size instead.")


@dataclass(frozen=True)
class Task:
    """One row: something to time, and what one call of it amounts to."""

    name: str
    once: Callable[[], object]
    images: int
    gflop: float


def main() -> int:
    """Measure and print."""
    config = CONFIG.value
    validate(config)
    device = resolve_device(config.device)
    print(f"{processor_name()}; {device_name(device)}; {Precision.of(config, device)}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, compile {config.compile}")
    if AGAINST.value:
        compare(config, device)
    else:
        tasks = scaling_tasks(config, device) if SCALING.value else tasks_of(config, device)
        measure(tasks, device)
    return 0


def measure(tasks: Iterator[Task], device: torch.device) -> None:
    """Print a row for each task; the first one is the matrix product that speeds are compared with."""
    titles = ("median", "quartiles", "an image", "GFLOP/s", "of product", "of a step", "peak GB")
    print(f"{'':<34}" + "".join(f"{title:>{width}}" for title, width in zip(titles, (11, 11, 12, 10, 12, 11, 9), strict=True)))
    peak = step = 0.0
    for task in tasks:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = Timer("once()", globals={"once": task.once}, num_threads=torch.get_num_threads())
        found = clock.blocked_autorange(min_run_time=SECONDS.value)
        speed = task.gflop / found.median
        peak = peak or speed
        step = found.median if task.name.startswith("training step") else step
        row = f"{task.name:<34}{1e3 * found.median:>8.3g} ms{found.iqr / found.median:>11.0%}"
        row += f"{1e3 * found.median / task.images:>9.3g} ms" if task.images else f"{'-':>12}"
        row += f"{speed:>10.1f}{speed / peak:>12.0%}" if task.gflop else f"{'-':>10}{'-':>12}"
        row += f"{found.median / step:>11.1%}" if step else f"{'-':>11}"
        print(row + (f"{torch.cuda.max_memory_allocated(device) / 1e9:>9.2f}" if device.type == "cuda" else f"{'-':>9}"))


def tasks_of(config: ConfigDict, device: torch.device) -> Iterator[Task]:
    """The parts of training and sampling with `config`, on noise; the first one is the matrix product."""
    trainer, gflop = Trainer(config, device), Work.of(config).forward / 1e9
    n, size = config.training.batch_size, config.data.image_size
    shape = (config.data.num_channels, size, size)
    images = torch.rand(n, *shape)
    u, k = images.to(device), torch.full((n,), config.model.K, device=device)
    exact = Precision.named(device, "float32")
    noise = IndependentNoise(0, range(n), shape, device)

    def sample() -> None:
        trainer.model.eval()
        with exact.autocast():
            reverse_process(trainer.model, u, 1, 0.01, noise)

    yield matrix_product(trainer.precision)
    yield training_step(trainer, images, gflop)
    yield Task("noise of a step", lambda: normal_batch(device, 0, Purpose.TRAIN_NOISE, 0, range(n), n, shape), n, 0)
    yield Task("corruption of a step", lambda: trainer.process.corrupt(u, k, u), n, 0)
    yield Task("U-Net forward", lambda: forward(trainer.model, trainer.precision, u, k), n, n * gflop)
    yield Task("sampling, one level, float32", sample, n, n * gflop)
    yield Task(f"noise of {BLOCK} levels", lambda: [noise(level) for level in range(BLOCK, 2 * BLOCK)], n * BLOCK, 0)


def scaling_tasks(config: ConfigDict, device: torch.device) -> Iterator[Task]:
    """Training steps of several batch sizes, and of several image sizes."""
    yield matrix_product(Precision.of(config, device))
    for images, size in [(n, config.data.image_size) for n in (8, 16, 32, 64, 128)] + [(16, size) for size in (16, 32, 64)]:
        resized = config.copy_and_resolve_references()
        resized.training.batch_size, resized.data.image_size = images, size
        validate(resized)
        batch = torch.rand(images, config.data.num_channels, size, size)
        yield training_step(Trainer(resized, device), batch, Work.of(resized).forward / 1e9)


def matrix_product(precision: Precision) -> Task:
    """A product of large matrices, about the fastest that the machine can compute."""
    side = 8192 if precision.device.type == "cuda" else 2048
    matrix = torch.rand(side, side, device=precision.device, dtype=precision.dtype)
    return Task(f"matrix product {side}x{side}", lambda: matrix @ matrix, 0, 2 * side**3 / 1e9)


def training_step(trainer: Trainer, images: torch.Tensor, gflop: float) -> Task:
    """A whole optimizer step; gflop: of a forward pass for one image."""
    n, size = len(images), images.shape[-1]
    return Task(f"training step, {n} of {size}x{size}", lambda: trainer.train_step(images), n, 3 * n * gflop)


@torch.no_grad()
def forward(model: nn.Module, precision: Precision, u: torch.Tensor, k: torch.Tensor) -> None:
    """Run a network on images u and levels k."""
    model.eval()
    with precision.autocast():
        model(u, k)


def compare(config: ConfigDict, device: torch.device) -> None:
    """Print the times of our network and diffusers', taken in turns so that both meet the same load, and their ratio.

    Our training step is the whole one: noise, blur, forward and backward pass, clipping, Adam, moving average. Theirs has its
    inputs ready, and neither clips nor averages.
    """
    trainer = Trainer(config, device)
    precision = trainer.precision
    theirs = to_device(diffusers_unet(config), device, config.compile, autocast=precision.enabled)
    optimizer, scaler = torch.optim.Adam(theirs.parameters(), lr=config.optim.lr, fused=True), precision.grad_scaler()
    images = torch.rand(config.training.batch_size, config.data.num_channels, config.data.image_size, config.data.image_size)
    u, k = images.to(device), torch.full((len(images),), config.model.K, device=device)

    def their_step() -> None:
        theirs.train()
        with precision.autocast():
            loss = F.mse_loss(theirs(u, k).sample.float(), u)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    print(f"diffusers {version('diffusers')}, {len(images)} images; theirs / ours above 1: ours is faster")
    print(f"{'':<16}{'ours, ms':>10}{'theirs, ms':>12}{'theirs / ours':>15}{'quartiles':>14}{'pairs':>7}")
    for name, one, other in (
        ("training step", lambda: trainer.train_step(images), their_step),
        ("U-Net forward", lambda: forward(trainer.model, precision, u, k), lambda: forward(theirs, precision, u, k)),
    ):
        pairs = in_turns(one, other, SECONDS.value)
        ratios = [b / a for a, b in pairs]
        low, _, high = quantiles(ratios, n=4)
        ours_ms, theirs_ms = (1e3 * median(side) for side in zip(*pairs, strict=True))
        print(f"{name:<16}{ours_ms:>10.1f}{theirs_ms:>12.1f}{median(ratios):>15.2f}{low:>8.2f} {high:.2f}{len(pairs):>7}")


def in_turns(one: Callable[[], object], other: Callable[[], object], seconds: float) -> list[tuple[float, float]]:
    """Times of both, one after the other, for as long as `seconds` and at least five times; the first pair does not count."""
    pairs: list[tuple[float, float]] = []
    while len(pairs) < 6 or sum(map(sum, pairs[1:])) < seconds:
        marks = [timer()]
        for once in (one, other):
            once()
            marks.append(timer())  # waits for the GPU
        pairs.append((marks[1] - marks[0], marks[2] - marks[1]))
    return pairs[1:]


def diffusers_unet(config: ConfigDict) -> nn.Module:
    """The network that `config` describes as diffusers' UNet2DModel; its middle and up-sampling blocks differ in details.

    Raises UserError if the package is not installed, or has no such network.
    """
    data, model = config.data, config.model
    channels = [model.model_channels * mult for mult in model.channel_mult]
    attended = {channels[level] for level in model.attention_levels} | {channels[-1]}  # the middle block attends, too
    if len(attended) > 1:
        raise UserError(
            f"--against=diffusers: config.model.attention_levels = {tuple(model.attention_levels)} asks for attention over "
            f"{sorted(attended)} channels, and diffusers has one size of heads for all"
        )
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise UserError(f"--against=diffusers: the package cannot be imported ({error}); pip install diffusers") from None
    kinds = ["Attn" if level in model.attention_levels else "" for level in range(len(channels))]
    resampling = "resnet" if model.resblock_updown else "conv"
    return UNet2DModel(
        sample_size=data.image_size,
        in_channels=data.num_channels,
        out_channels=data.num_channels,
        layers_per_block=model.num_res_blocks,
        block_out_channels=channels,
        down_block_types=[f"{kind}DownBlock2D" for kind in kinds],
        up_block_types=[f"{kind}UpBlock2D" for kind in reversed(kinds)],
        attention_head_dim=attended.pop() // model.num_heads,
        dropout=model.dropout,
        downsample_type=resampling,
        upsample_type=resampling,
        resnet_time_scale_shift="scale_shift" if model.use_scale_shift_norm else "default",
    )


def processor_name() -> str:
    """The processor in words, with what matters to matrix products: "Intel(R) Xeon(R) Processor (avx512f, amx_bf16)"."""
    path = Path("/proc/cpuinfo")
    entries = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line) if path.exists() else {}
    facts = {key.strip(): value.split() for key, value in entries.items()}
    name = " ".join(facts.get("model name", [platform.processor() or platform.machine()]))
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", [])]
    return f"{name} ({', '.join(extensions)})" if extensions else name


if __name__ == "__main__":
    run(main)
