"""How fast a configuration runs on this machine, beside a matrix product of the same precision.

python -m scripts.tools.benchmark --config configs/mnist/quickstart.py [--config.training.batch_size=32 ...] [--seconds=10]
python -m scripts.tools.benchmark --config configs/mnist/small_mnist.py --against=diffusers    # needs pip install diffusers
python -m scripts.tools.benchmark --config configs/ffhq/default_ffhq_configs.py --reading=D [--num_images=3000 --size=1024]

The last one makes photograph-like PNG files (1/f noise) in a directory below D, reads them as
training does, packed and not, and deletes them.
"""

import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from absl.flags import FLAGS
from ml_collections import ConfigDict
from PIL import Image
from torch import nn
from torch.utils.benchmark import Timer

from scripts.config.checks import validate
from scripts.config.flags import run
from scripts.data.datasets import load_images, load_whole
from scripts.data.loader import TrainBatches, num_threads, read_ahead, train_loader
from scripts.data.packs import write_pack
from scripts.errors import UserError
from scripts.runtime import distributed
from scripts.runtime.device import Precision, device_name, resolve_device, to_device
from scripts.runtime.progress import progress_bar
from scripts.runtime.randomness import Purpose, normal_batch
from scripts.sampling.reverse import BLOCK, IndependentNoise, reverse_process
from scripts.storage.files import make_directory
from scripts.training.plan import H100_TFLOPS, Work
from scripts.training.step import Trainer

COLUMNS = {
    "median": 11,
    "quartiles": 11,
    "an image": 12,
    "GFLOP/s": 10,
    "of product": 12,
    "of a step": 11,
    "peak GB": 9,
}


class Task(NamedTuple):
    """One row: something to time, and what one call of it amounts to."""

    name: str
    once: Callable[[], object]
    images: int = 0
    gflop: float = 0.0


def main() -> int:
    """Measure and print."""
    config = FLAGS.config
    validate(config)
    if FLAGS.reading:
        return compare_reading(
            ConfigDict(config.to_dict()), make_directory(FLAGS.reading, "--reading")
        )
    device = resolve_device(config.device)
    theirs = diffusers_unet(config) if FLAGS.against else None
    print(f"{processor_name()}; {device_name(device)}; {Precision.of(config, device)}")
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, compile {config.compile}"
    )
    measure(tasks(config, device, theirs), device)
    return 0


def measure(tasks: Iterator[Task], device: torch.device) -> None:
    """Print a row for each task; speeds are compared with the first one's, times with the second
    one's.
    """
    print(" " * 34 + "".join(f"{title:>{width}}" for title, width in COLUMNS.items()))
    times, speeds = [], []
    for task in tasks:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = Timer("once()", globals={"once": task.once}, num_threads=torch.get_num_threads())
        found = clock.blocked_autorange(min_run_time=FLAGS.seconds)
        times.append(found.median)
        speeds.append(task.gflop / found.median)
        cells = [
            f"{1e3 * found.median:.3g} ms",
            f"{found.iqr / found.median:.0%}",
            f"{1e3 * found.median / task.images:.3g} ms" if task.images else "-",
            f"{speeds[-1]:.1f}" if task.gflop else "-",
            f"{speeds[-1] / speeds[0]:.0%}" if task.gflop else "-",
            f"{found.median / times[1]:.1%}" if len(times) > 1 else "-",
            f"{torch.cuda.max_memory_allocated(device) / 1e9:.2f}"
            if device.type == "cuda"
            else "-",
        ]
        print(
            f"{task.name:<34}"
            + "".join(
                f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True)
            )
        )


def tasks(config: ConfigDict, device: torch.device, theirs: nn.Module | None) -> Iterator[Task]:
    """A matrix product, the parts of training and sampling with `config` on noise, and the network
    `theirs` if given.
    """
    trainer, work = Trainer(config, device), Work.of(config)
    gflop = work.forward / 1e9
    precision, n, size = trainer.precision, config.training.batch_size, config.data.image_size
    shape = (config.data.num_channels, size, size)
    images = torch.rand(n, *shape)
    u, k = images.to(device), torch.full((n,), config.model.K, device=device)
    noise = IndependentNoise(0, range(n), shape, device)
    kernel = trainer.process.reverse_kernel(chain=trainer.process.chain[-2:])

    @torch.no_grad()
    def forward(model: nn.Module) -> None:
        model.eval()
        with precision.autocast():
            model(u, k)

    def sample() -> None:
        trainer.model.eval()
        reverse_process(trainer.process, trainer.model, u, kernel, noise)

    side = (
        8192 if device.type == "cuda" else 2048
    )  # a product of large matrices is about the fastest that there is
    matrix = torch.rand(side, side, device=device, dtype=precision.dtype)
    yield Task(f"matrix product {side}x{side}", lambda: matrix @ matrix, gflop=2 * side**3 / 1e9)
    yield Task(
        f"training step, {n} of {size}x{size}",
        lambda: trainer.train_step(images),
        n,
        work.training / 1e9 * n,
    )
    yield Task(
        "noise of a step",
        lambda: normal_batch(device, 0, Purpose.TRAIN_NOISE, 0, range(n), n, shape),
        n,
    )
    yield Task("corruption of a step", lambda: trainer.process.corrupt(u, k, u), n)
    yield Task("U-Net forward", lambda: forward(trainer.model), n, n * gflop)
    yield Task("sampling, one level, float32", sample, n, n * gflop)
    yield Task(
        f"noise of {BLOCK} levels",
        lambda: [noise(level) for level in range(BLOCK, 2 * BLOCK)],
        n * BLOCK,
    )
    if theirs is not None:
        network = to_device(theirs, device, config.compile, autocast=precision.enabled)
        yield Task("diffusers: training step", their_step(network, precision, u, k), n)
        yield Task("diffusers: U-Net forward", lambda: forward(network), n)


