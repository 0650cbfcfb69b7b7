"""`python -m scripts.tools.show_run`: what is in a file or a run directory, without building anything."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model_code import build_model
from scripts.config.paths import ROOT
from scripts.errors import UserError
from scripts.storage.checkpoint import meta_path, numbered_path
from scripts.tools.show_run import describe
from scripts.training.loop import train
from tests.conftest import tiny_config
from tests.storage.test_checkpoint import release_contents


@pytest.fixture(scope="module")
def run_directory(tiny_array: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("run")
    train(tiny_config(data__dataset="npy", data__path=str(tiny_array)), workdir)
    return workdir


def test_a_run_directory(run_directory: Path) -> None:
    """Step, size, differences from the defaults, provenance, metrics, and which checkpoints there are."""
    text = "\n".join(describe(run_directory))
    parameters = sum(weight.numel() for weight in build_model(tiny_config()).parameters())
    for part in ("step         6", f"{parameters:,}", "100, now 3", "seed         42", "numbered checkpoints: 1", "(step 6)"):
        assert part in text, part
    assert "optim.lr" not in text


def test_the_releases_checkpoint(tmp_path: Path) -> None:
    torch.save(release_contents(torch.nn.Linear(3, 5)), tmp_path / "release.pth")
    text = "\n".join(describe(tmp_path / "release.pth"))
    for part in ("checkpoint of the original release", "step         7", "parameters   20"):
        assert part in text


def test_anything_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no checkpoint")
    for name, part in ((".", "there is no checkpoint"), ("no", "there is no such"), ("notes.txt", "damaged, or not")):
        with pytest.raises(UserError, match=part):
            list(describe(tmp_path / name))


def test_the_command(run_directory: Path, tmp_path: Path) -> None:
    """What a file says cannot write to the terminal: escape sequences and line breaks are written out."""
    contents = torch.load(meta_path(run_directory), weights_only=True)
    contents["provenance"]["command"] = "\x1b[2J\nforged: 1"
    numbered_path(tmp_path, 1).parent.mkdir()
    torch.save(contents, numbered_path(tmp_path, 1))

    def show(path: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.tools.show_run", str(path)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    shown = show(tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert r"\x1b[2J\nforged: 1" in shown.stdout
    refused = show(tmp_path / "absent")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
