"""Samples out and in again: exports, and scores of samples that another program made."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from model_code.prior import StandardNormal
from scripts.evaluation.references import save_statistics
from scripts.evaluation.results import Point, Result
from scripts.evaluation.scores import SampleFiles, initial_images
from scripts.sampling.choice import Choice
from scripts.sampling.export import export
from scripts.sampling.output import to_uint8
from scripts.sampling.sampler import load_sampler
from tests.conftest import bad_input
from tests.evaluation.evaluations import Recorder, of_samples
from tests.images import random_pixels
from tests.tiny import tiny_config

DATA = tiny_config().data


def scores(run: Path, **changes: Any) -> list[Result]:
    options = {"dataset_split": "held_out"} | changes
    return of_samples(run, **options)(Point(0.05, seed=5))


def samples(path: Path) -> SampleFiles:
    return SampleFiles.read(str(path), tiny_config(), 5)


def save(folder: Path, pixels: np.ndarray) -> Path:
    folder.mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    return folder


@pytest.mark.parametrize("per_init", [None, 3])
def test_exported_samples_have_the_scores_of_drawn_ones(
    per_init: int | None, run: Path, tmp_path: Path
) -> None:
    """As PNG files and as an array; and a model's samples as a reference are at no distance from
    themselves.
    """
    choice = Choice(0.05, init="held_out" if per_init else None, per_init=per_init)
    sampler, trained = load_sampler(run, config=tiny_config(), choice=choice, seed=5, scoring=True)
    settings = sampler.record(trained).settings()
    export(tmp_path, sampler, settings, 11, 8, npz=True)
    file = tmp_path / "samples_11x8x8x1.npz"
    with np.load(file, allow_pickle=False) as arrays:
        assert arrays.files == ["arr_0"]
        exported = arrays["arr_0"]
    assert (exported.dtype, exported.shape) == (np.uint8, (11, 8, 8, 1))
    drawn = to_uint8(sampler.independent(range(11))).permute(0, 2, 3, 1).numpy().astype(int)
    assert np.abs(drawn - exported).max() <= 1, "rounding in batches of another size"
    assert (tmp_path / "origins.txt").exists() == (per_init is not None)
    if per_init:
        for source in (file, tmp_path):
            initial, _ = initial_images(samples(source), DATA, 10)
            assert initial.tolist() == sampler.origins(range(10))
        export(tmp_path, sampler, settings, 5, 8, npz=True)
        assert len(samples(tmp_path / "samples_5x8x8x1.npz").initial) == 5
        for source in (file, tmp_path):
            with bad_input(
                r"origins\.txt: 5 lines for the 11 images of --samples=.*empty directory"
            ):
                samples(source)
        return
    (right,) = scores(run)
    for source in (file, tmp_path):
        (result,) = scores(run, files=samples(source))
        assert result.estimate.value == right.estimate.value
        assert result.settings["samples"] == str(source)
        assert not result.settings.keys() & {"checkpoint_step", "weights_crc32", "delta"}
    (same,) = scores(run, reference=str(file))
    assert same.estimate.value == pytest.approx(0, abs=1e-3)
    assert same.settings["reference_images"] == 11


@pytest.mark.parametrize("name", ["imgs", "imgs.npz", "custom"])
def test_a_set_has_no_distance_from_itself(
    name: str,
    tmp_path: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whatever the configuration's size: samples are read as the reference is, and where sizes
    differ a line has both."""
    monkeypatch.setitem(Recorder.settings, "mode", "clean")
    monkeypatch.setattr("scripts.evaluation.references.statistics_folder", lambda: tmp_path)
    pixels = random_pixels(12, 20, 24, 3)
    folder = save(tmp_path / "imgs", pixels)
    np.savez(tmp_path / "imgs.npz", pixels)
    reference = {"reference": str(tmp_path / name)}
    if name == "custom":
        save_statistics("x", folder, Recorder(), "clean", 8)
        reference = {"reference": "x", "dataset_split": "custom"}
    files = samples(folder if name == "custom" else tmp_path / name)
    capsys.readouterr()
    (same,) = scores(run, files=files, num_gen=12, **reference)
    assert same.estimate.value == pytest.approx(0, abs=1e-3)
    assert "x 20" not in "".join(capsys.readouterr())
    scores(run, files=files)
    line = "samples are 24 x 20 pixels, and made 8 x 8 as the data set's images are"
    assert line in "".join(capsys.readouterr())
    scores(run, reference=str(folder))
    line = "samples are 8 x 8 pixels, reference images 24 x 20; each is taken at its own size"
    assert line in "".join(capsys.readouterr())


