"""The original implementation's numbers come out of this one."""

import importlib
import zlib

import numpy as np
import pytest
import torch

from model_code import build_model
from model_code.kernels import isotropic
from scripts.sampling.reverse import reverse_process
from scripts.training.step import process_loss
from tests.golden import DATA, PARAM_COUNTS, Golden


def test_schedule(golden: Golden) -> None:
    np.testing.assert_allclose(golden.blur.schedule, golden["schedule"], rtol=1e-12)


def test_blur(golden: Golden) -> None:
    u0 = golden["u0"]
    for level, expected in zip(golden["blur_levels"], golden["blurred"], strict=True):
        blurred = golden.blur(u0, level.expand(len(u0)))
        assert blurred.dtype == torch.float32
        torch.testing.assert_close(blurred.double(), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_unet(golden: Golden) -> None:
    output, expected = golden.model(golden["u0"], golden["k"]), golden["unet_out"]
    assert (output - expected).norm() < 1e-4 * expected.norm()


@torch.no_grad()
@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_both_protocols(golden: Golden, protocol: str) -> None:
    """They differ in levels, prior noise and defaults, not in the loss at a level nor in the
    prior's term.
    """
    settings = golden.settings
    process = golden.process(protocol)
    loss = process_loss(process, golden.model, golden["u0"], golden["k"], golden["eps"])
    torch.testing.assert_close(loss, golden["loss_per_example"], rtol=1e-4, atol=0)
    bank = process.build_prior([golden["prior_train"]])
    noise = isotropic(process, settings["delta"])
    term = process.prior_term(process.prior_summary(golden["prior_test"], bank), bank, noise)
    torch.testing.assert_close(term, golden["L_K_upbound"].double(), rtol=3e-4, atol=0)


def test_sampling_trajectory(golden: Golden) -> None:
    """The last mean after K steps, with the noise of each step given; that of the last step does
    not reach it.
    """
    noise = golden["sampler_noise"].clone()
    noise[0] = torch.nan
    asked: list[int] = []

    def recorded_noise(k: int) -> torch.Tensor:
        asked.append(k)
        return noise[k - 1]

    K = golden.settings["K"]
    process = golden.process()
    kernel = isotropic(process, golden.settings["delta"])
    sample = reverse_process(process, golden.model, golden["init"], kernel, recorded_noise)
    expected = golden["sample"]
    assert (sample - expected).norm() < 1e-3 * expected.norm()
    assert asked == list(range(K, 0, -1))


@pytest.mark.parametrize("name", sorted(PARAM_COUNTS))
def test_parameters_of_every_config(name: str) -> None:
    """Count, names, shapes and order are the original's, so that its weights (a list in this order)
    load.
    """
    with torch.device("meta"):
        weights = list(build_model(importlib.import_module(name).get_config()).named_parameters())
    lines = [f"{parameter} {tuple(weight.shape)}" for parameter, weight in weights]
    if name == "configs.mnist.small_mnist":
        assert (
            lines == (DATA / "small_mnist_params.txt").read_text().splitlines()
        )  # a readable difference
    found = {
        "n_params": sum(weight.numel() for _, weight in weights),
        "crc": zlib.crc32("\n".join(lines).encode()),
        "n_tensors": len(lines),
    }
    assert found == PARAM_COUNTS[name]
