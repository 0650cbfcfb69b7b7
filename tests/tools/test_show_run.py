"""`python -m scripts.tools.show_run`: what is in a file or a run directory, without running or building anything."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from model_code import build_model
from scripts.checkpoint import meta_path, numbered_path, previous_path
from scripts.config import ROOT
from scripts.errors import UserError
from scripts.tools.show_run import experiment_file, inspect, lines, main, tensor_bytes
from scripts.training.loop import train
from tests.conftest import tiny_config
from tests.test_checkpoint import release_contents


@pytest.fixture(scope="module")
def run_directory(tiny_array: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("inspected")
    for n_iters in (2, 4):
        train(tiny_config(data__dataset="npy", data__path=str(tiny_array), training__n_iters=n_iters), workdir)
    return workdir


def test_a_run_directory(run_directory: Path) -> None:
    facts = inspect(run_directory)
    assert [(found["name"], found["step"]) for found in facts["checkpoints"]] == [
        ("checkpoints-meta/checkpoint.pth", 4),
        ("checkpoints-meta/checkpoint_previous.pth", 2),
        ("checkpoints/checkpoint_1.pth", 4),
    ]
    assert facts["differences"]["configs/default.py"]["model.K"] == [100, 3]
    assert facts["differences"]["configs/default.py"]["model.channel_mult"] == [[1, 2, 2], [1]]
    assert "optim.lr" not in facts["differences"]["configs/default.py"]
    assert facts["metrics"]["loss"]["step"] == 4
    assert facts["metrics"]["loss"]["value"] > 0
    assert [(row["step"], row["event"]) for row in facts["events"]] == [(0, "started"), (2, "resumed")]
    assert facts["samples"] == ["samples/iter_2", "samples/iter_4"]
    assert json.loads(json.dumps(facts)) == facts


def test_our_checkpoint(run_directory: Path) -> None:
    facts = inspect(meta_path(run_directory))
    parameters = sum(weight.numel() for weight in build_model(tiny_config()).parameters())
    assert (facts["step"], facts["parameters"]) == (4, parameters)
    sizes = facts["sizes"]
    assert (sizes["model"], sizes["ema"]) == (4 * parameters, 4 * parameters)
    assert sizes["optimizer"] >= 2 * sizes["model"]
    assert facts["prior"]["images"] == 36
    assert facts["provenance"]["seed"] == 42
    assert facts["config_hash"] == facts["provenance"]["config_hash"]
    text = "\n".join(lines(facts))
    for part in ("step         4", f"{parameters:,}", "model.K", "world_size   1"):
        assert part in text


def test_the_releases_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "release.pth"
    torch.save(release_contents(torch.nn.Linear(3, 5)), path)
    facts = inspect(path)
    assert (facts["kind"], facts["step"], facts["parameters"]) == ("checkpoint of the original release", 7, 20)
    assert facts["sizes"] == {"model": 80, "ema": 80, "optimizer": 0, "prior": 0}
    assert "no configuration in it" in lines(facts)


def test_a_damaged_checkpoint_among_others(run_directory: Path, tmp_path: Path) -> None:
    for path in (numbered_path(tmp_path, 2), previous_path(tmp_path)):
        path.parent.mkdir(exist_ok=True)
    numbered_path(tmp_path, 2).write_bytes(b"junk")
    previous_path(tmp_path).write_bytes(meta_path(run_directory).read_bytes())
    first, second = inspect(tmp_path)["checkpoints"]
    assert first["step"] == 4
    assert "checkpoint_2.pth: the checkpoint is damaged" in second["problem"]


def test_anything_else_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no checkpoint")
    (tmp_path / "run").mkdir()
    for name, part in ((".", "not a run directory"), ("no", "no such file"), ("notes.txt", "refused")):
        with pytest.raises(UserError, match=part):
            inspect(tmp_path / name)
    for text in ("[]", "3", "{", '{"provenance": 3}', "[" * 5000):
        (tmp_path / "run" / "config.json").write_text(text)
        with pytest.raises(UserError, match="damaged"):
            inspect(tmp_path / "run")


def test_what_a_file_says_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Escape sequences and line breaks from a file are written out."""
    (tmp_path / "config.json").write_text(json.dumps({"data": {"path": "\x1b[2J\nforged: 1"}}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss\x07": "\x1b]0;x"}) + "\n3\n")
    assert all(line.isprintable() for line in lines(inspect(tmp_path)))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python train.py --config configs/mnist/quickstart.py --workdir w", "configs/mnist/quickstart.py"),
        ("python train.py --config=/elsewhere/configs/mnist/small_mnist.py", "configs/mnist/small_mnist.py"),
        ("python train.py --config /tmp/evil.py", None),
        ("python train.py --config configs/mnist/../../evil.py", None),
        ("python train.py 'unbalanced", None),
        (None, None),
    ],
)
def test_only_the_projects_own_experiment_files_are_run(command: Any, expected: str | None) -> None:
    found = experiment_file(command)
    assert (found and found.as_posix()) == expected


def test_nested_contents_are_counted_once() -> None:
    """Lists that hold each other many times, or themselves, take no time."""
    nested: list[Any] = [torch.ones(3)]
    for _ in range(100):
        nested = [nested, nested]
    nested.append(nested)
    assert tensor_bytes(nested) == 12


def test_errors_of_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["nothing/there"], [], ["--jsom", "x"], ["~nobody_of_this_name/x"]):
        monkeypatch.setattr(sys, "argv", ["inspect", *argv])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1


def test_as_a_command(run_directory: Path) -> None:
    def run(*args: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(list(map(str, args)), capture_output=True, text=True, cwd=cwd, check=False)

    result = run(sys.executable, "-m", "scripts.tools.show_run", run_directory, "--json")
    assert json.loads(result.stdout)["kind"] == "run directory", result.stderr
    # As a file, or found by PyTorch in place of Python's own inspect.
    for line in ([ROOT / "scripts" / "tools" / "show_run.py", run_directory], ["-c", "import torch"]):
        result = run(sys.executable, *line, cwd=ROOT / "scripts")
        assert result.returncode != 0
        assert (
            result.stderr
            == "error: modules of scripts/ are run as `python -m scripts.tools.show_run`, in the project's folder\n"
        )
