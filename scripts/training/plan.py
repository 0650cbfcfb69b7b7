"""What a training run is about to do, and what it would cost on GPUs."""

from dataclasses import dataclass

import torch
from ml_collections import ConfigDict
from torch.utils.flop_counter import FlopCounterMode

from scripts.config.resolve import Experiment, resolve
from scripts.data.datasets import num_groups
from scripts.data.images import ImageSource
from scripts.runtime import distributed
from scripts.runtime.device import Precision, device_name
from scripts.runtime.progress import duration

H100_TFLOPS = {"float32": 67, "bfloat16": 989, "float16": 989}


@dataclass(frozen=True)
class Work:
    """The size of a network, and operations per image of a forward pass and of training, recomputed
    activations included.
    """

    parameters: int
    forward: int
    training: int

    @classmethod
    def of(cls, experiment: Experiment) -> "Work":
        """Count on tensors without data; a multiplication and an addition are two operations."""
        model = experiment.network
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, *experiment.shape), torch.ones(1, dtype=torch.long))
        forward = counter.get_total_flops()
        # The backward pass takes two, for the gradients of inputs and weights.
        passes = 4 if experiment.config.training.recompute else 3
        return cls(sum(weight.numel() for weight in model.parameters()), forward, passes * forward)

    def __str__(self) -> str:
        size = f"{self.parameters / 1e6:.2f}M parameters"
        return f"{size}, {self.forward / 1e9:.2f} GFLOP forward per image"


def describe(
    experiment: Experiment,
    precision: Precision,
    train: ImageSource,
    held_out: ImageSource,
    first_step: int,
) -> str:
    """A few lines for a person: network, data, work per step, device and precision, and how often
    things happen.
    """
    config = experiment.config
    training, data, work = config.training, config.data, Work.of(experiment)
    processes, gpus = distributed.world_size(), torch.cuda.device_count()
    channels, height, width = experiment.shape
    parts = training.accumulation_steps
    micro = f" in {parts} microbatches" if parts > 1 else ""
    gflop = f"{work.training * training.batch_size / 1e9:.0f} GFLOP"
    compiled = f", torch.compile {config.compile}" if config.compile != "none" else ""
    counts = f"{len(train)} training images, {len(held_out)} held out"
    if config.model.class_conditional:
        counts += f", {data.num_classes} classes"
    if data.group_pattern:
        groups = [num_groups(images, data.group_pattern) for images in (train, held_out)]
        counts += f"; {groups[0]} groups for training, {groups[1]} held out"
    lines = [
        f"network      {work}",
        f"data         {data.dataset}, {height}x{width}x{channels}: {counts}",
        f"images       {train.found or 'not looked at'}",
        f"process      {config.model.process}: {experiment.process}",
        f"steps        {first_step} to {training.n_iters}, batches of "
        f"{training.batch_size}{micro}, {gflop} each",
        f"device       {device_name(precision.device)}, {precision}{compiled}",
        f"every        {training.log_freq} steps a row of metrics, "
        f"{training.eval_freq} an evaluation, {training.sampling_freq} samples, "
        f"{training.snapshot_freq_for_preemption} a save, "
        f"{training.snapshot_freq} a numbered checkpoint",
    ]
    if processes > 1:
        each = training.batch_size // processes
        lines.append(f"processes    {processes}, with {each} images of a batch each")
    elif precision.device.type == "cuda" and config.device in ("auto", "cuda") and gpus > 1:
        advice = f"to train on all: torchrun --nproc_per_node={gpus} train.py ..."
        lines.append(f"GPUs         1 of {gpus}; {advice}")
    return "\n".join(lines)


def plan(config: ConfigDict, tflops: float | None, utilization: float) -> str:
    """Time and device-hours of training with `config` and of sampling, as a table: operations are
    counted, speed is assumed.

    tflops: 10^12 operations a second of one device, by default an H100's in the configured
    precision; utilization: the part of that which is reached. Raises UserError for an invalid
    configuration.
    """
    experiment = resolve(config)
    precision, work = Precision.of(config, torch.device("cuda")), Work.of(experiment)
    n_iters, size = config.training.n_iters, config.training.batch_size
    calls = len(experiment.process.chain) - 1
    tflops = tflops or H100_TFLOPS[precision.name]
    speed = tflops * 1e12 * utilization
    batch_work, sample_work = size * work.training, calls * work.forward
    table = f"""\
An estimate, not a measurement: operations are counted, speeds are assumed.

network    {work}; {precision}
training   {n_iters:,} steps of {size} images, {batch_work / 1e12:.3g} TFLOP each
sampling   {calls} forward passes, {sample_work / 1e12:.3g} TFLOP an image
assumed    {tflops:g} TFLOP/s a device, {utilization:.0%} of it reached (--plan_tflops, \
--plan_utilization);
           gradients exchanged during the backward pass, 300 GB/s in a machine of 8, \
50 GB/s between machines

devices  images each      step          training  device-hours   50,000 samples  device-hours"""
    for devices in (1, 8, 64):
        if size % devices:
            table += f"\n{devices:>7}  a batch of {size} cannot be shared out evenly"
            continue
        # Every device sends and receives the float32 gradients about twice (a ring), during the
        # backward pass.
        bandwidth = 300e9 if devices <= 8 else 50e9
        exchange = 2 * (devices - 1) / devices * 4 * work.parameters / bandwidth
        step = max(batch_work / devices / speed, exchange)
        training, sampling = n_iters * step, 50_000 * sample_work / devices / speed
        table += f"\n{devices:>7}{size // devices:>13}{1e3 * step:>7.1f} ms"
        for seconds, width in ((training, 18), (sampling, 17)):
            table += f"{duration(seconds):>{width}}{seconds * devices / 3600:>14.4g}"
    return table
