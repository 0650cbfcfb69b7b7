"""A run to evaluate."""

from pathlib import Path

import pytest

from tests.evaluation.inception_stand_in import write_stand_in
from tests.evaluation.made_run import make_run
from tests.tiny import tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with a checkpoint of `tiny_config`, and Inception's stand-in beside it."""
    workdir = tmp_path_factory.mktemp("run")
    make_run(tiny_config(), workdir)
    write_stand_in(workdir)
    return workdir
