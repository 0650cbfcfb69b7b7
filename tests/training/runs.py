"""What tests of training share: a tiny configuration, a hook into a step, and the comparison of two
runs, bit for bit.
"""

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from scripts.config.resolve import resolve
from scripts.storage.checkpoint import meta_path, read
from scripts.storage.files import read_json_lines
from scripts.training.loop import train
from scripts.training.step import Trainer
from tests.tiny import tiny_config

CPU = torch.device("cpu")


def array_config(path: Path, **overrides: object) -> ConfigDict:
    """Training on a .npy file, dropout and flips included."""
    return tiny_config(data__dataset="npy", data__path=str(path), **overrides)


def trainer_of(config: ConfigDict) -> Trainer:
    return Trainer(resolve(config), CPU)


def gradients_of(trainer: Trainer) -> list[torch.Tensor]:
    """A list that will hold the gradients of the next step."""
    gradients: list[torch.Tensor] = []

    def copy_them(*_: object) -> None:
        for weight in trainer.model.parameters():
            assert weight.grad is not None
            gradients.append(weight.grad.clone())

    trainer.optimizer.register_step_pre_hook(copy_them)
    return gradients


def before_step(patch: pytest.MonkeyPatch, step: int, what: Callable[[], object]) -> None:
    """Have training do `what` when 0-based step `step` begins."""
    train_step = Trainer.train_step

    def disturbed(trainer: Trainer, images: torch.Tensor) -> object:
        if trainer.step == step:
            what()
        return train_step(trainer, images)

    patch.setattr(Trainer, "train_step", disturbed)


class TinyRun:
    """A training of seconds on images in a .npy file, dropout and flips included."""

    def __init__(self, array: Path, workdir: Path) -> None:
        self.array, self.workdir = array, workdir

    def train(self, **overrides: object) -> int:
        return train(array_config(self.array, **overrides), self.workdir)

    def finish(self, **overrides: object) -> dict[str, Any]:
        """Train to the end, and return the newest checkpoint."""
        assert self.train(**overrides) == 0
        return read(meta_path(self.workdir))

    def disturb(self, step: int, what: Callable[[], object], **overrides: object) -> int:
        """Train and do `what` when 0-based step `step` begins."""
        with pytest.MonkeyPatch.context() as patch:
            before_step(patch, step, what)
            return self.train(**overrides)

    def interrupt(self, step: int, number: int = signal.SIGTERM, **overrides: object) -> None:
        """Send a signal when that step begins: the run ends, saved, right after it."""
        send = functools.partial(os.kill, os.getpid(), number)
        assert self.disturb(step, send, **overrides) == 128 + number
        assert read(meta_path(self.workdir))["step"] == step + 1

    def rows(self, key: str) -> list[dict[str, Any]]:
        return metrics_with(key, self.workdir)

    def state(self) -> dict[str, Any]:
        return final_state(self.workdir)


def finish(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Train to the end, and return the newest checkpoint."""
    assert train(config, workdir) == 0
    return read(meta_path(workdir))


def metrics_with(key: str, workdir: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl."""
    return [row for row in read_json_lines(workdir / "metrics.jsonl") if key in row]


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
