"""Sweeps and the record of results: parsing, continuation, best values, log files."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts.estimate import Estimate
from scripts.evaluation.results import Point, Result, append_results, results_directory
from scripts.evaluation.sweep import Runner, parse_list, report, sweep_points
from scripts.storage.files import read_json_lines
from scripts.storage.record import Record
from tests.conftest import bad_input


@pytest.mark.parametrize(
    ("flag", "text", "expected"),
    [
        ("delta", "0.010:0.016:0.001", [0.01, 0.011, 0.012, 0.013, 0.014, 0.015, 0.016]),
        ("delta", "0.01:0.0155:0.002", [0.01, 0.012, 0.014]),
        ("delta", "0.02,spectral", [0.02, "spectral"]),
        ("checkpoint", "1:3:1,9", [1, 2, 3, 9]),
        ("seed", "5,3,5,18446744073709551615", [5, 3, 2**64 - 1]),
        ("steps", "10,25:bound", ["10", "25:bound"]),
        ("steps", "10:50:20", ["10", "30", "50"]),
        ("steps", "100,50,0", ["100,50,0"]),
    ],
)
def test_lists(flag: str, text: str, expected: list[float | str]) -> None:
    assert parse_list(flag, text) == expected


@pytest.mark.parametrize(
    ("flag", "text"),
    [
        ("delta", ""), ("delta", "a"), ("delta", "1:2"), ("delta", "0.02:0.01:0.001"),
        ("delta", "0.01:0.02:0"), ("delta", "-0.01,0.01"), ("delta", "nan"), ("steps", "10,,25"),
        ("seed", "0.5"), ("seed", "spectral"), ("seed", "18446744073709551616"),
        ("checkpoint", "1:2:0.5"), ("checkpoint", "-1"), ("checkpoint", "1:inf:1"),
    ],
)  # fmt: skip
def test_what_is_no_list(flag: str, text: str) -> None:
    with bad_input(rf"^--{flag}=.*: must be a"):
        parse_list(flag, text)


def test_all_combinations() -> None:
    """The first changes fastest."""
    points = sweep_points({"delta": [1, 2], "checkpoint": [4, 3]}, seed=42)
    assert [(p.checkpoint, p.delta) for p in points] == [(4, 1), (4, 2), (3, 1), (3, 2)]
    assert {p.seed for p in points} == {42}


class Evaluation:
    """Stands in for one that takes hours: FID smallest at delta 2, Recall largest at delta 3; may
    be interrupted.

    The values of images vary by 1, all by the same amount from one delta to another.
    """

    def __init__(self, calls_until_interruption: int | None = None, weights: int = 1) -> None:
        self.asked: list[Point] = []
        self.left, self.weights = calls_until_interruption, weights

    def record(self, point: Point) -> Record:
        return Record(
            weights={"weights_crc32": self.weights},
            kernel={"delta": point.delta},
            options={"seed": point.seed},
        )

    def __call__(self, point: Point) -> list[Result]:
        if self.left == len(self.asked):
            raise KeyboardInterrupt
        self.asked.append(point)
        settings = self.record(point).row()
        delta = point.delta if isinstance(point.delta, float | int) else 2.5
        value = (delta - 2) ** 2 + (point.seed or 0) / 100
        rng = np.random.default_rng(0)
        images = value + rng.standard_normal(10) + 0.1 * delta * rng.standard_normal(10)
        return [
            Result("FID", Estimate(value, 0.5, 10), settings, per_image=images),
            Result("Recall", Estimate(delta / 10, math.inf, 10), settings, interval=(0.1, 0.4)),
        ]


def sweep(directory: Path, evaluation: Evaluation, deltas: str, seeds: str = "42") -> str:
    axes = {"delta": parse_list("delta", deltas), "seed": parse_list("seed", seeds)}
    names = [name for name, values in axes.items() if len(values) > 1]
    runner = Runner(evaluation, directory, ",".join(names))
    return report(runner.run(sweep_points(axes)), names, directory)


def test_interrupted_sweep_continues(tmp_path: Path) -> None:
    """Finished points are not computed again, unless they were of other weights."""
    first, second, whole = Evaluation(calls_until_interruption=3), Evaluation(), Evaluation()
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, first, "1:3:0.5")
    text = sweep(tmp_path, second, "1:3:0.5")
    assert [p.delta for p in first.asked + second.asked] == [1, 1.5, 2, 2.5, 3]
    assert sweep(tmp_path / "new", whole, "1:3:0.5").splitlines()[:-1] == text.splitlines()[:-1]
    again, other, more = Evaluation(), Evaluation(weights=2), Evaluation()
    assert sweep(tmp_path, again, "1:3:0.5") == text
    sweep(tmp_path, other, "1:3:0.5")
    sweep(tmp_path, more, "2,2.25")
    assert [len(each.asked) for each in (again, other, more)] == [0, 5, 1]


def test_each_point_is_announced_by_what_is_not_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep(tmp_path, Evaluation(), "1,2", "3")
    assert "[2/2] delta = 2.0, seed = 3\n" in capsys.readouterr().out


def test_half_a_point_is_computed_again(tmp_path: Path) -> None:
    """A process that is killed while it writes leaves some scores of a point, and half a line."""
    file = tmp_path / "results.jsonl"
    sweep(tmp_path, Evaluation(), "1,2")
    text = file.read_text()
    file.write_text(text[:-10])
    again = Evaluation()
    sweep(tmp_path, again, "1,2")
    assert [p.delta for p in again.asked] == [2]
    assert sweep(tmp_path, Evaluation(calls_until_interruption=0), "1,2")


def test_report(tmp_path: Path) -> None:
    text = sweep(tmp_path, Evaluation(), "1:3:1", "1,2")
    assert "best FID: 0.01 +- 0.5 at delta = 2.0, seed = 1" in text
    assert "best Recall: 0.3 at delta = 3.0, seed = 1" in text
    assert len(text.splitlines()) == 1 + 6 + 2 + 1 + 1
    assert (tmp_path / "sweep_delta_seed.txt").read_text() in text + "\n"
    for score in ("FID", "Recall"):
        with Image.open(tmp_path / f"sweep_delta_seed_{score}.png") as picture:
            assert picture.width > 500
    log = (tmp_path / "FID_log.txt").read_text()
    assert log.startswith("delta: 1.0, seed: 1, FID: 1.01\n")


def test_differences_from_the_best_are_paired(tmp_path: Path) -> None:
    """The scatter that all points have in common does not count."""
    lines = sweep(tmp_path, Evaluation(), "1:3:1").splitlines()
    (row,) = (line for line in lines if line.split()[0] == "3.0")
    error = 0.1 * np.random.default_rng(0).standard_normal((2, 10))[1].std(ddof=1) / 10**0.5
    assert f"1 +- {error:.2g}" in row
    assert error < 0.1, "0.5 is the error of either value"


def test_numbers_and_names_in_one_sweep(tmp_path: Path) -> None:
    text = sweep(tmp_path, Evaluation(), "0.01,spectral")
    assert "best FID: 0.67 +- 0.5 at delta = spectral" in text


def test_log_files(tmp_path: Path) -> None:
    """The release's line and, in one file for all scores, everything that a value depends on."""
    directory = results_directory(tmp_path, "cifar10", "mine")
    assert directory == tmp_path / "cifar10" / "evaluation_results" / "mine"
    settings = {"delta": 0.013, "seed": 1, "reference": "cifar10"}
    result = Result("FID", Estimate(18.9612, 0.04, 50000), settings)
    append_results(directory, [result], param_name="delta", seconds=12.345)
    append_results(directory, [result], param_name="try 2", seconds=1)
    log = "delta: 0.013, FID: 18.9612\ntry 2, FID: 18.9612\n"
    assert (directory / "FID_log.txt").read_text() == log
    row, _ = read_json_lines(directory / "results.jsonl")
    estimate = {"score": "FID", "value": 18.9612, "standard_error": 0.04, "num_images": 50000}
    expected = {"param_name": "delta", "seconds": 12.35} | estimate | settings
    assert expected.items() <= row.items()
    assert set(row["versions"]) == {"torch", "program"}


def test_single_evaluation_is_printed_and_recorded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Runner(Evaluation(), tmp_path, "delta").run_point(Point(delta=0.0125, seed=42))
    printed = capsys.readouterr().out
    assert "FID: 4.37016 +- 0.5 (N = 10)" in printed
    assert "Recall: 0.00125 (N = 10, 95% interval 0.1000 to 0.4000)" in printed
    _, row = read_json_lines(tmp_path / "results.jsonl")
    assert (row["standard_error"], row["interval_95"]) == (None, [0.1, 0.4])


def test_recorded_points_are_in_the_logs_of_every_experiment(tmp_path: Path) -> None:
    """Once each, and without an evaluation."""
    points = sweep_points({"delta": [1.0, 2.0]}, seed=1)
    logs = []
    for name, calls in (("a", 2), ("b", 0), ("b", 0)):
        Runner(Evaluation(calls), tmp_path / name, "delta", tmp_path).run(points)
        logs.append((tmp_path / name / "FID_log.txt").read_text())
    assert logs == ["delta: 1.0, FID: 1.01\ndelta: 2.0, FID: 0.01\n"] * 3
