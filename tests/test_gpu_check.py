"""The check of a GPU machine, as far as a processor can: that it runs, and that what is broken is
called so.
"""

import subprocess
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from scripts.config.load import load
from scripts.config.paths import ROOT
from scripts.training.step import Trainer
from tests import gpu_check
from tests.training.runs import CPU

TINY = str(ROOT / "tests/cluster/tiny.py")


def training(
    losses: list[float],
    skipped: int = 0,
    seconds: float = 1.0,
    gigabytes: float = 1.0,
    kind: str = "cuda",
) -> Any:
    trainer = SimpleNamespace(nonfinite_steps=skipped, device=torch.device(kind))
    values = np.array(losses)
    return gpu_check.Training(values, seconds, gigabytes, trainer)  # type: ignore[arg-type]


def test_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """A verdict for each claim; those about a GPU's speed and memory are not measured, the others
    hold.
    """
    assert gpu_check.main(["--device=cpu", "--steps=4", f"--config={TINY}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line[14:89].strip(): line[:13].strip() for line in lines[1:-1]}
    held = {name.split(":")[0] for name, verdict in verdicts.items() if verdict == "holds"}
    assert held == {
        *("bfloat16", "float16", "channels last", "float32", "two processes (Gloo)"),
        "guided samples of rectangles are those of a processor to 1e-3",
        "super-resolution agrees with the small picture to 2 of 255 grey levels",
        "an exported step is the step to 1e-4",
    }
    assert set(verdicts.values()) == {"holds", "not measured"}
    assert lines[-1] == "no claim is broken"


@pytest.mark.parametrize(
    ("losses", "skipped", "holds"),
    [
        ([1.01, 1.99], 0, True),
        ([1.3, 2.6], 0, False),
        ([np.nan, 2], 0, False),
        ([1, 2], 2, False),
        ([1, 2], 1, True),
    ],
)
def test_losses(losses: list[float], skipped: int, holds: bool) -> None:
    claim = gpu_check.near("", training(losses, skipped), training([1, 2]), 0.05, skipped=1)
    assert claim.holds is holds


def test_times_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU more time or as much memory breaks a claim."""
    for seconds, holds in ((0.5, True), (1.5, False)):
        assert gpu_check.faster("", training([1], seconds=seconds), training([1])).holds is holds
    assert gpu_check.faster("", training([1], kind="cpu"), training([1])).holds is None
    config = load(TINY)
    for gigabytes, seconds, holds in ((0.5, 1.4, True), (1.0, 1.0, False), (0.5, 1.6, False)):
        found = iter([training([1]), training([1], gigabytes=gigabytes, seconds=seconds)] * 2)
        monkeypatch.setattr(gpu_check, "train", lambda *_, found=found: next(found))
        assert [claim.holds for claim in gpu_check.memory(config, torch.device("cuda"), 1)] == [
            holds,
            holds,
        ]


def test_a_resumed_run_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One moment of one weight is enough."""
    load_state_dict = Trainer.load_state_dict

    def damaged(trainer: Trainer, state: dict[str, Any]) -> None:
        state["optimizer"]["state"][0]["exp_avg"].view(-1)[0] += 1e-3
        load_state_dict(trainer, state)

    monkeypatch.setattr(Trainer, "load_state_dict", damaged)
    claim = gpu_check.determinism(load(TINY), CPU, 4, "float32")
    assert claim.holds is False
    assert "tensors differ" in claim.measured


def test_processes_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that does not start breaks the claim."""
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="it did not start")
    )
    claim = gpu_check.two_processes(load(TINY), CPU, 2)
    assert claim.holds is False
    assert claim.measured == "1 processes failed: it did not start"
