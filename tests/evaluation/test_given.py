"""Samples out and in again: an array of an export, and scores of samples that another program made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.errors import UserError
from scripts.evaluation.metrics import MODES
from scripts.evaluation.pixels import SampleFiles, initial_images
from scripts.evaluation.references import save_statistics
from scripts.evaluation.results import Result
from scripts.evaluation.scores import SampleEvaluation
from scripts.sampling.choice import Choice
from scripts.sampling.export import export
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import load_sampler
from tests.evaluation.made_run import make_run
from tests.evaluation.test_scores import Recorder
from tests.tiny import tiny_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tiny_config(), tmp_path / "run")
    return tmp_path / "run"


def scores(run: Path, **changes: Any) -> list[Result]:
    options: dict[str, Any] = {
        "batch_size": 8, "num_gen": 11, "reference": "", "dataset_split": "held_out",
        "make_extractor": Recorder, "metrics": MODES["fid"], "cache": run / "cache",
    } | changes  # fmt: skip
    return SampleEvaluation(tiny_config(), run, **options)(
        checkpoint=0, choice=Choice(0.05), seed=5
    )


@pytest.mark.parametrize("per_init", [None, 3])
def test_exported_samples_have_the_scores_of_drawn_ones(per_init: int | None, run: Path) -> None:
    """As PNG files and as an array; and a model's samples as a reference are at no distance from
    themselves.
    """
    choice = Choice(0.05, init="held_out" if per_init else None, per_init=per_init)
    sampler, trained = load_sampler(tiny_config(), run, 0, choice=choice, seed=5, scoring=True)
    directory = run / "export"
    export(directory, sampler, sampler.record(tiny_config(), trained).settings(), 11, 8, npz=True)
    file = directory / "samples_11x8x8x1.npz"
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
        found = arrays["arr_0"]
    assert (found.dtype, found.shape) == (np.uint8, (11, 8, 8, 1))
    drawn = to_uint8(sampler.independent(range(11))).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(drawn - found).max() <= 1, "rounding in batches of another size"
    assert (directory / "origins.txt").exists() == (per_init is not None)
    if per_init:
        given = SampleFiles.read(str(directory), tiny_config(), 5)
        assert initial_images(given, tiny_config().data, 10).tolist() == sampler.origins(range(10))
        return
    (right,) = scores(run)
    for source in (file, directory):
        (result,) = scores(run, given=SampleFiles.read(str(source), tiny_config(), 5))
        assert result.estimate.value == right.estimate.value
        assert result.settings["samples"] == str(source)
        assert not result.settings.keys() & {"checkpoint_step", "weights_crc32", "delta"}
    (same,) = scores(run, reference=str(file))
    assert same.estimate.value == pytest.approx(0, abs=1e-3)
    assert same.settings["reference_images"] == 11


@pytest.mark.parametrize("suffix", ["", "custom", ".npz"])
def test_a_set_has_no_distance_from_itself(
    suffix: str,
    tmp_path: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the configuration's size: samples are read as the reference is, and where sizes
    differ a line has both."""
    monkeypatch.setitem(Recorder.settings, "mode", "clean")
    monkeypatch.setattr("scripts.evaluation.references.statistics_folder", lambda: tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    folder = tmp_path / "imgs"
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    np.savez(tmp_path / "imgs.npz", pixels)
    save_statistics("x", folder, Recorder(), "clean", 8)
    given = SampleFiles.read(
        str(tmp_path / f"imgs{suffix if suffix == '.npz' else ''}"), tiny_config(), 5
    )
    name = (
        {"reference": "x", "dataset_split": "custom"}
        if suffix == "custom"
        else {"reference": str(folder) + suffix}
    )
    capsys.readouterr()
    (same,) = scores(run, given=given, num_gen=12, **name)
    assert same.estimate.value == pytest.approx(0, abs=1e-3)
    assert "x 20" not in "".join(capsys.readouterr())
    scores(run, given=given)
    assert "samples are 24 x 20 pixels, and made 8 x 8 as the data set's images are" in "".join(
        capsys.readouterr()
    )
    scores(run, reference=str(folder))
    line = "samples are 8 x 8 pixels, reference images 24 x 20; each is taken at its own size"
    assert line in "".join(capsys.readouterr())


def test_arrays_of_a_reference_are_taken_as_they_are(tmp_path: Path, run: Path) -> None:
    """Neither resized nor cropped, whatever the configuration's size."""
    recorder = Recorder()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 10, 14, 3), dtype=np.uint8)
    np.savez(tmp_path / "others.npz", pixels)
    scores(run, reference=str(tmp_path / "others.npz"), make_extractor=lambda: recorder)
    np.testing.assert_array_equal(recorder.batches[0], pixels[:8].transpose(0, 3, 1, 2))
    np.savez(tmp_path / "wrong.npz", pixels / 255)
    with pytest.raises(
        UserError, match=r"wrong\.npz: cannot be used .*holds float64 \(9, 10, 14, 3\)"
    ):
        scores(run, reference=str(tmp_path / "wrong.npz"))


def test_samples_that_cannot_be_scored(tmp_path: Path, run: Path) -> None:
    """A sample that cannot be read is no sample that can be left out."""
    folder = tmp_path / "made"
    folder.mkdir()
    for i in range(11):
        Image.fromarray(np.full((8, 8), 20 * i, np.uint8)).save(folder / f"{i}.png")
    with pytest.raises(UserError, match="--samples=nothing: cannot be used"):
        SampleFiles.read("nothing", tiny_config(), 0)
    given = SampleFiles.read(str(folder), tiny_config(), 0)
    with pytest.raises(UserError, match=r"--num_gen=12: --samples=.*made has 11 images"):
        scores(run, given=given, num_gen=12)
    scores(run, given=given)
    (folder / "7.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"--samples=.*made: 7\.png"):
        scores(run, given=replace(given), cache=run / "other")
