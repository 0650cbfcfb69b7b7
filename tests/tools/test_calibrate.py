"""The command that measures reverse kernels of a checkpoint without them."""

from pathlib import Path

import pytest

from scripts.evaluation.bound import BoundEvaluation
from scripts.evaluation.results import Point
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import load_sampler
from tests.conftest import bad_input, command
from tests.evaluation.made_run import make_run
from tests.tiny import TINY, tiny_config


def test_blurring_diffusion(tmp_path: Path) -> None:
    """Its training measures none; afterwards they are used where they are asked for."""
    config = tiny_config(model__process="blurring_diffusion")
    make_run(config, tmp_path)
    options = ("--config", TINY, "--config.model.process=blurring_diffusion", "--workdir", tmp_path)
    with bad_input(r"--delta=calibrated: nothing was measured"):
        load_sampler(tmp_path, config=config, choice=Choice("calibrated"))
    result = command("-m", "scripts.tools.calibrate", *options)
    assert result.returncode == 0, result.stderr
    for delta, label in (("calibrated", "calibrated"), (None, "posterior")):
        sampler, _ = load_sampler(tmp_path, config=config, choice=Choice(delta))
        assert sampler.kernel.label == label
        assert sampler.independent([0]).isfinite().all()
    bounds: dict[str, float] = {}
    for order in (("posterior", "spectral", "calibrated"), ("calibrated", "spectral", "posterior")):
        evaluate = BoundEvaluation(
            config,
            tmp_path,
            tmp_path / order[0],
            split="test",
            num_images=4,
            num_levels_per_image=2,
            exact=True,
            batch_size=8,
        )
        for delta in order:
            nats, _ = evaluate(Point(delta, seed=0))
            assert bounds.setdefault(delta, nats.estimate.value) == pytest.approx(
                nats.estimate.value
            )
    assert len(set(bounds.values())) == 3, "each kernel has a measurement of its own"
