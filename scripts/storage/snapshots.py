"""Numbered checkpoints: what is in them, which number they get, and how long they are kept."""

import contextlib
from pathlib import Path

import torch

from scripts.storage.checkpoint import (
    Contents,
    calibration_path,
    earlier_calibration_path,
    numbered_path,
    numbers,
)

KEPT = ("step", "config", "sigma_B", "data", "prior", "calibration", "precision", "provenance")


def for_sampling(contents: Contents) -> Contents:
    """What sampling and evaluation need of a checkpoint: a quarter of it, as weights and Adam's two
    moments go.
    """
    kept = {name: contents[name] for name in KEPT if name in contents}
    if "data" in kept:  # checksums of single names would let others test whose images they were
        numbers_only = {key: n for key, n in kept["data"].items() if isinstance(n, int)}
        kept["data"] = numbers_only
    # Without the count of updates, which only training needs.
    return kept | {"ema": {"shadow": contents["ema"]["shadow"]}}


def free_number(workdir: Path, usual: int, step: int) -> Path:
    """Where the snapshot of `step` goes: to number `usual`, or behind all others if those go
    further.

    That happens to a run that goes on with another snapshot_freq or n_iters. A step that is done
    again has its own number.
    """
    steps = _steps(workdir)
    own = [number for number, found in steps.items() if found == step]
    return numbered_path(workdir, own[0] if own else max(usual, max(steps, default=0) + 1))


def delete_all_but(workdir: Path, keep: int) -> None:
    """Delete snapshots but those of the last `keep` steps, with what was measured for them later.

    0 keeps all.
    """
    steps = {number: step for number, step in _steps(workdir).items() if step is not None}
    for number in sorted(steps, key=lambda number: steps[number])[: -keep or 0]:
        path = numbered_path(workdir, number)
        for file in (path, calibration_path(path), earlier_calibration_path(path)):
            file.unlink(missing_ok=True)


def _steps(workdir: Path) -> dict[int, int | None]:
    """The step of each snapshot by its number, without reading tensors; None for one that cannot be
    read.
    """
    steps: dict[int, int | None] = dict.fromkeys(numbers(workdir))
    for number in steps:
        with contextlib.suppress(Exception):
            path = numbered_path(workdir, number)
            steps[number] = int(
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)["step"]
            )
    return steps
