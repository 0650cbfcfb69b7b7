"""The benchmark measures what it says, and compares with a network that is as large as ours."""

import importlib.util
import json
import subprocess
import sys

import pytest
import torch

from configs.mnist import small_mnist
from scripts.config import ROOT
from scripts.errors import UserError
from scripts.tools.rivals import diffusers_unet
from scripts.training.cost import num_parameters
from tests.conftest import tiny_config

HAS_DIFFUSERS = importlib.util.find_spec("diffusers") is not None
COMMAND = [sys.executable, "-m", "scripts.tools.benchmark", "--config=configs/mnist/quickstart.py",
           "--config.training.batch_size=2",
           "--config.model.K=3", "--config.device=cpu", "--config.optim.automatic_mp=False", "--repeats=1"]  # fmt: skip


def test_rows() -> None:
    done = subprocess.run([*COMMAND, "--json"], cwd=ROOT, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    assert [row["name"].split(",")[0].split(" 20")[0] for row in report["rows"]] == [
        "matrix product", "training step", "U-Net forward", "blur", "sampling",
    ]  # fmt: skip
    assert (report["batch_size"], report["compile"], report["precision"]) == (2, "none", "float32")
    for row in report["rows"]:
        assert row["gflops"] == pytest.approx(row["of_peak"] * report["rows"][0]["gflops"])
        assert row["first_s"] > 0


@pytest.mark.skipif(HAS_DIFFUSERS, reason="diffusers is installed")
def test_without_the_package() -> None:
    done = subprocess.run([*COMMAND, "--against=diffusers"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --against=diffusers: ")
    assert done.stderr.endswith("pip install diffusers\n")


def test_a_network_that_diffusers_does_not_have() -> None:
    config = tiny_config(model__channel_mult=(1, 2), model__attention_levels=(0, 1))
    with pytest.raises(UserError, match=r"attention_levels = \(0, 1\) asks for attention over \[32, 64\] channels"):
        diffusers_unet(config)


@pytest.mark.skipif(not HAS_DIFFUSERS, reason="needs diffusers")
def test_the_same_size() -> None:
    config = small_mnist.get_config()
    model = diffusers_unet(config)
    assert sum(weight.numel() for weight in model.parameters()) == pytest.approx(num_parameters(config), rel=0.001)
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 28, 28), torch.ones(1, dtype=torch.long)).sample.shape == (1, 1, 28, 28)
