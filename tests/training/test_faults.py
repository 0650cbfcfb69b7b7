"""What machines do to a training: kill -9, a full disk, images that go away."""

import errno
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from ml_collections import ConfigDict

from model_code import build_process
from scripts.data.datasets import load_images
from scripts.runtime import progress
from scripts.sampling.sampler import data_prior
from scripts.storage.checkpoint import meta_path, read
from scripts.storage.files import atomic_write
from scripts.training.log import MetricsWriter
from scripts.training.loop import Run, train
from tests.conftest import bad_input
from tests.images import WithDamage, numbered, save_images
from tests.tiny import tiny_config
from tests.training import faults
from tests.training.runs import TinyRun, before_step, differing, finish, metrics_with


def test_killed_at_random_moments(capsys: pytest.CaptureFixture[str]) -> None:
    """The short version of `python -m tests.training.faults`."""
    assert faults.main(["--kills=2", "--n_iters=6"]) == 0, capsys.readouterr().out
    assert "every run ended bit for bit as the undisturbed one" in capsys.readouterr().out


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Within the context writing beyond `size` bytes of a file fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_while_saving(
    tiny_run: TinyRun, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that names the file; the old checkpoints bit for bit, nothing half written; with
    space again it continues.
    """
    tiny_run.finish(training__n_iters=4, training__snapshot_freq_for_preemption=2)
    before = {path: path.read_bytes() for path in tiny_run.workdir.rglob("*.pth")}
    snapshot = Run.snapshot

    def on_full_disk(run: Run) -> None:
        with file_size_limit(100_000):
            snapshot(run)

    message = r"checkpoint\.pth: the checkpoint could not be written .*earlier ones are intact"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "snapshot", on_full_disk)
        with bad_input(message):
            tiny_run.train()
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tiny_run.workdir.rglob("*.partial*"))
    tiny_run.finish()
    assert not differing(tiny_run.state(), undisturbed)


def test_other_files_on_a_full_disk_are_named(tmp_path: Path) -> None:
    with (
        file_size_limit(10),
        pytest.raises(OSError, match=r"File too large: '.*config\.json'"),
        atomic_write(tmp_path / "config.json") as temporary,
    ):
        temporary.write_text("x" * 100)
    full = pytest.raises(OSError, match=r"File too large: '.*metrics\.jsonl'")
    with MetricsWriter(tmp_path, 0) as metrics, file_size_limit(10), full:
        metrics.event(1, "resumed")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


@pytest.mark.parametrize(
    "what", ["scripts.sampling.output.save_png", "scripts.training.log.MetricsWriter._append"]
)
def test_what_cannot_be_written_ends_training_after_a_save(
    what: str, tiny_run: TinyRun, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a line that says why; then the run continues."""

    def no_quota(*_: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "a file")

    freq = {"training__log_freq": 3, "training__sampling_freq": 3}
    message = r"Disk quota exceeded: 'a file'\. Saved at step 3; the same command continues"
    with monkeypatch.context() as patch, bad_input(message):
        tiny_run.disturb(2, lambda: patch.setattr(what, no_quota), **freq)
    tiny_run.finish(**freq)
    assert not differing(tiny_run.state(), undisturbed)


def no_folder(folder: Path) -> None:
    shutil.rmtree(folder)


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("in its place")


@pytest.mark.parametrize(("tidy", "warnings"), [(no_folder, 0), (a_file, 1)])
def test_tensorboard_is_optional(
    tidy: Callable[[Path], None],
    warnings: int,
    tiny_run: TinyRun,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Its folder may be removed, and comes back; what cannot be written is one warning."""
    progress.warn_once.cache_clear()
    folder = tiny_run.workdir / "tensorboard"
    assert tiny_run.disturb(3, lambda: tidy(folder), training__log_freq=1) == 0
    tiny_run.finish(training__n_iters=7)
    lines = capfd.readouterr().err.splitlines()
    assert [line.startswith("warning: tensorboard: ") for line in lines] == [True] * warnings
    assert folder.is_dir() == (warnings == 0)


def test_pictures_that_cannot_be_made_are_optional(
    tiny_run: TinyRun,
    undisturbed: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Training ends as it would, with a warning for each kind; continuing does not draw again."""
    progress.warn_once.cache_clear()
    for name in ("save_gif", "save_mp4"):
        monkeypatch.setattr(f"scripts.sampling.output.{name}", lambda path, frames: 1 // 0)
    for _ in range(2):
        tiny_run.finish(training__sampling_freq=2)
    captured = capsys.readouterr()
    warned = [line.split(": ")[1] for line in captured.err.splitlines()]
    assert warned == ["process.gif", "process.mp4"]
    assert captured.out.count("samples in") == 3
    made = {path.name for path in (tiny_run.workdir / "samples" / "iter_6").iterdir()}
    assert made == {"init.png", "final.png", "final.npy"}
    assert not differing(tiny_run.state(), undisturbed)


def folder_config(folder: Path, **overrides: object) -> ConfigDict:
    """Nothing is read before its step."""
    save_images(folder, [f"{i}.png" for i in range(30)])
    config = tiny_config(data__dataset="folder", data__path=str(folder), **overrides)
    config.data.num_workers, config.training.log_freq = 0, 1
    return config


def test_an_image_that_becomes_unreadable_during_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Named once, skipped, counted from then on."""
    config = folder_config(tmp_path / "images", training__batch_size=27)  # all of them
    image = tmp_path / "images" / load_images(config.data, "train").name(5)
    before_step(monkeypatch, 1, lambda: image.write_bytes(image.read_bytes()[:30]))
    finish(config, tmp_path / "run")
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count(f"skipped unreadable image 1: {image.name}") == 1
    rows = metrics_with("loss", tmp_path / "run")
    assert [row["unreadable_images"] for row in rows] == [0, 0, 1, 1, 1, 1]


def test_a_disk_with_images_that_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, not thousands of skipped images; what was learnt is saved."""
    config = folder_config(tmp_path / "images")
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda: shutil.move(tmp_path / "images", tmp_path / "away"))
        with bad_input(r"none of the 27 images can be read.* Saved at step 3"):
            train(config, tmp_path / "run")
    shutil.move(tmp_path / "away", tmp_path / "images")
    assert read(meta_path(tmp_path / "run"))["step"] == 3
    finish(config, tmp_path / "run")


def test_prior_from_data_passes_over_an_unreadable_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """As training does: the next readable one in its place, with a warning that names it."""
    config, images = tiny_config(data__random_flip=False), numbered(4, 8)
    process = build_process(config)
    sources = iter([WithDamage(images, {1}), images])
    monkeypatch.setattr("scripts.sampling.sampler.load_images", lambda data, split: next(sources))
    with pytest.warns(UserWarning, match="skipped unreadable images image 1"):
        found = data_prior(config, process).means(torch.tensor([0, 1]))
    torch.testing.assert_close(found, data_prior(config, process).means(torch.tensor([0, 2])))


def test_unreadable_images_are_named_a_few_times_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Log files get whole lines, few of them."""
    config = folder_config(tmp_path / "images")
    for i in range(100):
        (tmp_path / "images" / f"broken{i}.png").write_bytes(b"no image")
    finish(config, tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if "training images cannot be read: broken" in line]
    assert line.count("broken") == 5
    assert line.endswith(" more")
    assert not any("\r" in line for line in lines)


def test_held_out_images_are_tried_before_training(tmp_path: Path) -> None:
    config = folder_config(tmp_path / "images")
    held_out = load_images(config.data, "held_out")
    for i in range(len(held_out)):
        (tmp_path / "images" / held_out.name(i)).write_bytes(b"no image")
    with bad_input(r"held-out images: .*none of the \d+ images can be read"):
        train(config, tmp_path / "run")
    assert not list((tmp_path / "run").rglob("*.pth"))


def test_a_run_among_its_images(tmp_path: Path) -> None:
    """Its pictures would be trained on, and it could not continue."""
    config = folder_config(tmp_path / "images")
    for place in ("images", "images/runs/first"):
        message = r"--workdir=.*: pictures there would become images of config\.data\.path"
        with bad_input(message):
            train(config, tmp_path / place)
    assert all(path.suffix == ".png" for path in (tmp_path / "images").iterdir())
