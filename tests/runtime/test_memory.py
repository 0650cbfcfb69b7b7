"""Running out of memory is one line that says what to change, and loses nothing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from model_code.ema import EMA
from scripts.errors import line_for
from scripts.storage.checkpoint import meta_path, read
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.training.runs import array_config, before_step, differing, final_state


def fill_memory() -> None:
    """What PyTorch raises on a processor, without filling it."""
    torch.empty(1 << 60, dtype=torch.uint8)


def test_what_memory_errors_look_like() -> None:
    """On a processor as PyTorch really says it, on a GPU as it is documented; other errors stay
    what they are.
    """
    with pytest.raises(RuntimeError) as caught:
        fill_memory()
    for error in (
        caught.value,
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    ):
        line = line_for(error) or ""
        for name in ("training.accumulation_steps", "training.recompute", "--batch_size"):
            assert name in line
        assert "\n" not in line
    assert line_for(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None


def test_training_saves_what_was_learnt(
    undisturbed: dict[str, Any], tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory within a step: saved before it, and the run ends as an undisturbed one."""
    with monkeypatch.context() as patch:
        before_step(patch, 3, fill_memory)
        with bad_input(r"out of memory .*Saved at step 3; the same command continues"):
            train(array_config(tiny_array), tmp_path / "run")
    assert read(meta_path(tmp_path / "run"))["step"] == 3
    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", lambda *_: fill_memory())
        with bad_input(r"out of memory .*Not saved, as it happened within an update"):
            train(array_config(tiny_array), tmp_path / "run")
    assert read(meta_path(tmp_path / "run"))["step"] == 3, "half a step is not kept"
    assert train(array_config(tiny_array), tmp_path / "run") == 0
    assert not differing(final_state(tmp_path / "run"), undisturbed)
