"""How fast a configuration runs on this machine, beside a matrix product of the same precision.

python -m scripts.tools.benchmark --config configs/mnist/quickstart.py [--config.training.batch_size=32 ...] [--seconds=10]
python -m scripts.tools.benchmark --config configs/mnist/small_mnist.py --against=diffusers    # needs pip install diffusers
"""

import platform
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from absl import flags
from ml_collections import ConfigDict
from torch import nn
from torch.utils.benchmark import Timer

from scripts.config.checks import validate
from scripts.config.flags import define_config_flag, run
from scripts.errors import UserError
from scripts.runtime.device import Precision, device_name, resolve_device, to_device
from scripts.runtime.randomness import Purpose, normal_batch
from scripts.sampling.reverse import BLOCK, IndependentNoise, reverse_process
from scripts.training.plan import Work
from scripts.training.step import Trainer

CONFIG = define_config_flag()
SECONDS = flags.DEFINE_float("seconds", 5.0, "Time to spend on each row at least.", lower_bound=0.0)
COLUMNS = {"median": 11, "quartiles": 11, "an image": 12, "GFLOP/s": 10, "of product": 12, "of a step": 11, "peak GB": 9}
AGAINST = flags.DEFINE_enum("against", None, ["diffusers"], "Measure this package's network of the same size, too.")


class Task(NamedTuple):
    """One row: something to time, and what one call of it amounts to."""

    name: str
    once: Callable[[], object]
    images: int = 0
    gflop: float = 0.0


def main() -> int:
    """Measure and print."""
    config = CONFIG.value
    validate(config)
    device = resolve_device(config.device)
    theirs = diffusers_unet(config) if AGAINST.value else None
    print(f"{processor_name()}; {device_name(device)}; {Precision.of(config, device)}")
    print(f"torch {torch.__version__}, Python {platform.python_version()}, compile {config.compile}")
    measure(tasks(config, device, theirs), device)
    return 0


def measure(tasks: Iterator[Task], device: torch.device) -> None:
    """Print a row for each task; speeds are compared with the first one's, times with the second one's."""
    print(" " * 34 + "".join(f"{title:>{width}}" for title, width in COLUMNS.items()))
    times, speeds = [], []
    for task in tasks:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = Timer("once()", globals={"once": task.once}, num_threads=torch.get_num_threads())
        found = clock.blocked_autorange(min_run_time=SECONDS.value)
        times.append(found.median)
        speeds.append(task.gflop / found.median)
        cells = [
            f"{1e3 * found.median:.3g} ms",
            f"{found.iqr / found.median:.0%}",
            f"{1e3 * found.median / task.images:.3g} ms" if task.images else "-",
            f"{speeds[-1]:.1f}" if task.gflop else "-",
            f"{speeds[-1] / speeds[0]:.0%}" if task.gflop else "-",
            f"{found.median / times[1]:.1%}" if len(times) > 1 else "-",
            f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}" if device.type == "cuda" else "-",
        ]
        print(f"{task.name:<34}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True)))


def tasks(config: ConfigDict, device: torch.device, theirs: nn.Module | None) -> Iterator[Task]:
    """A matrix product, the parts of training and sampling with `config` on noise, and the network `theirs` if given."""
    trainer, work = Trainer(config, device), Work.of(config)
    gflop = work.forward / 1e9
    precision, n, size = trainer.precision, config.training.batch_size, config.data.image_size
    shape = (config.data.num_channels, size, size)
    images = torch.rand(n, *shape)
    u, k = images.to(device), torch.full((n,), config.model.K, device=device)
    noise = IndependentNoise(0, range(n), shape, device)
    kernel = trainer.process.sampling_noise("auto", None, chain=trainer.process.chain[-2:])

    @torch.no_grad()
    def forward(model: nn.Module) -> None:
        model.eval()
        with precision.autocast():
            model(u, k)

    def sample() -> None:
        trainer.model.eval()
        reverse_process(trainer.process, trainer.model, u, kernel, noise)

    side = 8192 if device.type == "cuda" else 2048  # a product of large matrices is about the fastest that there is
    matrix = torch.rand(side, side, device=device, dtype=precision.dtype)
    yield Task(f"matrix product {side}x{side}", lambda: matrix @ matrix, gflop=2 * side**3 / 1e9)
    yield Task(f"training step, {n} of {size}x{size}", lambda: trainer.train_step(images), n, work.training / 1e9 * n)
    yield Task("noise of a step", lambda: normal_batch(device, 0, Purpose.TRAIN_NOISE, 0, range(n), n, shape), n)
    yield Task("corruption of a step", lambda: trainer.process.corrupt(u, k, u), n)
    yield Task("U-Net forward", lambda: forward(trainer.model), n, n * gflop)
    yield Task("sampling, one level, float32", sample, n, n * gflop)
    yield Task(f"noise of {BLOCK} levels", lambda: [noise(level) for level in range(BLOCK, 2 * BLOCK)], n * BLOCK)
    if theirs is not None:
        network = to_device(theirs, device, config.compile, autocast=precision.enabled)
        yield Task("diffusers: training step", their_step(network, precision, u, k), n)
        yield Task("diffusers: U-Net forward", lambda: forward(network), n)


def their_step(model: nn.Module, precision: Precision, u: torch.Tensor, k: torch.Tensor) -> Callable[[], None]:
    """A training step of diffusers' network: forward pass, backward pass and Adam on inputs that are ready.

    Ours also draws noise, blurs, clips gradients and averages weights.
    """
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def step() -> None:
        model.train()
        with precision.autocast():
            loss = F.mse_loss(model(u, k).sample.float(), u)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def diffusers_unet(config: ConfigDict) -> nn.Module:
    """The network that `config` describes as diffusers' UNet2DModel; its middle and up-sampling blocks differ in details.

    Raises UserError if the package is not installed, or has no such network.
    """
    data, model = config.data, config.model
    channels = [model.model_channels * mult for mult in model.channel_mult]
    attended = {channels[level] for level in model.attention_levels} | {channels[-1]}  # the middle block attends, too
    if len(attended) > 1 or model.patch_size > 1:
        raise UserError(
            f"--against=diffusers: it has no patches (config.model.patch_size = {model.patch_size}), and one size of heads for "
            f"all levels with attention, which here have {sorted(attended)} channels"
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
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", text)]
    return f"{name[1] if name else platform.machine()} ({', '.join(extensions) or 'no AVX2'})"


if __name__ == "__main__":
    run(main)
