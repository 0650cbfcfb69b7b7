"""What a training run is about to do, before it does it."""

import torch
from ml_collections import ConfigDict

from scripts.config import validate
from scripts.device import Precision, device_name
from scripts.errors import UserError
from scripts.progress import duration
from scripts.training.cost import BANDWIDTH, STATE_BYTES, Cost, forward_flops, num_parameters, step_passes

DEVICES = (1, 8, 64)
NUM_SAMPLES = 50_000
H100_TFLOPS = {torch.float32: 67, torch.bfloat16: 989, torch.float16: 989}


def describe(config: ConfigDict, device: torch.device, num_train: int, num_held_out: int, first_step: int) -> str:
    """A few lines for a person: network, work per step, data, device, and when what will be written."""
    training, data, model = config.training, config.data, config.model
    split = f" in {training.accumulation_steps} parts" if training.accumulation_steps > 1 else ""
    form = f", torch.compile {config.compile}" if config.compile != "none" else ""
    forward = forward_flops(config) / 1e9
    step = step_passes(config) * forward * training.batch_size
    lines = [
        f"network      {num_parameters(config) / 1e6:.2f}M parameters, {forward:.2f} GFLOP forward per image",
        f"data         {data.dataset}, {data.image_size}x{data.image_size}x{data.num_channels}: {num_train} training images, "
        f"{num_held_out} held out",
        f"blur         K = {model.K} levels, sigma_B {model.blur_sigma_min:g} to {model.blur_sigma_max:g} pixels, "
        f"sigma {model.sigma:g}, delta {model.delta_over_sigma:g} sigma, protocol {model.protocol}",
        f"steps        {first_step} to {training.n_iters}, batches of {training.batch_size}{split}, {step:.0f} GFLOP each",
        f"device       {device_name(device)}, {Precision.of(config, device)}{form}",
        f"every        {training.log_freq} steps a row of metrics, {training.eval_freq} an evaluation, "
        f"{training.sampling_freq} samples, {training.snapshot_freq_for_preemption} a save, "
        f"{training.snapshot_freq} a numbered checkpoint",
    ]
    return "\n".join(lines)


def plan(config: ConfigDict, tflops: float | None, utilization: float) -> str:
    """The cost of training with `config` and of sampling from it, as a table for a person.

    tflops: 10^12 operations a second at which a device multiplies matrices, by default an H100 in the precision asked for;
    utilization: the part of it that is reached. Raises UserError for values that no device has.
    """
    validate(config)
    precision = Precision.of(config, torch.device("cuda"))
    tflops = H100_TFLOPS[precision.dtype if precision.enabled else torch.float32] if tflops is None else tflops
    if not tflops > 0:
        raise UserError(f"--plan_tflops={tflops:g}: must be greater than 0, such as 989 for an H100 in bfloat16")
    if not 0 < utilization <= 1:
        raise UserError(f"--plan_utilization={utilization:g}: must be greater than 0 and at most 1, such as 0.4")
    cost = Cost.of(config, tflops * 1e12 * utilization)
    training = config.training
    state = ", ".join(f"{name} {size * cost.parameters / 1e9:.2f}" for name, size in STATE_BYTES.items())
    exchange = ", ".join(f"{speed / 1e9:g} GB/s {where}" for where, speed in BANDWIDTH.items())
    recomputed = "kept at the ends of blocks, the rest recomputed" if training.recompute else "all kept"
    lines = [
        "A model, not a measurement: operations and bytes are counted, speed is assumed.",
        "",
        f"network       {cost.parameters / 1e6:.2f}M parameters, {cost.forward / 1e9:.2f} GFLOP forward per image; {precision}",
        f"training      {training.n_iters:,} steps of {training.batch_size} images, {cost.step / 1e12:.3g} TFLOP each "
        f"({step_passes(config)} x forward), {training.n_iters * cost.step / 1e18:.3g} EFLOP in all",
        f"sampling      K = {config.model.K} forward passes, {config.model.K * cost.forward / 1e12:.3g} TFLOP an image",
        f"state         {state} GB on every device",
        f"activations   {cost.activations.image / 1e6:.4g} MB an image without torch.compile, {recomputed}",
        f"assumed       {tflops:g} TFLOP/s a device, of which {utilization:.0%} reached (--plan_tflops, --plan_utilization);",
        f"              gradients exchanged during the backward pass at {exchange};",
        "              data never waited for; evaluations, samples while training, and what kernels need besides come on top",
        "",
        f"{'devices':>7}{'images each':>13}{'memory each':>13}{'step':>10}{'training':>13}{'device-hours':>14}"
        f"{f'{NUM_SAMPLES:,} samples':>17}{'device-hours':>14}",
    ]
    for devices in DEVICES:
        if training.batch_size % (devices * training.accumulation_steps):
            lines.append(f"{devices:>7}  a batch of {training.batch_size} cannot be shared out evenly")
            continue
        seconds = training.n_iters * cost.step_seconds(devices)
        sampling = cost.sampling_seconds(NUM_SAMPLES, devices)
        lines.append(
            f"{devices:>7}{training.batch_size // devices:>13}{cost.memory(devices) / 1e9:>10.1f} GB"
            f"{1e3 * cost.step_seconds(devices):>7.1f} ms{duration(seconds):>13}{seconds * devices / 3600:>14.4g}"
            f"{duration(sampling):>17}{sampling * devices / 3600:>14.4g}"
        )
    return "\n".join(lines)
