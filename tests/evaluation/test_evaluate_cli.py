"""evaluate.py as a user types it, and the bound of a trained model from the checkpoint to the
files.
"""

import csv
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from PIL import Image

from scripts.config.paths import ROOT
from scripts.evaluation.features import data_set_images
from scripts.evaluation.results import Point, Result
from scripts.storage.files import read_json_lines
from tests.conftest import bad_input, command, error_line
from tests.evaluation.evaluations import of_bound
from tests.evaluation.made_run import make_run
from tests.images import WithDamage
from tests.tiny import TINY, tiny_config


def small_config(**overrides: object) -> ConfigDict:
    return tiny_config(**{"model__K": 5, **overrides})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of `small_config` in runs/tiny."""
    place = tmp_path_factory.mktemp("evaluate")
    make_run(small_config(), place / "runs" / "tiny")
    return place


def evaluate(place: Path, *args: object) -> subprocess.CompletedProcess[str]:
    options = ("--config", TINY, "--config.model.K=5", "--workdir=runs/tiny")
    return command(ROOT / "tests" / "evaluate_here.py", *options, *args, cwd=place)


def bound(place: Path, delta: float = 0.0125, **changes: Any) -> list[Result]:
    return of_bound(place / "runs" / "tiny", small_config(), **changes)(Point(delta, seed=1))


def test_bound_from_the_command_line(trained: Path) -> None:
    args = [
        "--mode=elbo",
        "--delta=0.013",
        "--num_images=20",
        "--num_levels_per_image=2",
        "--experiment_name=E",
    ]
    result = evaluate(trained, *args, "--param_name=mine")
    assert result.returncode == 0, result.stderr
    assert "20 images (test), 2 of 4 levels" in result.stdout
    directory = trained / "runs" / "mnist5k" / "evaluation_results" / "E"
    assert (directory / "ELBO_log.txt").read_text().startswith("mine, ELBO: ")
    rows = read_json_lines(trained / "runs" / "tiny" / "evaluation" / "results.jsonl")
    elbo, row = (row for row in rows if row["param_name"] == "mine")
    assert (elbo["score"], row["score"]) == ("ELBO", "BPD")
    expected = {"delta": "0.013", "seed": 42, "checkpoint_step": 7, "num_images": 20}
    assert expected.items() <= row.items()
    assert row["precision"] == "float32"
    folder = directory / f"bound_step_7_delta_0.013_{row['key'][:8]}"
    with Image.open(folder / "bound_by_level.png") as picture:
        assert picture.width > 500
    with (folder / "bound_by_level.csv").open() as file:
        assert [int(line["k"]) for line in csv.DictReader(file)] == [1, 2, 3, 4, 5]
    values = {name: part["value"] for name, part in row["nats"].items()}
    assert values["prior"] + values["intermediate"] + values["reconstruction"] == pytest.approx(
        values["total"]
    )


def test_sweep_from_the_command_line(trained: Path) -> None:
    args = ["--mode=elbo", "--num_images=4", "--exact", "--delta=0.012:0.014:0.001"]
    result = evaluate(trained, *args)
    assert result.returncode == 0, result.stderr
    assert "best BPD: " in result.stdout
    assert "from the best" in result.stdout
    directory = trained / "runs" / "mnist5k" / "evaluation_results" / "tiny"
    assert len((directory / "BPD_log.txt").read_text().splitlines()) == 3
    assert (directory / "sweep_delta_BPD.png").exists()
    again = evaluate(trained, *args)
    assert "sweep of 3 points, 3 of them in" in again.stdout
    assert len((directory / "BPD_log.txt").read_text().splitlines()) == 3


def test_delta_needs_no_new_network_calls(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep over delta gives what single evaluations give."""
    evaluation = of_bound(trained / "runs" / "tiny", small_config())
    evaluation(Point(0.01, seed=1))
    monkeypatch.setattr("scripts.evaluation.bound.measure", None)
    results = evaluation(Point(0.0125, seed=1))
    monkeypatch.undo()
    assert [one.estimate for one in results] == [one.estimate for one in bound(trained)]


def test_bits_for_every_model_unless_the_images_are_left_as_they_are(trained: Path) -> None:
    """The configuration does not dequantise, as none of the paper's does."""
    elbo, bpd = bound(trained)
    assert (elbo.score, bpd.score) == ("ELBO", "BPD")
    for result in (elbo, bpd):
        assert result.per_image is not None
        assert len(result.per_image) == result.estimate.num_images == 12
        assert result.per_image.mean() == pytest.approx(result.estimate.value)
    (nats,) = bound(trained, dequantize=False)
    assert nats.score == "ELBO"
    assert nats.estimate != elbo.estimate


def test_images_that_the_bound_leaves_out_are_said(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = data_set_images(small_config().data, "test")
    monkeypatch.setattr(
        "scripts.evaluation.bound.data_set_images", lambda *_: WithDamage(found, {0, 41})
    )
    assert bound(trained)[0].estimate.num_images == 10
    expected = (
        "2 of 12 images to evaluate cannot be read: "
        "image 0: damaged for the test; image 41: damaged for the test"
    )
    assert expected in capsys.readouterr().err


def test_no_bound_without_noise(trained: Path) -> None:
    with bad_input("--delta=0: the bound is infinite"):
        bound(trained, delta=0)


BAD: dict[str, tuple[list[str], str]] = {
    "a sweep as it was": (
        ["--mode=elbo", "--sweep=delta=0.01,0.02", "--sweep=seed=1,2"],
        "--sweep is no longer a flag: write --delta=0.01,0.02 --seed=1,2",
    ),
    "seeds of samples that were drawn": (
        ["--mode=fid", "--samples=x", "--seed=1,2"],
        "--seed=1,2: must be one with --samples",
    ),
    "seeds of a bound": (
        ["--mode=elbo", "--init=held_out"],
        "--init has no meaning with --mode=elbo",
    ),
    "level of no seeds": (
        ["--mode=fid", "--from_level=2"],
        "--from_level has no meaning without --init",
    ),
    "samples that were drawn": (
        ["--mode=fid", "--samples=x", "--delta=0.1"],
        "--delta has no meaning with --samples",
    ),
    "statistics of a run": (
        ["--save_stats", "--custom_name=x"],
        "--config has no meaning with --save_stats",
    ),
    "pictures among images": (
        ["--mode=spectrum", "--config.data.held_out_path=/no", "--out=/no/x"],
        "--out=/no/x: pictures there would become images of config.data.held_out_path = '/no'",
    ),
    "missing checkpoint in a sweep": (
        ["--mode=elbo", "--checkpoint=0,7"],
        "has no checkpoints/checkpoint_7.pth",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, trained: Path) -> None:
    args, expected = BAD[case]
    before = sorted(trained.rglob("*.*"))
    assert expected in error_line(evaluate(trained, *args))
    assert set(trained.rglob("*.*")) - set(before) <= set(trained.rglob("run.txt"))