def test_arrays_of_a_reference_are_taken_as_they_are(tmp_path: Path, run: Path) -> None:
    """Neither resized nor cropped, whatever the configuration's size."""
    recorder = Recorder()
    pixels = random_pixels(9, 10, 14, 3)
    np.savez(tmp_path / "others.npz", pixels)
    scores(run, reference=str(tmp_path / "others.npz"), make_extractor=lambda: recorder)
    np.testing.assert_array_equal(recorder.batches[0], pixels[:8].transpose(0, 3, 1, 2))
    np.savez(tmp_path / "wrong.npz", pixels / 255)
    message = r"wrong\.npz: .*float64 from 0 to 1"
    with bad_input(message):
        scores(run, reference=str(tmp_path / "wrong.npz"))


def test_samples_that_cannot_be_scored(tmp_path: Path, run: Path) -> None:
    """A sample that cannot be read is no sample that can be left out."""
    folder = save(tmp_path / "made", np.arange(11 * 64, dtype=np.uint8).reshape(11, 8, 8))
    with bad_input("--samples=nothing: cannot be used"):
        samples(Path("nothing"))
    files = samples(folder)
    with bad_input(r"--num_gen=12: --samples=.*made has 11 images"):
        scores(run, files=files, num_gen=12)
    scores(run, files=files)
    (folder / "07.png").write_bytes(b"no image")
    with bad_input(r"--samples=.*made: 07\.png"):
        scores(run, files=files, cache=tmp_path)
    with bad_input(r"--samples=.*made: 1 images cannot be read"):
        scores(run, files=files, cache=tmp_path, reference=str(folder))


def test_where_samples_start(run: Path) -> None:
    """At the row of the prior that was drawn, if the prior has one for each training image or
    mirror image.
    """
    sampler, _ = load_sampler(run, config=tiny_config())
    initial, in_training = initial_images(sampler, DATA, 5)
    assert initial.tolist() == [row // 2 for row in sampler.origins(range(5))]
    assert not in_training, "the prior is of 100 images"
    sampler, _ = load_sampler(run, config=tiny_config(), from_data=True)
    initial, in_training = initial_images(sampler, DATA, 5)
    assert max(sampler.origins(range(5))) > 4500
    assert initial.tolist() == [row // 2 for row in sampler.origins(range(5))]
    assert in_training
    noise = replace(sampler, prior=StandardNormal((1, 8, 8)))
    assert initial_images(noise, DATA, 5)[0].tolist() == [0, 1, 2, 3, 4]
    for init in ("held_out", "train"):
        sampler, _ = load_sampler(run, config=tiny_config(), choice=Choice(init=init))
        initial, in_training = initial_images(sampler, DATA, 5)
        assert initial.tolist() == sampler.origins(range(5))
        assert in_training == (init == "train")


def test_an_export_is_continued_with_the_same_settings_alone(tmp_path: Path, run: Path) -> None:
    """Also where one is set no longer, such as --sampler."""
    sampler, _ = load_sampler(run, config=tiny_config(), choice=Choice(0.05), seed=5)
    export(tmp_path, sampler, {"seed": 5, "sampler": "multistep"}, 2, 2)
    with bad_input("made otherwise .sampler was multistep, now None"):
        export(tmp_path, sampler, {"seed": 5}, 3, 2)
