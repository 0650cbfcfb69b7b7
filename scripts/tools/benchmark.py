"""Measure how fast a configuration runs on this machine, beside a matrix product.

python -m scripts.tools.benchmark --config configs/mnist/quickstart.py [--seconds=10]
python -m scripts.tools.benchmark --config configs/mnist/small_mnist.py --against=diffusers

The second needs `pip install diffusers`.
"""

import platform
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn
from torch.utils.benchmark import Timer

from model_code.unet import image_shape
from scripts.config.flags import Values, run
from scripts.config.resolve import Experiment, resolve
from scripts.errors import UserError
from scripts.runtime.device import Precision, device_name, resolve_device, to_device
from scripts.sampling.reverse import IndependentNoise, reverse_process
from scripts.training.plan import Work
from scripts.training.step import Trainer

Task = tuple[str, Callable[[], object], float]
"""A name, what to time, and its GFLOP (0 where they were not counted)."""


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
    for name, task, gflop in tasks(experiment, device, flags.against is not None):
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        clock = Timer("task()", globals={"task": task}, num_threads=torch.get_num_threads())
        times = clock.blocked_autorange(min_run_time=flags.seconds)
        row = f"{name:<34}{1e3 * times.median:>8.3g} ms{times.iqr / times.median:>11.0%}"
        if gflop:
            speed = gflop / times.median
            fastest = fastest or speed
            row += f"{speed:>10.1f}{speed / fastest:>12.0%}"
        else:
            row += f"{'-':>10}{'-':>12}"
        if device.type == "cuda":
            row += f"{torch.cuda.max_memory_allocated(device) / 1e9:>9.2f}"
        print(row)
    return 0


def tasks(experiment: Experiment, device: torch.device, with_diffusers: bool) -> Iterator[Task]:
    """A matrix product, then training and sampling on noise."""
    config = experiment.config
    theirs = diffusers_unet(config) if with_diffusers else None
    trainer, work = Trainer(experiment, device), Work.of(experiment)
    n, shape = config.training.batch_size, experiment.shape
    images = torch.rand(n, *shape)
    u = images.to(device)
    k = torch.full((n,), config.model.K, device=device)
    noise = IndependentNoise(0, range(n), shape, device)
    kernel = trainer.process.reverse_kernel(chain=trainer.process.chain[-2:])

    @torch.no_grad()
    def forward(model: nn.Module) -> None:
        model.eval()
        with trainer.precision.autocast():
            model(u, k)

    @torch.no_grad()
    def sample() -> None:
        trainer.model.eval()
        reverse_process(trainer.process, trainer.model, u, kernel, noise)

    # A product of large matrices is about the fastest computation that there is.
    side = 8192 if device.type == "cuda" else 2048
    matrix = torch.rand(side, side, device=device, dtype=trainer.precision.dtype)
    gflop = n * work.forward / 1e9
    yield f"matrix product {side}x{side}", lambda: matrix @ matrix, 2 * side**3 / 1e9
    step = f"training step, {n} of {shape[1]}x{shape[2]}"
    yield step, lambda: trainer.train_step(images), n * work.training / 1e9
    yield "U-Net forward", lambda: forward(trainer.model), gflop
    yield "sampling, one level, float32", sample, gflop
    if theirs is not None:
        network = to_device(theirs, device, config.compile, autocast=trainer.precision.enabled)
        yield "diffusers: training step", their_step(network, trainer.precision, u, k), 0
        yield "diffusers: U-Net forward", lambda: forward(network), 0


def their_step(
    model: nn.Module, precision: Precision, u: torch.Tensor, k: torch.Tensor
) -> Callable[[], None]:
    """A training step of diffusers' network: forward pass, backward pass and Adam, on ready inputs.

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
    # The middle block has attention, too.
    attended = {channels[level] for level in model.attention_levels} | {channels[-1]}
    if len(attended) > 1 or model.patch_size > 1:
        raise UserError(
            "--against=diffusers: it has no patches "
            f"(config.model.patch_size = {model.patch_size}), and one size of heads for "
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
        sample_size=image_shape(data)[1:],
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


if __name__ == "__main__":
    run("benchmark", main)
