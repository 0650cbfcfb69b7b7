"""Numbered checkpoints: small, enough to sample from, kept as long as asked for, and complete ones
to resume from.
"""

import shutil
from pathlib import Path

import pytest
import torch
from ml_collections import ConfigDict

from scripts.sampling.sampler import load_sampler
from scripts.storage.checkpoint import (
    calibration_path,
    meta_path,
    numbered_path,
    numbers,
    previous_path,
    read,
)
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.training.runs import array_config, differing, final_state

SMALL = {
    "step",
    "config",
    "sigma_B",
    "data",
    "prior",
    "calibration",
    "precision",
    "provenance",
    "ema",
    "format",
}


def matched(path: Path, **overrides: object) -> ConfigDict:
    return array_config(path, model__blur_schedule="matched", **overrides)


@pytest.fixture(scope="module")
def run(tiny_array: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with snapshots of steps 2, 4 and 6, and blur levels that only its checkpoints
    know.
    """
    workdir = tmp_path_factory.mktemp("run")
    assert train(matched(tiny_array, training__snapshot_freq=2), workdir) == 0
    return workdir


def test_a_snapshot_holds_what_sampling_needs(run: Path) -> None:
    """It gives the samples of the complete checkpoint of its step, at a quarter of the size."""
    snapshot = read(numbered_path(run, 3))
    assert snapshot.keys() == SMALL
    complete = {name: value for name, value in read(meta_path(run)).items() if name in SMALL}
    data = complete["data"]
    complete["data"] = {key: value for key, value in data.items() if isinstance(value, int)}
    assert not differing(snapshot | {"ema": complete["ema"]}, complete)
    assert not differing(snapshot["ema"]["shadow"], complete["ema"]["shadow"])
    assert numbered_path(run, 3).stat().st_size < 0.3 * meta_path(run).stat().st_size
    samples = [load_sampler(run, number)[0].independent(range(3)) for number in (0, 3, 1)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])


def test_going_on_from_a_snapshot(run: Path, tiny_array: Path, tmp_path: Path) -> None:
    """Not from a small one, and the line says what to do; from a full one, as older versions wrote
    all, as undisturbed.
    """
    shutil.copytree(run, tmp_path / "small")
    shutil.rmtree(tmp_path / "small" / "checkpoints-meta")
    advice = r".* --config\.training\.init_from=.*_3\.pth$"
    message = rf"checkpoint_3\.pth: can be sampled from, but not trained further, {advice}"
    with bad_input(message):
        train(matched(tiny_array), tmp_path / "small")
    full = tmp_path / "full"
    assert (
        train(matched(tiny_array, training__snapshot_freq=3, training__snapshot_full=True), full)
        == 0
    )
    meta_path(full).unlink()
    previous_path(full).unlink()
    numbered_path(full, 2).unlink()
    assert train(matched(tiny_array), full) == 0
    assert not differing(final_state(full), final_state(run))


def test_so_many_snapshots_are_kept(tiny_array: Path, tmp_path: Path) -> None:
    """The last steps', with what was measured beside them, under numbers that nothing else gets
    later.
    """

    def kept(n_iters: int, freq: int, keep: int) -> dict[int, int]:
        settings = {"n_iters": n_iters, "snapshot_freq": freq, "keep_snapshots": keep}
        config = array_config(
            tiny_array, **{f"training__{key}": value for key, value in settings.items()}
        )
        assert train(config, tmp_path) == 0
        return {
            number: read(numbered_path(tmp_path, number))["step"] for number in numbers(tmp_path)
        }

    assert kept(4, 1, 3) == {2: 2, 3: 3, 4: 4}
    for number in (2, 4):
        calibration_path(numbered_path(tmp_path, number)).write_bytes(b"")
    assert kept(6, 3, 2) == {4: 4, 5: 6}, "number 2 would be free, but reads as older than 4"
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.calibration.pth")] == [
        "checkpoint_4.calibration.pth"
    ]
    assert kept(8, 1, 0) == {4: 4, 5: 6, 7: 7, 8: 8}


def test_what_cannot_be_kept(tiny_array: Path, tmp_path: Path) -> None:
    with bad_input(r"config\.training\.keep_snapshots = -1: must be at least 0"):
        train(array_config(tiny_array, training__keep_snapshots=-1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
