"""Runs side by side: arms, pairs, tables that can be read again, and what is refused."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from scripts.config.load import to_json
from scripts.tools.compare import arms_of, curves, main, read_scores, write
from tests.conftest import bad_input, command, error_line
from tests.tiny import tiny_config

ONE = " +- 0.98 (n = 1, each +- 0.5)"
"""After the value of a single training."""


def made_run(place: Path, name: str, scores: list[dict[str, Any]], **config: object) -> Path:
    """A run directory with a configuration and results; a score's None stands for a key that is not
    there.
    """
    (place / name / "evaluation").mkdir(parents=True)
    (place / name / "config.json").write_text(to_json(tiny_config(**config)))
    common = {
        "score": "FID",
        "standard_error": 0.5,
        "checkpoint_step": 7,
        "seed": 42,
        "chain": [3, 2, 1, 0],
        "delta": "0.0125",
    }
    rows = [
        {
            **common,
            "model": {"K": 3},
            "num_images": 100,
            "weights_crc32": 5,
            "finished": "now",
            **row,
        }
        for row in scores
    ]
    text = "".join(
        json.dumps({k: v for k, v in row.items() if v is not None}) + "\n" for row in rows
    )
    (place / name / "evaluation" / "results.jsonl").write_text(text + '{"half a li')
    return place / name


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Two arms, seeds 1, 2, 3 and 2, 3, 4, whose differences are 10, 12 for seeds 2 and 3; the
    seeds differ by a lot.
    """
    values = {
        ("a", 1): 5.0,
        ("a", 2): 100.0,
        ("a", 3): 200.0,
        ("b", 2): 110.0,
        ("b", 3): 212.0,
        ("b", 4): 7.0,
    }
    return [
        made_run(
            tmp_path,
            f"{arm}{seed}",
            [{"value": value}],
            seed=seed,
            model__sigma=0.01 if arm == "a" else 0.02,
        )
        for (arm, seed), value in values.items()
    ]


def compared(runs: list[Path], out: Path) -> dict[str, list[str]]:
    """Cells of the text by the first."""
    configs, _, arms = arms_of(runs)
    rows = read_scores(runs, [config["seed"] for config in configs], arms)
    once = list(dict.fromkeys(arms))
    lines = write(out, rows, once).splitlines()[len(once) + 1 : -1]
    return {
        line.split("  ")[0]: [cell.strip() for cell in line.split("  ") if cell][1:]
        for line in lines
    }


def test_arms_and_pairs(runs: list[Path], tmp_path: Path) -> None:
    """Runs that differ in their seed alone are one arm; seeds that both arms have are paired."""
    _, keys, arms = arms_of(runs)
    assert keys == ["model.sigma", "seed"]
    assert arms == ["sigma 0.01"] * 3 + ["sigma 0.02"] * 3
    cells = compared(runs, tmp_path / "out")["FID"]
    a, b = np.array([5.0, 100, 200]), np.array([110.0, 212, 7])
    for shown, values in zip(cells, (a, b), strict=False):
        low, high = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
        half = (high - low) / 2
        assert shown == f"{values.mean():.4g} +- {half:.2g} (n = 3, each +- 0.5)"
    # 10 and 12: the standard error is 1, the quantile for one degree of freedom 12.7.
    assert cells[2] == "11 +- 13 (n = 2, each +- 0.71)"
    one = compared(runs[:1], tmp_path / "one")["FID"]
    assert one == ["5" + ONE]


def test_files(runs: list[Path], tmp_path: Path) -> None:
    """Every number with error, count, settings and checksum; a picture."""
    compared(runs, tmp_path / "out")
    with (tmp_path / "out" / "scores.csv").open() as file:
        found = list(csv.DictReader(file))
    assert [float(row["value"]) for row in found] == [5, 100, 200, 110, 212, 7]
    for key, value in {
        "standard_error": "0.5",
        "num_images": "100",
        "weights_crc32": "5",
        "delta": "0.0125",
    }.items():
        assert {row[key] for row in found} == {value}
    assert [row["training_seed"] for row in found] == ["1", "2", "3", "2", "3", "4"]
    with Image.open(tmp_path / "out" / "scores.png") as picture:
        assert picture.width > 500


def test_settings_and_checkpoints(tmp_path: Path) -> None:
    """Scores of other settings are other rows; the table has the newest checkpoint; of repetitions
    the last counts, and evaluations with other seeds are averaged.
    """
    rows: list[dict[str, Any]] = [
        {"value": 9.0},
        {"value": 1.0},
        {"value": 3.0, "seed": 43},
        {"value": 50.0, "checkpoint_step": 3},
        {"value": 70.0, "delta": "0.02"},
        {"value": 60.0, "chain": [3, 0]},
    ]
    run = made_run(tmp_path, "a", rows)
    table = compared([run], tmp_path / "out")
    assert table == {
        "FID, delta 0.0125": ["2 +- 0.69 (n = 1, each +- 0.35)"],
        "FID, delta 0.02": ["70" + ONE],
        "FID, delta 0.0125, steps 1": ["60" + ONE],
    }
    found = read_scores([run], [42], ["all"])
    assert curves(found, "FID, delta 0.0125", "all") == {
        42: {3: (50.0, 0.5), 7: (2.0, pytest.approx(0.5 / 2**0.5))}
    }
    other = made_run(tmp_path, "b", [{"value": 4.0, "checkpoint_step": 3}], seed=1)
    (name,) = (
        name for name in compared([run, other], tmp_path / "two") if "not equally trained" in name
    )
    assert name == "FID, delta 0.0125 (at steps [3, 7]: not equally trained)"


