"""A published run: small, sampled from without any data set, and not taken for a run that could go on."""

from pathlib import Path

import pytest
import torch

from scripts.config.paths import ROOT
from scripts.errors import UserError
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import load_sampler
from scripts.storage import checkpoint
from scripts.storage.files import read_json_lines
from scripts.tools.publish import publish
from scripts.training.loop import train
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run directory."""
    workdir = tmp_path_factory.mktemp("run")
    assert train(tiny_config(), workdir) == 0
    return workdir


def samples(workdir: Path, **overrides: object) -> torch.Tensor:
    sampler, _ = load_sampler(tiny_config(**overrides), workdir, 0, choice=Choice("calibrated"))
    return sampler.independent([0, 1, 2])


def test_samples_are_those_of_the_run_and_need_no_data_set(run: Path, tmp_path: Path) -> None:
    path = publish(run, tmp_path)
    assert path.stat().st_size < checkpoint.meta_path(run).stat().st_size / 2, "no optimizer, no second copy of the weights"
    assert torch.equal(samples(tmp_path, data__path=str(tmp_path / "no such file")), samples(run))
    rows = [row for row in read_json_lines(run / "metrics.jsonl") if "event" not in row]
    assert rows
    assert read_json_lines(tmp_path / "metrics.jsonl") == rows


def test_training_does_not_go_on_from_it(run: Path, tmp_path: Path) -> None:
    path = publish(run, tmp_path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"checkpoint_1\.pth"):
        train(tiny_config(training__n_iters=8), tmp_path)
    assert path.read_bytes() == before
    assert not checkpoint.meta_path(tmp_path).exists()


def test_a_run_is_not_published_over_another(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can be trained further; choose another"):
        publish(run, run)
    with pytest.raises(UserError, match="there is no checkpoint of this program in it"):
        publish(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    path = publish(run, tmp_path / "out")
    before = path.read_bytes()
    contents = checkpoint.read(checkpoint.meta_path(run))
    next(iter(contents["ema"]["shadow"].values())).view(-1)[0] += 1
    checkpoint.write(checkpoint.meta_path(tmp_path / "other"), contents)
    with pytest.raises(UserError, match="other weights are published there; choose another directory"):
        publish(tmp_path / "other", tmp_path / "out")
    assert path.read_bytes() == before
    assert publish(run, tmp_path / "out") == path, "the same again"


def test_private_folders_are_left_out_of_the_command(run: Path, tmp_path: Path) -> None:
    contents = checkpoint.read(checkpoint.meta_path(run))
    contents["provenance"]["command"] = "/home/me/env/bin/python train.py --config configs/a/b.py --workdir=/data/me/run"
    checkpoint.write(checkpoint.meta_path(tmp_path / "run"), contents)
    published = checkpoint.read(publish(tmp_path / "run", tmp_path / "out"))
    assert published["provenance"]["command"] == "python train.py --config configs/a/b.py --workdir=run"
    assert "/me/" not in (tmp_path / "out" / "config.json").read_text()


@pytest.mark.parametrize("data", ["mnist", "emoji"])
def test_the_included_weights_are_small_and_whole(data: str) -> None:
    """They come with the repository, and people download that on slow lines."""
    path = checkpoint.numbered_path(ROOT / "runs" / data / "pretrained", 1)
    assert path.stat().st_size < 6_000_000
    assert checkpoint.read(path).keys() >= {"ema", "config", "prior", "step"}
