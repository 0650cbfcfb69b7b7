"""What made a result is written down with it."""

import json
import subprocess
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from scripts.storage import record
from scripts.storage.checkpoint import meta_path, numbered_path, read
from scripts.storage.files import read_json_lines
from scripts.training.log import MetricsWriter
from scripts.training.loop import train
from tests.tiny import tiny_config

FACTS = {"time", "config_hash", "seed", "command", "commit", "versions", "device", "world_size"}


def array_config(path: Path, **overrides: object) -> ConfigDict:
    return tiny_config(data__dataset="npy", data__path=str(path), **overrides)


def git(folder: Path, *args: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *args], capture_output=True, text=True, check=True
    ).stdout


def test_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit, a mark for changed files; nothing without git, outside a repository, or of one
    around the program.
    """
    folder = tmp_path / "program"
    folder.mkdir()
    monkeypatch.setattr(record, "ROOT", folder)
    assert record.commit() is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "of something else")
    assert record.commit() is None
    git(folder, "init", "-q")
    assert record.commit() is None, "no commit yet"
    (folder / "a").write_text("1")
    git(folder, "add", "a")
    git(folder, "commit", "-q", "-m", "one")
    own = git(folder, "rev-parse", "HEAD").strip()
    assert record.commit() == own
    (folder / "a").write_text("2")
    assert record.commit() == f"{own}+changes"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.commit() is None


def test_a_runs_files(tiny_array: Path, tmp_path: Path) -> None:
    """config.json stays a configuration with sections at its top; checkpoints and each start of the
    run have the same facts.
    """
    assert train(array_config(tiny_array, training__n_iters=2), tmp_path) == 0
    assert train(array_config(tiny_array, training__n_iters=4, optim__lr=1e-3), tmp_path) == 0
    config = json.loads((tmp_path / "config.json").read_text())
    facts = config.pop("provenance")
    assert facts.keys() == FACTS
    now = array_config(tiny_array, training__n_iters=4, optim__lr=1e-3)
    assert config == json.loads(json.dumps(now.to_dict()))
    assert facts["config_hash"] == record.config_hash(now)
    assert read(meta_path(tmp_path))["provenance"] == facts
    assert read(numbered_path(tmp_path, 2))["provenance"] == facts
    started, resumed = [
        row for row in read_json_lines(tmp_path / "metrics.jsonl") if "event" in row
    ]
    assert (started["step"], started["event"], resumed["step"], resumed["event"]) == (
        0,
        "started",
        2,
        "resumed",
    )
    assert {name: resumed[name] for name in FACTS} == facts
    assert started["config_hash"] != resumed["config_hash"]
    assert resumed["changed_config"] == {
        "optim.lr": "0.0002, now 0.001",
        "training.n_iters": "2, now 4",
    }


def test_events_outlive_the_rows_of_lost_steps(tmp_path: Path) -> None:
    """Back at step 2, what was measured at 4 will be measured again, but that the run went on at 4
    stays true.
    """
    with MetricsWriter(tmp_path, 0) as metrics:
        metrics.event(0, "started")
        metrics.write(2, loss=1.0)
        metrics.write(4, loss=0.5)
        metrics.event(4, "resumed", versions={"torch": "2"})
    with MetricsWriter(tmp_path, 2) as metrics:
        metrics.event(2, "resumed")
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    kept = [(row["step"], row.get("event", "loss")) for row in rows]
    assert kept == [(0, "started"), (2, "loss"), (4, "resumed"), (2, "resumed")]
