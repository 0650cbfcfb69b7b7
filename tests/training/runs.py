"""What tests of training share: a tiny configuration, a hook into a step, and the comparison of two
runs, bit for bit.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from scripts.config.resolve import resolve
from scripts.storage.checkpoint import meta_path, read
from scripts.training.step import Trainer
from tests.tiny import tiny_config

CPU = torch.device("cpu")


def array_config(path: Path, **overrides: object) -> ConfigDict:
    """Training on a .npy file, dropout and flips included."""
    return tiny_config(data__dataset="npy", data__path=str(path), **overrides)


def trainer_of(config: ConfigDict) -> Trainer:
    return Trainer(resolve(config), CPU)


def before_step(patch: pytest.MonkeyPatch, step: int, what: Callable[[], object]) -> None:
    """Have training do `what` when 0-based step `step` begins."""
    train_step = Trainer.train_step

    def disturbed(trainer: Trainer, images: torch.Tensor) -> object:
        if trainer.step == step:
            what()
        return train_step(trainer, images)

    patch.setattr(Trainer, "train_step", disturbed)


def final_state(workdir: Path) -> dict[str, Any]:
    """The newest checkpoint, without what tells the command and the time."""
    contents = read(meta_path(workdir))
    return {name: value for name, value in contents.items() if name not in ("config", "provenance")}


def differing(one: Any, other: Any, where: str = "state") -> list[str]:
    """Where two states of nested dicts and lists differ in any bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [where]
    if isinstance(one, list) and isinstance(other, list):
        one, other = dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, dict) and isinstance(other, dict):
        common = one.keys() & other.keys()
        missing = [f"{where}.{key}" for key in one.keys() ^ other.keys()]
        return missing + [
            place for key in common for place in differing(one[key], other[key], f"{where}.{key}")
        ]
    return [] if one == other else [where]
