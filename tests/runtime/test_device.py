"""The precision is what the configuration asks for or what is faster."""

import time
from collections.abc import Iterator

import pytest
import torch

from scripts.runtime import device
from scripts.runtime.device import Precision, bfloat16_ratio, choose_threads
from tests.conftest import bad_input
from tests.tiny import tiny_config
from tests.training.runs import TinyRun

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forget_measurement() -> Iterator[None]:
    """Each test measures anew, and leaves nothing of a made-up clock behind."""
    bfloat16_ratio.cache_clear()
    yield
    bfloat16_ratio.cache_clear()


def pretend_gpus(monkeypatch: pytest.MonkeyPatch, count: int, local_rank: int | None) -> None:
    """Let this be one of several processes on a machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    for setting in ("torch.cuda.set_device", "torch.use_deterministic_algorithms"):
        monkeypatch.setattr(setting, lambda *args, **options: None)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_speed(monkeypatch: pytest.MonkeyPatch, ratio: float) -> list[torch.dtype]:
    """Let bfloat16 take so many times as long as float32; returns the types as they are timed."""
    timed: list[torch.dtype] = []

    def shortest_time(dtype: torch.dtype) -> float:
        timed.append(dtype)
        return ratio if dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(device, "shortest_time", shortest_time)
    return timed


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        (0.25, "bfloat16 autocast (bfloat16 took 25% of float32's time here)"),
        (31.4, "float32 (bfloat16 took 31 times as long as float32 here)"),
    ],
)
def test_the_faster_type_is_taken_and_measured_once(
    ratio: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = set_speed(monkeypatch, ratio)
    for _ in range(2):
        assert str(Precision.of(tiny_config(optim__automatic_mp=True), CPU)) == expected
    assert len(timed) == 2


def test_waiting_for_other_programs_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the slower type was taken."""
    monkeypatch.setattr(torch, "mm", lambda *_: time.sleep(0.1))
    assert device.shortest_time(torch.float32) < 0.1


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
    timed = set_speed(monkeypatch, 1.0)
    config = tiny_config(optim__automatic_mp=automatic_mp, optim__amp_dtype=amp_dtype)
    precision = Precision.of(config, torch.device(kind))
    assert precision.name == expected
    assert precision.reason
    assert precision.enabled == (expected != "float32")
    assert not timed


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_precision_by_name(name: str) -> None:
    """As a checkpoint has it: products have that type within autocast, and only float16 scales the
    loss.
    """
    precision = Precision.named(CPU, name)
    with precision.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == getattr(torch, name)
    assert precision.name == name
    assert precision.grad_scaler().is_enabled() == (name == "float16")


@pytest.mark.parametrize(
    ("name", "gpus", "local_rank", "expected"),
    [
        ("auto", 0, 0, "cpu"),
        ("auto", 4, 2, "cuda:2"),
        ("auto", 1, 2, "cuda:0"),
        ("cuda", 4, None, "cuda:0"),  # one process of a machine, as Kubeflow starts them
        ("cuda:3", 4, 1, "cuda:3"),
        ("cpu", 4, 1, "cpu"),
    ],
)
def test_device_by_name(
    name: str, gpus: int, local_rank: int | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The i-th process of a machine gets its i-th GPU, or the only one that it sees."""
    pretend_gpus(monkeypatch, gpus, local_rank)
    assert str(device.resolve_device(name)) == expected


@pytest.mark.parametrize(
    ("name", "local_rank"), [("cuda", 4), ("cuda:4", 0), ("tpu", 0), ("cuda:x", 0), ("meta", 0)]
)
def test_devices_that_are_not_there(
    name: str, local_rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpus(monkeypatch, 4, local_rank)
    problem = "(must be|there is no GPU number 4)"
    with bad_input(rf"config\.device = '{name}': {problem}"):
        device.resolve_device(name)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two, chosen by nobody; afterwards as many as before."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("one", "all_", "chosen"), [(1.0, 2.0, 1), (2.0, 1.0, 2)])
def test_the_faster_number_of_threads(
    one: float, all_: float, chosen: int, threads: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:  # fmt: skip
    times = {1: one, 2: all_}
    monkeypatch.setattr(device, "median_time", lambda: times[torch.get_num_threads()])
    choose_threads()
    assert torch.get_num_threads() == chosen
    assert f"threads: {chosen}," in capsys.readouterr().out


def test_threads_that_were_chosen(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a run began, they are used again; by OMP_NUM_THREADS, nothing is measured or changed."""
    monkeypatch.setattr(device, "median_time", lambda: pytest.fail("measured"))
    choose_threads(1)
    assert torch.get_num_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    choose_threads(2)
    assert torch.get_num_threads() == 1


def test_a_run_continues_with_its_threads(
    threads: None, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "median_time", lambda: float(torch.get_num_threads()))
    tiny_run.finish(training__n_iters=2)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(2)
    tiny_run.finish(training__n_iters=4)
    assert torch.get_num_threads() == 1
