"""evaluate.py as a user types it, and the bound of a trained model from the checkpoint to the files."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict
from PIL import Image

from scripts.config import ROOT
from scripts.errors import UserError
from scripts.evaluation.bound import LikelihoodEvaluation
from scripts.evaluation.results import Result
from scripts.training.loop import train
from tests.conftest import tiny_config
from tests.test_cli import error_line

OWN_CONFIG = """
from tests.conftest import tiny_config


def get_config():
    return tiny_config(model__K=5, data__uniform_dequantization=True)
"""


def small_config(**overrides: object) -> ConfigDict:
    return tiny_config(**{"model__K": 5, "data__uniform_dequantization": True, **overrides})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `small_config` as config.py and a run of it in runs/tiny."""
    place = tmp_path_factory.mktemp("evaluate")
    (place / "config.py").write_text(OWN_CONFIG)
    train(small_config(), place / "runs" / "tiny")
    return place


def evaluate(place: Path, *args: object, workdir: str = "runs/tiny") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "evaluate.py"), "--config", "config.py", "--workdir", workdir, *map(str, args)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # for the import in OWN_CONFIG
    return subprocess.run(line, capture_output=True, text=True, cwd=place, timeout=120, check=False, env=environment)


def bound_evaluation(
    config: ConfigDict, place: Path, num_levels: int = 2, exact: bool = False, batch_size: int = 16
) -> LikelihoodEvaluation:
    return LikelihoodEvaluation(
        config,
        place / "runs" / "tiny",
        split="test",
        num_images=12,
        num_levels_per_image=num_levels,
        exact=exact,
        batch_size=batch_size,
    )


def bound(
    config: ConfigDict, place: Path, *, num_levels: int = 2, exact: bool = False, batch_size: int = 16, delta: float = 0.0125
) -> list[Result]:
    evaluation = bound_evaluation(config, place, num_levels, exact, batch_size)
    return evaluation(checkpoint=0, delta=delta, seed=1, directory=place / "results")


def test_bound_from_the_command_line(trained: Path) -> None:
    args = ["--mode=elbo", "--delta=0.013", "--num_images=20", "--num_levels_per_image=2", "--experiment_name=E"]
    result = evaluate(trained, *args, "--param_name=mine")
    assert result.returncode == 0, result.stderr
    for part in ("20 images (test), 2 of 4 levels", "prior", "intermediate", "reconstruction", "total"):
        assert part in result.stdout
    directory = trained / "runs" / "mnist5k" / "evaluation_results" / "E"
    assert (directory / "ELBO_log.txt").read_text().startswith("mine, ELBO: ")
    row = json.loads((directory / "BPD_log.jsonl").read_text())
    assert (row["delta"], row["seed"], row["checkpoint_step"], row["num_images"]) == (0.013, 42, 6, 20)
    folder = directory / "bound_step_6_delta_0.013_seed_42"
    with Image.open(folder / "bound_by_level.png") as picture:
        assert picture.width > 500
    with (folder / "bound_by_level.csv").open() as file:
        assert [int(line["k"]) for line in csv.DictReader(file)] == [1, 2, 3, 4, 5]
    nats = json.loads((folder / "bound.json").read_text())["nats"]
    assert sum(nats[part]["value"] for part in ("prior", "intermediate", "reconstruction")) == pytest.approx(
        nats["total"]["value"]
    )


def test_sweep_from_the_command_line(trained: Path) -> None:
    args = ["--mode=elbo", "--num_images=4", "--exact", "--sweep=delta=0.012:0.014:0.001"]
    result = evaluate(trained, *args)
    assert result.returncode == 0, result.stderr
    assert "best BPD: " in result.stdout
    directory = trained / "runs" / "mnist5k" / "evaluation_results" / "tiny"
    assert len((directory / "BPD_log.txt").read_text().splitlines()) == 3
    assert (directory / "sweep_delta_BPD.png").exists()
    again = evaluate(trained, *args)
    assert "sweep of 3 points, 3 of them in" in again.stdout
    assert len((directory / "BPD_log.txt").read_text().splitlines()) == 3


