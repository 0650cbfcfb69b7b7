"""The command that measures reverse kernels, where there are none."""

from pathlib import Path

from tests.conftest import command, error_line
from tests.evaluation.made_run import make_run
from tests.tiny import TINY, tiny_config


def test_blurring_diffusion(tmp_path: Path) -> None:
    """One line that names the key, before anything is measured; nothing is written."""
    make_run(tiny_config(model__process="blurring_diffusion"), tmp_path)
    before = sorted(tmp_path.rglob("*"))
    options = ("--config", TINY, "--config.model.process=blurring_diffusion", "--workdir", tmp_path)
    line = error_line(command("-m", "scripts.tools.calibrate", *options))
    assert line == "error: config.model.process = 'blurring_diffusion': it has no kernels to measure"
    assert sorted(tmp_path.rglob("*")) == before
