"""What a training run is about to do, before it does it."""

import torch
from ml_collections import ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from model_code import build_model
from scripts.device import Precision


def forward_flops(config: ConfigDict) -> int:
    """Floating-point operations (a multiplication and an addition are two) of the U-Net for one image, forward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        image = torch.empty(1, config.data.num_channels, config.data.image_size, config.data.image_size)
        build_model(config)(image, torch.ones(1, dtype=torch.long))
    return counter.get_total_flops()


def num_parameters(config: ConfigDict) -> int:
    """Weights of the U-Net."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(config).parameters())


def describe(config: ConfigDict, device: torch.device, num_train: int, num_held_out: int, first_step: int) -> str:
    """A few lines for a person: network, work per step, data, device, and when what will be written."""
    training, data, model = config.training, config.data, config.model
    split = f" in {training.accumulation_steps} parts" if training.accumulation_steps > 1 else ""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else f" ({torch.cuda.get_device_name(device)})"
    forward = forward_flops(config) / 1e9
    # Backward costs twice the forward pass: gradients for inputs and for weights.
    step = 3 * forward * training.batch_size
    lines = [
        f"network      {num_parameters(config) / 1e6:.2f}M parameters, {forward:.2f} GFLOP forward per image",
        f"data         {data.dataset}, {data.image_size}x{data.image_size}x{data.num_channels}: {num_train} training images, "
        f"{num_held_out} held out",
        f"blur         K = {model.K} levels, sigma_B {model.blur_sigma_min:g} to {model.blur_sigma_max:g} pixels, "
        f"sigma {model.sigma:g}, delta {model.delta_over_sigma:g} sigma, protocol {model.protocol}",
        f"steps        {first_step} to {training.n_iters}, batches of {training.batch_size}{split}, {step:.0f} GFLOP each",
        f"device       {device}{threads}, {Precision.of(config, device)}",
        f"every        {training.log_freq} steps a row of metrics, {training.eval_freq} an evaluation, "
        f"{training.sampling_freq} samples, {training.snapshot_freq_for_preemption} a save, "
        f"{training.snapshot_freq} a numbered checkpoint",
    ]
    return "\n".join(lines)
