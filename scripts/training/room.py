"""How much room on the disk a run takes, before it starts."""

import math
import shutil
from pathlib import Path

import torch
from ml_collections import ConfigDict

from model_code import build_model
from model_code.process import configured_chain
from scripts.errors import UserError
from scripts.sampling.output import frame_levels
from scripts.storage import checkpoint

Files = list[tuple[str, int, float]]
"""What they are, how many, and bytes of each."""


def large_files(config: ConfigDict, workdir: Path | None = None) -> Files:
    """What a run keeps at most, besides what is in `workdir` already: checkpoints by their weights, and sample sets."""
    training, data = config.training, config.data
    with torch.device("meta"):
        weights = 4 * sum(weight.numel() for weight in build_model(config).parameters())
    snapshots = math.ceil(training.n_iters / training.snapshot_freq)
    if training.keep_snapshots:
        snapshots = min(snapshots, training.keep_snapshots + 1)  # a new one is written before the oldest goes
    states = training.num_samples * len(frame_levels(configured_chain(config))) * data.num_channels * data.image_size**2
    files: Files = [
        # Full ones have averages and Adam's two moments, too; a third is there while it is being written.
        ("complete checkpoints", 3, 4 * weights),
        ("numbered checkpoints", snapshots, 4 * weights if training.snapshot_full else weights),
        ("sets of samples", math.ceil(training.n_iters / training.sampling_freq), 4 * states),
    ]
    if workdir is None:
        return files
    complete = [path for path in checkpoint.existing(workdir) if path.parent == checkpoint.meta_path(workdir).parent]
    there = len(complete), len(checkpoint.numbers(workdir)), len(list(workdir.glob("samples/iter_*")))
    return [(name, max(0, count - found), size) for (name, count, size), found in zip(files, there, strict=True)]


def in_words(files: Files) -> str:
    """A line for a person."""
    total = sum(count * size for _, count, size in files)
    return f"{total / 1e9:.3g} GB: " + ", ".join(f"{count} {name} of {size / 1e9:.2g} GB" for name, count, size in files)


def require_room(config: ConfigDict, workdir: Path) -> None:
    """Raise UserError if the disk of `workdir`, which need not exist, has less room than a run needs."""
    place = next(path for path in (workdir.absolute(), *workdir.absolute().parents) if path.exists())
    free, files = shutil.disk_usage(place).free, large_files(config, workdir)
    if free < sum(count * size for _, count, size in files):
        raise UserError(
            f"--workdir={workdir}: {free / 1e9:.3g} GB of the disk are free, where training would write {in_words(files)}; "
            "make room, set config.training.keep_snapshots, or raise config.training.snapshot_freq or sampling_freq"
        )