def their_step(
    model: nn.Module, precision: Precision, u: torch.Tensor, k: torch.Tensor
) -> Callable[[], None]:
    """A training step of diffusers' network: forward pass, backward pass and Adam on inputs that
    are ready.

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
    """The network that `config` describes as diffusers' UNet2DModel; its middle and up-sampling
    blocks differ in details.

    Raises UserError if the package is not installed, or has no such network.
    """
    data, model = config.data, config.model
    channels = [model.model_channels * mult for mult in model.channel_mult]
    attended = {channels[level] for level in model.attention_levels} | {
        channels[-1]
    }  # the middle block attends, too
    if len(attended) > 1 or model.patch_size > 1:
        raise UserError(
            f"--against=diffusers: it has no patches (config.model.patch_size = {model.patch_size}), and one size of heads for "
            f"all levels with attention, which here have {sorted(attended)} channels"
        )
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise UserError(
            f"--against=diffusers: the package cannot be imported ({error}); pip install diffusers"
        ) from None
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


def make_photographs(folder: Path, num_images: int, size: int) -> None:
    """PNG files of noise whose amplitude falls as 1/f, as that of photographs does: 16 fields, each
    time shifted anew.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    fields = [
        np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, size, size))) / frequency)
        for _ in range(16)
    ]
    pixels = [
        np.clip(128 + 50 * field / field.std(), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        for field in fields
    ]

    def write(i: int) -> None:
        shifted = np.roll(pixels[i % 16], np.random.default_rng(i).integers(size, size=2), (0, 1))
        Image.fromarray(shifted).save(folder / f"{i:06}.png", compress_level=1)

    cores = distributed.cores()
    with progress_bar(num_images, "image", "making images") as bar:
        for _ in read_ahead(write, range(num_images), cores, ahead=cores):
            bar.update()


def compare_reading(config: ConfigDict, directory: Path) -> int:
    """A row each for reading images, packing them, and reading the pack."""
    data, num_images, batch_size = config.data, FLAGS.num_images, config.training.batch_size
    step = (
        batch_size * Work.of(config).training / (H100_TFLOPS["bfloat16"] * 1e12 * 0.4)
    )  # as in --plan
    print(
        f"{processor_name()}, {distributed.cores()} cores; {num_images} PNG files of {FLAGS.size}x{FLAGS.size}"
    )
    print(
        f"as {data.image_size}x{data.image_size}x{data.num_channels}, for steps of {batch_size} in {1e3 * step:.1f} ms"
    )
    print("            threads  images/s  waiting   memory")
    with tempfile.TemporaryDirectory(dir=directory) as made:
        data.dataset, data.path, pack = "folder", made, Path(made) / ".pack"
        make_photographs(Path(made), num_images, FLAGS.size)
        read(config, "not packed", step)
        start = time.monotonic()
        write_pack(pack, data, load_whole(data))
        print(
            f"{'packing':<12}{distributed.cores():>7}{num_images / (time.monotonic() - start):>10.1f}",
            flush=True,
        )
        data.path = str(pack)
        read(config, "packed", step)
    return 0


def read(config: ConfigDict, name: str, step: float) -> None:
    """Print images a second, the share of the time that steps of `step` seconds wait for their
    batches, and memory.

    The pages of files, which the system takes back when it needs them, do not count as memory.
    """
    data, source, memory = config.data, load_images(config.data, "train"), 0
    batches = TrainBatches(
        source,
        config.seed,
        config.training.batch_size,
        data.random_flip,
        data.uniform_dequantization,
    )
    for pause in (0.0, step):
        with closing(train_loader(batches, 0, 10**9, data.num_workers)) as loader:
            next(loader)
            start, waited, steps = time.monotonic(), 0.0, 0
            while steps < 3 or time.monotonic() < start + FLAGS.seconds:
                time.sleep(pause)
                asked = time.monotonic()
                next(loader)
                waited, steps = waited + time.monotonic() - asked, steps + 1
                anonymous = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
                memory = max(memory, int(anonymous[1]) if anonymous else 0)
            waiting = waited / (time.monotonic() - start)
        if pause == 0:
            speed = steps * batches.batch_size / waited
    threads = num_threads(data.num_workers, source)
    print(f"{name:<12}{threads:>7}{speed:>10.1f}{waiting:>9.1%}{memory / 1e6:>6.2f} GB", flush=True)


def processor_name() -> str:
    """The processor in words, with what matters to matrix products: "Intel(R) Xeon(R) Processor
    (avx512f, amx_bf16)".
    """
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    extensions = [
        flag
        for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
        if re.search(rf"\b{flag}\b", text)
    ]
    return f"{name[1] if name else platform.machine()} ({', '.join(extensions) or 'no AVX2'})"


if __name__ == "__main__":
    run("benchmark", main)
