"""Images of more than 8 bits through every command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from scripts.config.flags import parse
from scripts.config.load import load
from scripts.evaluation.results import Point
from scripts.evaluation.scores import SampleFiles
from scripts.sampling.sampler import load_sampler
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.evaluation.evaluations import Recorder, of_bound, of_samples
from tests.images import save_waves
from tests.training.runs import TinyRun, array_config

RANGE: dict[str, Any] = {"data__value_range": (-1000, 3000), "eval__num_images": 4}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """Trained on forty waves of int16, from -1,000 to 3,000."""
    path = tmp_path_factory.mktemp("array") / "waves.npy"
    eight_bits = np.load(save_waves(path, 8, 8))
    np.save(path, (eight_bits / 255 * 4000 - 1000).astype(np.int16))
    run = TinyRun(path, tmp_path_factory.mktemp("run"))
    run.finish(**RANGE)
    return run


def test_a_run_goes_on_with_one_range(run: TinyRun) -> None:
    other = array_config(run.array, **RANGE | {"data__value_range": (-1000, 3001)})
    with bad_input(r"data\.value_range was \[-1000, 3000\], now \[-1000, 30"):
        train(other, run.workdir)


def test_exports_are_of_8_bits(
    run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And say so; read again as samples they are what they were."""
    out = tmp_path / "export"
    words = [f"--workdir={run.workdir}", f"--export_dir={out}", "--num_samples=4"]
    assert sample.draw(parse("sample", ["sample.py", *words])) == 0
    assert "in 8 bits: 0 to 255 stand for -1000 to 3000" in capsys.readouterr().out
    config = load(str(run.workdir / "config.json"))
    spectrum = [
        of_samples(run.workdir, config, "spectrum", num_gen=4, **files)(Point(seed=config.seed))[0]
        for files in ({}, {"files": SampleFiles.read(str(out), config, config.seed)})
    ]
    assert spectrum[0].estimate.value == spectrum[1].estimate.value


def test_pictures_of_both_kinds_to_start_from(run: TinyRun, tmp_path: Path) -> None:
    """8 bits are 0 to 255, others of the range."""
    Image.new("L", (8, 8), 51).save(tmp_path / "8.png")
    Image.fromarray(np.full((8, 8), -200, np.int32)).save(tmp_path / "32.tif")
    for name in ("8.png", "32.tif"):
        sampler, _ = load_sampler(run.workdir, choice=Point(init=str(tmp_path / name)))
        assert sampler.initial_images is not None
        np.testing.assert_allclose(sampler.initial_images.images([0]), 0.2, atol=1e-6)


def test_features_are_of_8_bits(run: TinyRun) -> None:
    recorder = Recorder()
    config = load(str(run.workdir / "config.json"))
    evaluation = of_samples(run.workdir, config, make_extractor=lambda: recorder)
    evaluation(Point(seed=config.seed))
    stored = np.load(run.array)
    reference = torch.cat([batch for batch in recorder.batches if batch.dtype == torch.uint8])
    assert len(reference) == sum(map(len, recorder.batches))
    exact = (stored[:, None] + 1000) / 4000 * 255
    assert np.abs(reference[:2] - exact[:2]).max() <= 0.51  # the first that are not held out


def test_the_bound_has_no_bits(run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
    """Which are of 8-bit images, as are the probabilities of diffusion."""
    config = load(str(run.workdir / "config.json"))
    (nats,) = of_bound(run.workdir, config, num_images=4)(Point(seed=0))
    assert (nats.score, nats.settings["dequantized"]) == ("ELBO", False)
    assert "no bits/dim" in capsys.readouterr().out


def test_the_bound_of_diffusion_is_refused(run: TinyRun, tmp_path: Path) -> None:
    config = array_config(
        run.array, **RANGE, model__process="gaussian_diffusion", training__n_iters=1
    )
    assert train(config, tmp_path) == 0
    with bad_input("the bound of gaussian_diffusion is of 8-bit images only"):
        of_bound(tmp_path, config, num_images=4)(Point(seed=0))
