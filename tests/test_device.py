"""The precision is what the configuration asks for or what is faster, and a model goes to its device in the right layout."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from scripts import device
from scripts.device import Precision, bfloat16_ratio, to_device
from tests.conftest import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_measurement() -> Iterator[None]:
    """Each test measures anew, and leaves nothing of a made-up clock behind."""
    bfloat16_ratio.cache_clear()
    yield
    bfloat16_ratio.cache_clear()


def set_speed(monkeypatch: pytest.MonkeyPatch, ratios: dict[int, float]) -> list[int]:
    """Let bfloat16 take so many times as long as float32 for each size; returns the sizes as they are timed in bfloat16."""
    timed: list[int] = []

    def shortest_time(size: int, dtype: torch.dtype) -> float:
        if dtype == torch.float32:
            return 0.001
        timed.append(size)
        return 0.001 * ratios[size]

    monkeypatch.setattr(device, "shortest_time", shortest_time)
    return timed


def test_the_faster_type_is_taken_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = set_speed(monkeypatch, {8: 1.5, 16: 0.25})
    for _ in range(2):
        precision = Precision.of(tiny_config(optim__automatic_mp=True), CPU)
        assert str(precision) == "bfloat16 autocast (bfloat16 took 25% of float32's time here)"
    assert timed == [8, 16]


def test_emulation_is_noticed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    timed = set_speed(monkeypatch, {8: 31.4})
    assert str(Precision.of(tiny_config(optim__automatic_mp=True), CPU)) == (
        "float32 (bfloat16 took 31 times as long as float32 here)"
    )
    assert timed == [8]


def test_the_measurement_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    assert bfloat16_ratio() > 0
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("automatic_mp", "amp_dtype", "kind", "expected"),
    [
        (False, "bfloat16", "cpu", "float32"),
        (False, "auto", "cuda", "float32"),
        (True, "bfloat16", "cpu", "bfloat16"),
        (True, "float16", "cpu", "float16"),
        (True, "auto", "cuda", "bfloat16"),
    ],
)
def test_what_is_told_is_not_measured(
    automatic_mp: bool, amp_dtype: str, kind: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_speed(monkeypatch, {})
    config = tiny_config(optim__automatic_mp=automatic_mp, optim__amp_dtype=amp_dtype)
    precision = Precision.of(config, torch.device(kind))
    assert precision.name == expected
    assert precision.reason
    assert precision.enabled == (expected != "float32")


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_precision_by_name(name: str) -> None:
    """As a checkpoint has it: products have that type within autocast, and only float16 scales the loss."""
    precision = Precision.named(CPU, name)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, name)
    assert precision.name == name
    assert precision.grad_scaler().is_enabled() == (name == "float16")


def test_channels_last_only_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, also without compiling. There is no GPU here: the model is asked what it was told."""
    told: list[object] = []

    def to(self: nn.Module, *args: object, **options: object) -> None:
        told.append(args or options)

    monkeypatch.setattr(nn.Module, "to", to)
    to_device(nn.Conv2d(1, 1, 3), torch.device("cuda"), "none", autocast=True)
    assert told == [(torch.device("cuda"),), {"memory_format": torch.channels_last}]
    told.clear()
    to_device(nn.Conv2d(1, 1, 3), torch.device("cuda"), "none")
    to_device(nn.Conv2d(1, 1, 3), CPU, "none", autocast=True)
    assert told == [(torch.device("cuda"),), (CPU,)]