def test_chains_of_as_many_steps(tmp_path: Path) -> None:
    """Even ones and the bound's best are two settings; rows of older files say nothing about steps
    or chain.
    """
    rows: list[dict[str, Any]] = [
        {"value": 1.0, "steps": "2", "chain": [3, 1, 0]},
        {"value": 2.0, "steps": "2:bound", "chain": [3, 2, 0]},
        {"value": 3.0, "chain": None},
    ]
    table = compared([made_run(tmp_path, "a", rows)], tmp_path / "out")
    names = ("FID, steps 2", "FID, steps 2:bound", "FID")
    assert table == {name: [f"{i}{ONE}"] for i, name in enumerate(names, 1)}


@pytest.mark.parametrize(
    "differs",
    [
        *("images_crc32", "reference_crc32", "kernel_crc32", "samples_crc32"),
        *("calibration_images", "sampler", "guidance", "guidance_interval"),
    ],
)
def test_what_only_looks_alike_is_no_repetition(differs: str, tmp_path: Path) -> None:
    """Of a score that was computed again the last counts; of other images or kernels both."""
    rows = [
        {"value": value, "key": f"key {number}", differs: number}
        for value, number in ((1.0, 5), (2.0, 5), (9.0, 6))
    ]
    table = compared([made_run(tmp_path, "a", rows)], tmp_path / "out")
    assert table == {f"FID, {differs} 5": ["2" + ONE], f"FID, {differs} 6": ["9" + ONE]}


def test_other_guidance_is_no_repetition_and_none_is_no_setting(tmp_path: Path) -> None:
    """Also of another seed; networks that are told classes compare with those that are not."""
    told = {"guidance": 1.0, "guidance_interval": [1, 3]}
    rows: list[dict[str, Any]] = [
        {"value": 1.0, **told},
        {"value": 2.0, **told, "guidance": 4.0, "seed": 43},
    ]
    runs = [made_run(tmp_path, "a", rows)]
    runs.append(made_run(tmp_path, "b", [{"value": 5.0}], model__sigma=0.02))
    table = compared(runs, tmp_path / "out")
    assert table["FID"][:2] == ["1" + ONE, "5" + ONE]
    assert table["FID, guidance 4.0"][:2] == ["2" + ONE, "-"]
    text = (tmp_path / "out" / "scores.csv").read_text()
    assert [row["guidance"] for row in csv.DictReader(text.splitlines())] == ["1.0", "", "4.0"]


def test_bad_input(runs: list[Path], tmp_path: Path) -> None:
    with bad_input(r"a1: has the configuration and the seed of .*a1; leave one out"):
        arms_of([runs[0], runs[0]])
    with bad_input(r"not a run directory, it has no config\.json"):
        arms_of([tmp_path])
    tool, out = ("-m", "scripts.tools.compare"), f"--out={tmp_path / 'out'}"
    assert error_line(command(*tool, out)).startswith("error: --run is needed: Run directories")
    (runs[0] / "evaluation" / "results.jsonl").unlink()
    assert "evaluate.py adds scores" in error_line(command(*tool, runs[0], out))
    assert not (tmp_path / "out").exists(), "nothing is written"
    result = command(*tool, *runs[1:], out)
    assert result.returncode == 0, result.stderr
    assert "model.sigma: 0.01 (a2), 0.01 (a3), 0.02 (b2)" in result.stdout
    assert "B - A" in result.stdout
    assert "A: sigma 0.01" in (tmp_path / "out" / "scores.txt").read_text()
    lonely = made_run(tmp_path, "c1", [{"value": 1.0, "score": "BPD"}], seed=9, model__sigma=0.03)
    result = command(*tool, *runs[1:], lonely, f"--out={tmp_path / 'two'}", "--scores=BPD")
    assert result.returncode == 0, result.stderr
    unknown = error_line(command(*tool, *runs[1:], out, "--scores=FID,IS"))
    assert unknown == "error: --scores=FID,IS: no IS in these runs; there are FID"


def test_no_tables_among_the_images_of_a_run(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", [], data__dataset="folder", data__path=str(tmp_path))
    with bad_input(r"become images of config\.data\.path"):
        main(SimpleNamespace(run=[str(run)], out=tmp_path / "out"))
