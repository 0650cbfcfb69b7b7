"""Room on the disk: what a run will write is known before it starts, and a run that has too little does not."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_code import build_model
from scripts.errors import UserError
from scripts.storage.checkpoint import meta_path, numbered_path
from scripts.training.loop import train
from scripts.training.plan import plan
from scripts.training.room import in_words, large_files, require_room
from tests.training.runs import array_config


def test_the_estimate_is_what_a_run_leaves(tiny_array: Path, tmp_path: Path) -> None:
    """To a tenth; what is there already needs no room, but for one checkpoint more while it is written."""
    config = array_config(tiny_array, training__snapshot_freq=2, training__sampling_freq=3, model__model_channels=128)
    (_, complete, complete_size), (_, numbered, numbered_size), (_, sets, set_size) = large_files(config, tmp_path)
    assert (complete, numbered, sets) == (3, 3, 2)
    parameters = sum(weight.numel() for weight in build_model(config).parameters())
    assert (complete_size, numbered_size) == (16 * parameters, 4 * parameters)
    assert train(config, tmp_path) == 0
    assert meta_path(tmp_path).stat().st_size == pytest.approx(complete_size, rel=0.1)
    assert numbered_path(tmp_path, 3).stat().st_size == pytest.approx(numbered_size, rel=0.1)
    assert (tmp_path / "samples" / "iter_6" / "samples.npy").stat().st_size == pytest.approx(set_size, rel=0.1)
    assert [count for _, count, _ in large_files(config, tmp_path)] == [1, 0, 0]
    config.training.n_iters = 12
    assert [count for _, count, _ in large_files(config, tmp_path)] == [1, 3, 2]


def test_settings_that_change_it(tiny_array: Path) -> None:
    def of(**settings: object) -> tuple[int, float]:
        _, (_, count, size), _ = large_files(array_config(tiny_array, training__snapshot_freq=1, **settings))
        return count, size

    assert of()[0] == 6
    assert of(training__keep_snapshots=2) == (3, of()[1])
    assert of(training__keep_snapshots=9) == of()
    assert of(training__snapshot_full=True) == (6, 4 * of()[1])


def test_too_little_room(tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line with free and needed bytes, before anything is written; with as much as is needed the run starts."""
    config = array_config(tiny_array, training__n_iters=1, model__blur_schedule="matched")
    files = large_files(config)
    needed = sum(count * size for _, count, size in files)
    assert f"disk       {in_words(files)}" in plan(config, None, 0.4)
    asked: list[Path] = []

    def disk(free: float) -> object:
        return lambda path: asked.append(path) or SimpleNamespace(free=free)  # type: ignore[func-returns-value]

    monkeypatch.setattr(shutil, "disk_usage", disk(needed - 1))
    with pytest.raises(UserError, match=r"--workdir=.*deep/run: .* GB of the disk are free, .*keep_snapshots") as error:
        train(config, tmp_path / "deep" / "run")
    assert in_words(files) in str(error.value)
    assert "\n" not in str(error.value)
    assert (asked, list(tmp_path.iterdir())) == ([tmp_path], [])
    monkeypatch.setattr(shutil, "disk_usage", disk(needed))
    require_room(config, tmp_path / "run")
