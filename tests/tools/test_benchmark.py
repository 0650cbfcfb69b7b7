"""The benchmark measures what it says, and compares with a network as large as ours."""

import importlib.util

import pytest
import torch
from ml_collections import ConfigDict

from configs.mnist import small_mnist
from scripts.config.resolve import resolve
from scripts.errors import UserError
from scripts.tools import benchmark
from scripts.training.plan import Work
from tests.conftest import command
from tests.tiny import TINY, tiny_config

HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None


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


@pytest.mark.skipif(HAS_DIFFUSERS, reason="diffusers is installed")
def test_without_the_package() -> None:
    with pytest.raises(UserError, match=r"--against=diffusers: .*; pip install diffusers"):
        benchmark.diffusers_unet(tiny_config())


def test_a_network_that_diffusers_does_not_have() -> None:
    config: ConfigDict = tiny_config(model__channel_mult=(1, 2), model__attention_levels=(0, 1))
    with pytest.raises(UserError, match=r"here have \[32, 64\] channels"):
        benchmark.diffusers_unet(config)


@pytest.mark.skipif(not HAS_DIFFUSERS, reason="needs diffusers")
def test_the_same_size() -> None:
    config = small_mnist.get_config()
    model = benchmark.diffusers_unet(config)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(
        Work.of(resolve(config)).parameters, rel=0.001
    )
    with torch.no_grad():
        F = model(torch.zeros(1, 1, 28, 28), torch.ones(1, dtype=torch.long)).sample
    assert F.shape == (1, 1, 28, 28)
