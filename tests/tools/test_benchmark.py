"""The benchmark measures what it says."""

import torch

from tests.conftest import command
from tests.tiny import TINY


def test_rows() -> None:
    """One for each part of a step and of sampling."""
    lines = command(
        "-m", "scripts.tools.benchmark", "--config", TINY, "--seconds=0"
    ).stdout.splitlines()
    assert "float32" in lines[1]
    assert torch.__version__ in lines[1]
    assert [line.split(",")[0].split("  ")[0] for line in lines[3:]] == [
        "matrix product 2048x2048",
        "training step",
        "U-Net forward",
        "sampling",
    ]
    assert lines[3].endswith("100%")
