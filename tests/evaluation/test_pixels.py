"""Measures of images from a checkpoint to results, pictures and the page of the run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

from scripts.data.datasets import load_images
from scripts.evaluation.metrics import distance_from_best
from scripts.evaluation.page import write_page
from scripts.evaluation.pixels import PixelInputs
from scripts.evaluation.results import Point, Result, append_results
from scripts.storage.files import read_json_lines
from tests.conftest import bad_input
from tests.evaluation.evaluations import of_samples
from tests.evaluation.made_run import make_run
from tests.images import WithDamage, numbered, save_images
from tests.tiny import tiny_config


def evaluate(
    run: Path, mode: str, config: ConfigDict | None = None, num_gen: int = 12, **choice: Any
) -> list[Result]:
    return of_samples(run, config, mode, num_gen=num_gen)(Point(**choice, seed=3))


def test_spectrum_of_a_run(run: Path) -> None:
    """Every number with what held-out images get; the same samples give the same results."""
    distance, ratio = found = evaluate(run, "spectrum")
    assert [result.score for result in found] == ["LogSpectralDistance", "VarianceRatio"]
    assert found == evaluate(run, "spectrum")
    settings = distance.settings
    counts = settings["training_images"], settings["held_out_images"]
    assert (*counts, settings["checkpoint_step"]) == (4500, 12, 7)
    assert list(settings["by_octave"]) == ["2-4 px", "4-8 px", "8-16 px", "16-32 px", "constant"]
    assert settings["held_out"] < distance.estimate.value == settings["value_at_held_out_images"]
    assert ratio.per_image is not None
    assert ratio.per_image.mean() == pytest.approx(ratio.estimate.value)
    many = evaluate(run, "spectrum", num_gen=40)[0]
    assert 15 < (many.estimate.num_groups or 0) < 40, "the prior is of 100 images"
    assert f"(N = 40 from {many.estimate.num_groups} initial images" in str(many)


@pytest.mark.parametrize("random_flip", [False, True])
def test_copies_of_ones_own_seed(
    run: Path, random_flip: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that gives back the image that it starts from, or its mirror image, copies its own
    seed, every time.
    """
    config = tiny_config(data__random_flip=random_flip)
    source = load_images(config.data, "train")
    flip = slice(None, None, -1 if random_flip else 1)

    def give_back(self: Any, indices: range) -> torch.Tensor:
        assert self.initial_images is not None
        return torch.from_numpy(
            np.stack([source[i][..., flip] for i in self.origins(indices)]) / 255
        )

    monkeypatch.setattr("scripts.sampling.sampler.Sampler.independent", give_back)
    monkeypatch.setattr(
        "scripts.evaluation.scores.cached_features",
        lambda _, __, count, *rest: rest[1](range(count)),
    )
    found = {result.score: result for result in evaluate(run, "copying", config, init="train")}
    assert len(found) == 6
    for suffix in ("", "LowPass"):
        assert found[f"NearestRatio{suffix}"].estimate.value < 1e-4
        assert found[f"NearerThanHeldOut{suffix}"].estimate.value == 1
        assert found[f"NearestIsOwnInit{suffix}"].estimate.value == 1


def test_diversity_of_a_run(run: Path) -> None:
    results = evaluate(run, "diversity", num_gen=20)
    found = {result.score: result.estimate.value for result in results}
    assert len(found) == 6
    for suffix in ("", "LowPass"):
        parts = found[f"WithinInit{suffix}"] + found[f"BetweenInits{suffix}"]
        assert found[f"WithinAndBetween{suffix}"] == pytest.approx(parts)
    by_octave = results[0].settings["within_by_octave"]
    assert by_octave["constant"]["not_handed_over"] == pytest.approx(0, abs=1e-6), (
        "no blur changes the mean"
    )
    assert by_octave["2-4 px"]["not_handed_over"] == pytest.approx(1, abs=1e-4)
    for count, per_init in ((12, None), (10, None), (20, 1), (20, 20)):
        with bad_input(rf"--num_gen={count} --per_init={per_init or 10}: --per_init must be"):
            evaluate(run, "diversity", num_gen=count, per_init=per_init)


def test_what_cannot_be_measured_is_refused_before_sampling(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image twice would count as two seeds; of a single held-out image there is no variance."""
    monkeypatch.setattr("scripts.sampling.sampler.Sampler.independent", None)
    with bad_input(
        "--num_gen=1002: must be at most 1000, all samples of the images of held_out",
    ):
        evaluate(run, "diversity", num_gen=1002, init="held_out", per_init=2)
    save_images(tmp_path / "one", ["a.png"])
    config = tiny_config(data__held_out_path=str(tmp_path / "one"))
    make_run(config, tmp_path / "run")
    for mode in ("spectrum", "diversity"):
        with bad_input(
            "mnist5k: there is one held_out image, where this mode needs at least 2",
        ):
            evaluate(tmp_path / "run", mode, config, num_gen=20)


def test_pictures_are_kept_and_shown(run: Path, tmp_path: Path) -> None:
    """In the run directory; another setting has another picture; the page shows them."""
    for num_gen in (12, 14):
        results = evaluate(run, "copying", num_gen=num_gen)
        append_results(tmp_path, results, param_name="delta", seconds=0.0, workdir=run)
    pictures = sorted(path.name for path in run.glob("evaluation/*.png"))
    assert len(pictures) == 2
    assert not list(tmp_path.glob("*.png"))
    rows = read_json_lines(run / "evaluation" / "results.jsonl")
    assert {row["picture"] for row in rows if "picture" in row} == set(pictures)
    (run / "config.json").write_text("{}")
    page = write_page(run).read_text()
    assert all(name.removesuffix(".png") in page for name in pictures)
    assert page.count("data:image/png") == 2


def test_images_that_measures_leave_out_are_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "scripts.evaluation.pixels.load_images", lambda *_: WithDamage(numbered(9), {2, 4})
    )
    samples = np.zeros((5, 1, 8, 8), np.uint8)
    inputs = PixelInputs(samples, np.arange(5), tiny_config().data, 0, torch.device("cpu"))
    for split in ("train", "held_out"):
        assert len(inputs.in_memory(split)) == 7
    assert sum(len(positions) for positions, _ in inputs.training_blocks()) == 14, (
        "and mirror images"
    )
    of = "cannot be read: image 2: damaged for the test; image 4: damaged for the test"
    lines = [
        line.partition("warning: ")[2]
        for line in capsys.readouterr().err.splitlines()
        if "cannot" in line
    ]
    assert lines == [f"2 of 9 {what} images {of}" for what in ("train", "held_out", "training")]


def test_what_is_best() -> None:
    for score, better, worse in (
        ("FID", 1, 2),
        ("Recall", 0.9, 0.1),
        ("VarianceRatio", 1.1, 0.8),
        ("NearestRatio", 0.9, 2.0),
    ):
        assert distance_from_best(score, better) < distance_from_best(score, worse)
