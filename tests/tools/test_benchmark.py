"""The benchmark measures what it says, and compares with a network as large as ours."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image

from configs.mnist import small_mnist
from scripts.errors import UserError
from scripts.runtime import distributed
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
    assert "float32" in lines[0]
    assert torch.__version__ in lines[1]
    assert [line.split(",")[0].split("  ")[0] for line in lines[3:]] == [
        "matrix product 2048x2048", "training step", "noise of a step", "corruption of a step", "U-Net forward",
        "sampling", "noise of 16 levels",
    ]  # fmt: skip
    assert [line.split()[-2] for line in lines[3:5]] == ["-", "100.0%"], (
        "the share of a training step"
    )


def test_reading(tmp_path: Path) -> None:
    """Images of its own, packed and not; nothing of them is left."""
    tool = ("-m", "scripts.tools.benchmark", "--config=configs/mnist/small_mnist.py", "--seconds=0")
    lines = command(
        *tool, f"--reading={tmp_path}", "--num_images=30", "--size=50"
    ).stdout.splitlines()
    assert "30 PNG files of 50x50" in lines[0]
    assert lines[1].startswith("as 28x28x1, for steps of 128 in ")
    threads = [line.split()[-5:-4] for line in lines[3:6:2]]
    assert threads == [[str(distributed.cores())], ["1"]]
    speeds = [float(line.split()[-4]) for line in lines[3:6:2]]
    assert min(speeds) > 0
    assert not list(tmp_path.iterdir())


def test_photographs_fall_as_one_over_f(tmp_path: Path) -> None:
    """The slope of log amplitude against log frequency is -1, between clipping and rounding."""
    benchmark.make_photographs(tmp_path, 2, 128)
    pixels = np.stack([np.asarray(Image.open(path)) for path in sorted(tmp_path.iterdir())]).astype(
        float
    )
    assert not np.array_equal(pixels[0], pixels[1])
    power = (np.abs(np.fft.fft2(pixels, axes=(1, 2))) ** 2).mean((0, 3))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    chosen = (frequency > 0.02) & (frequency < 0.3)
    slope = np.polyfit(np.log(frequency[chosen]), np.log(power[chosen]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.1)


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
        Work.of(config).parameters, rel=0.001
    )
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 28, 28), torch.ones(1, dtype=torch.long)).sample.shape == (
            1,
            1,
            28,
            28,
        )