def test_batch_size_does_not_matter(trained: Path) -> None:
    for one, other in zip(
        bound(small_config(), trained, batch_size=256), bound(small_config(), trained, batch_size=2), strict=True
    ):
        assert one.value == pytest.approx(other.value, rel=1e-5)
        assert one.standard_error == pytest.approx(other.standard_error, rel=1e-5)


def test_delta_needs_no_new_network_calls(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over delta gives what single evaluations give."""
    evaluation = bound_evaluation(small_config(), trained)
    evaluation(checkpoint=0, delta=0.01, seed=1, directory=trained / "results")
    monkeypatch.setattr("scripts.evaluation.bound.BoundEstimator", None)
    results = evaluation(checkpoint=0, delta=0.0125, seed=1, directory=trained / "results")
    monkeypatch.undo()
    assert [result.value for result in results] == [result.value for result in bound(small_config(), trained)]


def test_exact_says_what_drawing_costs(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bound(small_config(), trained, exact=True)
    assert "times as much" in capsys.readouterr().out
    bound(small_config(), trained, exact=True, num_levels=4)
    assert "times as much" not in capsys.readouterr().out


def test_released_protocol(trained: Path) -> None:
    """Another sum of the same model's terms, without level K and with level 1 twice."""
    released, paper = small_config(model__protocol="released"), small_config()
    assert bound(released, trained, exact=True)[0].value != bound(paper, trained, exact=True)[0].value
    with (trained / "results" / "bound_step_6_delta_0.0125_seed_1_exact" / "bound_by_level.csv").open() as file:
        assert [int(line["k"]) for line in csv.DictReader(file)] == [1, 2, 3, 4, 5]


def test_no_bits_without_dequantisation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(training__n_iters=1)
    train(config, tmp_path / "runs" / "tiny")
    assert [result.score for result in bound(config, tmp_path)] == ["ELBO"]
    assert "no bits/dim: the data was not dequantised (config.data.uniform_dequantization is False)" in capsys.readouterr().out


def test_no_bound_without_noise(trained: Path) -> None:
    with pytest.raises(UserError, match="--delta=0: the bound is infinite"):
        bound(small_config(), trained, delta=0)


BAD: dict[str, tuple[list[str], str]] = {
    "no such mode": (["--mode=inception"], "--mode=inception"),
    "batch size 0": (["--mode=elbo", "--batch_size=0"], "--batch_size=0"),
    "negative delta": (["--mode=elbo", "--delta=-0.1"], "--delta=-0.1"),
    "no levels": (["--mode=elbo", "--num_levels_per_image=0"], "--num_levels_per_image=0"),
    "sweep of nothing": (["--mode=elbo", "--sweep=sigma=1,2"], "must be delta, checkpoint, seed"),
    "two deltas": (["--mode=elbo", "--delta=0.01", "--sweep=delta=0.01,0.02"], "--delta and --sweep=delta=...: choose one"),
    "stray flag": (["--mode=elbo", "--custom_name=x"], "--custom_name goes with --save_stats"),
    "half of statistics": (["--save_stats", "--custom_name=x"], "--save_stats needs --dataset_path"),
    "missing checkpoint": (["--mode=elbo", "--checkpoint=7"], "has no checkpoints/checkpoint_7.pth"),
    "missing checkpoint in a sweep": (["--mode=elbo", "--sweep=checkpoint=1,7"], "has no checkpoints/checkpoint_7.pth"),
    "no such split": (["--mode=elbo", "--dataset_split=trainfull"], "--dataset_split=trainfull"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, trained: Path) -> None:
    args, expected = BAD[case]
    before = sorted(trained.rglob("*"))
    assert expected in error_line(evaluate(trained, *args))
    assert sorted(trained.rglob("*")) == before, "nothing is written"


def test_nothing_to_evaluate(trained: Path) -> None:
    assert "there is no checkpoint in it" in error_line(evaluate(trained, "--mode=elbo", workdir="elsewhere"))
    assert not (trained / "elsewhere").exists()
