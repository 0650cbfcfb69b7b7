"""What docs/performance.md and docs/cluster.md claim about GPUs, checked on this machine: a verdict
for each claim.

python -m tests.gpu_check [--config=C] [--steps=40] [--compile] [--device=cpu]

A few minutes on one GPU (--compile: some more). With two, NCCL is checked. The exit code is 1 if a
claim does not hold. On a processor it runs, too, which tests the program and says nothing about
GPUs.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ml_collections import ConfigDict
from torch.nn.functional import avg_pool2d

from scripts.config.load import load
from scripts.config.paths import ROOT
from scripts.config.resolve import resolve
from scripts.data.datasets import load_images
from scripts.runtime.device import Precision, choose_threads, device_name, resolve_device
from scripts.sampling.choice import Choice
from scripts.sampling.reverse import reverse_process
from scripts.sampling.sampler import Sampler, load_sampler
from scripts.storage.files import read_json_lines
from scripts.tools.export import Step, export_step
from scripts.training.loop import train as run_training
from scripts.training.step import Trainer
from tests.tiny import overridden
from tests.training.runs import differing

WARM_UP = 3
"""Steps that are not timed: the first ones choose algorithms."""
MOST_SKIPPED = 10
"""Steps in which float16 may look for its loss scale."""


class Claim(NamedTuple):
    """A row of the table."""

    text: str
    measured: str
    holds: bool | None
    """None: could not be measured here, and `measured` says why."""


class Training(NamedTuple):
    """Some steps."""

    losses: np.ndarray
    """(steps,), the mean of each batch."""
    seconds: float
    """Of a step, the median."""
    gigabytes: float
    """Peak on the GPU; nan on a processor."""
    trainer: Trainer


def with_changes(config: ConfigDict, **changes: object) -> ConfigDict:
    """A copy of `config`; `changes` are like optim__amp_dtype="float16"."""
    return overridden(ConfigDict(config.to_dict()), changes)


def computing_in(config: ConfigDict, name: str) -> ConfigDict:
    """A copy that trains in float32, bfloat16 or float16."""
    if name == "float32":
        return with_changes(config, optim__automatic_mp=False, optim__amp_dtype="auto")
    return with_changes(config, optim__automatic_mp=True, optim__amp_dtype=name)


def batch(config: ConfigDict, step: int) -> torch.Tensor:
    """Training images (B, C, H, W) in [0, 1], others in each step."""
    source, size = load_images(config.data, "train"), config.training.batch_size
    return (
        torch.from_numpy(
            np.stack([source[(step * size + i) % len(source)] for i in range(size)])
        ).float()
        / 255
    )


def train(
    config: ConfigDict,
    device: torch.device,
    steps: int,
    prepare: Callable[[Trainer], object] = lambda trainer: None,
) -> Training:
    """Train from the start; `prepare` is called with the trainer before the first step."""
    gpu, before = device.type == "cuda", 0
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # by earlier trainings
    trainer = Trainer(resolve(config), device)
    prepare(trainer)
    losses, seconds = [], []
    for step in range(trainer.step, steps):
        images = batch(config, step)
        started = time.perf_counter()
        losses.append(trainer.train_step(images).losses.mean().item())  # waits for the GPU
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    peak = (torch.cuda.max_memory_allocated(device) - before) / 1e9 if gpu else math.nan
    return Training(np.array(losses), float(np.median(seconds[WARM_UP:] or seconds)), peak, trainer)


def deviation(losses: np.ndarray, reference: np.ndarray) -> float:
    """Largest relative difference of running means over 10 steps: rounding, not single batches."""
    width = min(10, len(losses))
    one, other = (np.convolve(x, np.ones(width) / width, "valid") for x in (losses, reference))
    return float(np.max(np.abs(one - other) / np.abs(other)))


def near(
    text: str, found: Training, reference: Training, tolerance: float, skipped: int = 0
) -> Claim:
    """Whether losses are those of `reference` to `tolerance`, skipping so many steps at most."""
    skips, difference = found.trainer.nonfinite_steps, deviation(found.losses, reference.losses)
    holds = bool(difference <= tolerance) and skips <= skipped  # a nan does not hold
    return Claim(text, f"differs by {difference:.2%}, {skips} steps skipped", holds)


def faster(text: str, found: Training, reference: Training, most: float = 1.0) -> Claim:
    """Whether a step takes at most `most` times as long as in `reference`; on a processor that says
    nothing.
    """
    ratio = found.seconds / reference.seconds
    measured = f"{1e3 * found.seconds:.3g} ms, {ratio:.2f} times {1e3 * reference.seconds:.3g} ms"
    return Claim(text, measured, ratio <= most if found.trainer.device.type == "cuda" else None)


def precisions(
    config: ConfigDict, device: torch.device, steps: int, compiled: bool
) -> Iterator[Claim]:
    """bfloat16, float16, channels last, compilation."""
    chosen = Precision.of(with_changes(config, optim__automatic_mp=True), device).name
    yield Claim(
        "automatic_mp is bfloat16 on CUDA",
        chosen,
        chosen == "bfloat16" if device.type == "cuda" else None,
    )
    full, half, small = (
        train(computing_in(config, name), device, steps)
        for name in ("float32", "bfloat16", "float16")
    )
    yield near("bfloat16: the losses of float32 to 5%", half, full, 0.05)
    yield faster("bfloat16: a step takes less time than in float32", half, full)
    yield near("float16: the losses of float32 to 5%", small, full, 0.05, skipped=MOST_SKIPPED)
    yield faster("float16: a step takes less time than in float32", small, full)
    bfloat16 = computing_in(config, "bfloat16")
    plain = train(
        bfloat16,
        device,
        steps,
        lambda trainer: trainer.model.to(memory_format=torch.contiguous_format),
    )
    yield near("channels last: the losses of the usual layout to 5%", half, plain, 0.05)
    yield faster(
        "channels last: a step takes no longer than in the usual layout", half, plain, most=1.02
    )
    if compiled:
        quick = train(with_changes(bfloat16, compile="default"), device, steps)
        yield near("torch.compile: the losses without it to 5%", quick, half, 0.05)
        yield faster("torch.compile: a step takes less time", quick, half)
    else:
        yield Claim("torch.compile", "not asked for: --compile", None)


def saved(trainer: Trainer) -> dict[str, Any]:
    """All that the next step depends on, as read from a file."""
    with tempfile.TemporaryFile() as file:
        torch.save(trainer.state_dict(), file)
        file.seek(0)
        return dict(torch.load(file, map_location="cpu", weights_only=True))


def determinism(config: ConfigDict, device: torch.device, steps: int, precision: str) -> Claim:
    """Whether a run that is saved, read and continued ends as one that is not: weights, average,
    optimizer, bit for bit.
    """
    config = computing_in(config, precision)
    half, whole = (train(config, device, count).trainer for count in (steps // 2, steps))
    rest = train(
        config, device, steps, lambda trainer: trainer.load_state_dict(saved(half))
    ).trainer
    places = differing(saved(whole), saved(rest))
    text = f"{precision}: a resumed run ends as one that was not interrupted, bit for bit"
    return Claim(
        text, f"{len(places)} tensors differ" if places else "no tensor differs", not places
    )


def memory(config: ConfigDict, device: torch.device, steps: int) -> Iterator[Claim]:
    """Recomputed activations, and a batch in two parts."""
    for text, most, change in (
        ("recompute: less memory, at most 1.5 times the time", 1.5, {"training__recompute": True}),
        (
            "accumulation_steps=2: less memory, at most 1.5 times the time",
            1.5,
            {"training__accumulation_steps": 2},
        ),
    ):
        usual, less = (
            train(config, device, steps),
            train(with_changes(config, **change), device, steps),
        )
        ratio = less.seconds / usual.seconds
        measured = f"{less.gigabytes:.3g} of {usual.gigabytes:.3g} GB, {ratio:.2f} times the time"
        holds = less.gigabytes < usual.gigabytes and ratio <= most
        yield Claim(text, measured, holds if device.type == "cuda" else None)


def two_processes(config: ConfigDict, device: torch.device, steps: int) -> Claim:
    """Whether train.py by two processes, with NCCL on GPUs, has the losses of one over the first
    steps.
    """
    text = (
        f"two processes ({'NCCL' if device.type == 'cuda' else 'Gloo'}): the losses of one to 1e-4"
    )
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        return Claim(text, "this machine has one GPU", None)
    losses = {}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "config.json"
        settings = with_changes(
            config,
            device=device.type,
            model__dropout=0.0,
            model__sampling_noise="isotropic",
            training__log_freq=1,
            training__n_iters=min(steps, 5),
            training__num_samples=1,
        )
        file.write_text(json.dumps(settings.to_dict()))
        for count in (1, 2):
            run = Path(directory) / str(count)
            launcher = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                f"--nproc_per_node={count}",
            ]
            command = [*launcher, str(ROOT / "train.py"), f"--config={file}", f"--workdir={run}"]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode != 0:
                return Claim(
                    text, f"{count} processes failed: {result.stderr.strip()[-200:]}", False
                )
            losses[count] = np.array(
                [row["loss"] for row in read_json_lines(run / "metrics.jsonl") if "loss" in row]
            )
    difference = float(np.max(np.abs(losses[2] / losses[1] - 1)))
    return Claim(
        text, f"differs by {difference:.1e} over {len(losses[1])} steps", difference <= 1e-4
    )


def capabilities(config: ConfigDict, device: torch.device) -> Iterator[Claim]:
    """A network that is told classes of rectangles, on this device and on the processor: guided
    samples, super-resolution and an exported step.
    """
    threads = torch.get_num_threads()
    choose_threads()
    kept = torch.get_num_threads() == threads
    text = "the number of threads is left alone"
    yield Claim(text, f"{threads}", kept if device.type == "cuda" else None)
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        settings = with_changes(
            computing_in(config, "float32"),
            device=str(device),
            model__class_conditional=True,
            training__n_iters=4,
            training__num_samples=1,
        )
        with settings.ignore_type():
            settings.data.image_size = (24, 32)
        elsewhere = with_changes(settings, device="cpu")
        choice = Choice(delta="calibrated", guidance=2.0, classes="3")
        with redirect_stdout(sys.stderr):
            run_training(settings, run)
            found, reference = (
                load_sampler(run, config=of_device, choice=choice)[0]
                for of_device in (settings, elsewhere)
            )
        text = "guided samples of rectangles are those of a processor to 1e-3"
        difference = (guided(found) - guided(reference)).abs().max().item()
        yield Claim(text, f"differ by {difference:.1e}", difference <= 1e-3)
        small = torch.rand(2, 1, 12, 16, generator=torch.Generator().manual_seed(1))
        away = avg_pool2d(found.super_resolve(small)[:, 0], 2) - small
        text = "super-resolution agrees with the small picture to 2 of 255 grey levels"
        yield Claim(text, f"{255 * away.abs().max():.2f}", bool(away.abs().max() <= 2 / 255))
        export_step(found, Path(directory) / "step.pt2", {})
        program = torch.export.load(Path(directory) / "step.pt2").module()
        z, eps = (torch.rand(3, 1, 24, 32, device=device) for _ in range(2))
        k = torch.full((3,), found.kernel.chain[0], device=device)
        with torch.no_grad():
            expected = Step(found.model, found.kernel)(z, k, eps)  # type: ignore[arg-type]
            difference = max(
                (a - b).abs().max().item()
                for a, b in zip(program(z, k, eps), expected, strict=True)
            )
        text = "an exported step is the step to 1e-4"
        yield Claim(text, f"differs by {difference:.1e}", difference <= 1e-4)


def guided(sampler: Sampler) -> torch.Tensor:
    """Samples of classes 3 and 7 with the same noise on every device."""
    device = sampler.precision.device

    def draw(k: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(k)
        return torch.randn(2, *sampler.shape, generator=generator).to(device)

    u_K = sampler.prior.means(torch.tensor([0, 1])).to(device)
    denoise = sampler.denoiser(torch.tensor([3, 7]))
    with torch.no_grad():
        return reverse_process(sampler.process, denoise, u_K, sampler.kernel, draw).cpu()


def claims(config: ConfigDict, device: torch.device, steps: int, compiled: bool) -> Iterator[Claim]:
    """All rows, each as soon as it is measured."""
    yield from precisions(config, device, steps, compiled)
    for precision in ("float32", "bfloat16", "float16"):
        yield determinism(config, device, steps, precision)
    yield from memory(config, device, steps)
    yield two_processes(config, device, steps)
    yield from capabilities(config, device)


def main(argv: list[str] | None = None) -> int:
    """Measure and print. Returns the exit code: 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = str(ROOT / "configs/mnist/small_mnist.py")
    parser.add_argument("--config", default=usual, help="what is trained, on the embedded digits")
    parser.add_argument("--steps", type=int, default=40, help="steps of each training")
    parser.add_argument(
        "--compile", action="store_true", help="check torch.compile, too, which takes minutes"
    )
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    options = parser.parse_args(argv)
    config, device = (
        with_changes(load(options.config), data__dataset="mnist5k"),
        resolve_device(options.device),
    )
    size = config.training.batch_size
    print(
        f"{device_name(device)}, torch {torch.__version__}, {options.config}, batches of {size}",
        flush=True,
    )
    broken = 0
    for claim in claims(config, device, options.steps, options.compile):
        verdict = {True: "holds", False: "BROKEN", None: "not measured"}[claim.holds]
        print(f"{verdict:<13} {claim.text:<75} {claim.measured}", flush=True)
        broken += claim.holds is False
    print(f"{broken} claims do not hold" if broken else "no claim is broken")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
