"""The process is a seam: one that the program has never heard of trains, is sampled from and evaluated."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

import model_code
from model_code.blurring_diffusion import BlurringDiffusion
from model_code.kernels import Chain, ReverseKernel, arrivals
from model_code.prior import Prior, StandardNormal
from model_code.process import Denoiser, Likelihood, Measured, Process, full_chain
from scripts.config.paths import ROOT
from scripts.errors import UserError
from scripts.evaluation.bound import BoundEvaluation
from scripts.sampling.choice import Choice
from scripts.sampling.sampler import load_sampler
from scripts.training.loop import train
from tests.tiny import tiny_config
from tests.training.runs import array_config

NAME = "additive_noise"


class PosteriorSteps(ReverseKernel):
    """q(u_j | u_k, u_0) with the predicted image in place of u_0."""

    label, prior_std = "posterior", 1.0

    def __init__(self, process: "AdditiveNoise", chain: Chain) -> None:
        self.variance, self.chain, self.after = process.variance, chain, arrivals(chain, process.K)

    def mean(self, u_k: torch.Tensor, prediction: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.lerp(prediction, u_k, self.variance(self.after[k]) / self.variance(k))

    def step(self, mean: torch.Tensor, k: int, eps: torch.Tensor) -> torch.Tensor:
        before, after = (self.variance(level) for level in (self.after[[k]], torch.tensor([k])))
        return mean + (before * (after - before) / after).sqrt() * eps


class AdditiveNoise(Process, Likelihood):
    """u_k = u_0 + s_k eps with s_k = k / K, and no blur: the network predicts u_0, and steps are by the posterior."""

    def __init__(self, config: ConfigDict) -> None:
        super().__init__()
        self.K, self.chain = config.model.K, full_chain(config.model.K)
        self.shape = (config.data.num_channels, config.data.image_size, config.data.image_size)

    def variance(self, k: torch.Tensor) -> torch.Tensor:
        return (k[:, None, None, None] / self.K) ** 2

    def corrupt(self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return u0 + self.variance(k).sqrt() * eps, u0

    def predict(self, model: Denoiser, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return model(u_k, k).float()

    def build_prior(self, batches: Iterable[torch.Tensor]) -> Prior:
        return StandardNormal(self.shape)

    def prior_from_state(self, state: Mapping[str, torch.Tensor]) -> Prior:
        return StandardNormal(self.shape)

    def sampling_noise(
        self, kind: float | str, measured: Measured, chain: Chain | None = None, eta: float | None = None
    ) -> ReverseKernel:
        return PosteriorSteps(self, chain or self.chain)

    def errors(
        self, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor, kernel: ReverseKernel
    ) -> torch.Tensor:
        u_k, target = self.corrupt(u0, k, eps)
        return (self.predict(model, u_k, k) - target).double().square().sum((1, 2, 3))[:, None]

    def terms(self, errors: torch.Tensor, k: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        return errors[:, 0] / 2 * (1 / self.variance(k - 1) - 1 / self.variance(k)).flatten()

    def reconstruction(self, errors: torch.Tensor, kernel: ReverseKernel) -> torch.Tensor:
        return errors[:, 0] / 2 * self.K**2 + math.prod(self.shape) * math.log(math.sqrt(2 * math.pi) / self.K)

    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        return u0.double().square().sum((1, 2, 3)) / 2

    def prior_term(self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel) -> torch.Tensor:
        return summary


@pytest.mark.parametrize("name", [NAME, "blurring_diffusion"])
def test_another_process_trains_is_sampled_and_evaluated(
    name: str, tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training with pictures, a restart, the four kinds of samples and the bound, for a process of this file and a real one."""
    monkeypatch.setitem(model_code.PROCESSES, NAME, AdditiveNoise)
    config = array_config(
        tiny_array,
        model__process=name,
        model__sampling_noise="posterior",
        data__uniform_dequantization=name == NAME,
        training__sampling_freq=3,
    )
    assert train(config, tmp_path) == 0
    assert any((tmp_path / "samples").rglob("*.png"))
    config.training.n_iters += 2
    assert train(config, tmp_path) == 0

    sampler, _ = load_sampler(config, tmp_path, 0)
    samples = sampler.independent([0, 1])
    assert samples.shape == (2, 1, 8, 8)
    assert samples.isfinite().all()
    torch.testing.assert_close(sampler.interpolate((0, 1), 3)[[0, 2]], samples, atol=1e-4, rtol=1e-4)
    for kind in (sampler.same_init, sampler.share_noise):
        torch.testing.assert_close(kind([0, 1])[0], samples[0], atol=1e-4, rtol=1e-4)

    evaluation = BoundEvaluation(
        config, tmp_path, tmp_path, split="test", num_images=4, num_levels_per_image=2, exact=True, batch_size=8
    )
    nats, bits = evaluation(checkpoint=0, choice=Choice(), seed=0)
    assert nats.per_image is not None
    assert np.isfinite(nats.per_image).all()
    if name != NAME:
        with pytest.raises(UserError, match=r"--eta=0: there is a bound for ancestral sampling only"):
            evaluation(checkpoint=0, choice=Choice(eta=0.0), seed=0)
    offset = 8 if name == NAME else 0  # densities and probabilities of 8-bit images
    assert bits.estimate.value == pytest.approx(nats.estimate.value / (64 * math.log(2)) + offset)


def test_example_of_the_documentation_works() -> None:
    """The five lines of docs/your_own_process.md are a process: given the true noise, its last mean is the image."""
    text = (ROOT / "docs" / "your_own_process.md").read_text()
    # The base in the example predicts v; with this one the network predicts eps.
    names: dict[str, Any] = {"torch": torch, "VelocityBlurringDiffusion": BlurringDiffusion}
    exec(text.split("```python\n")[1].split("```")[0], names)
    config = tiny_config(model__sampling_noise="posterior")
    process, heat = names["PoissonBlur"].from_config(config), BlurringDiffusion.from_config(config)
    u0, eps, k = torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([1, 3])
    z, _ = process.corrupt(u0, k, eps)
    kernel = process.sampling_noise("posterior", None)
    mean = process.to_images(kernel.mean(z, eps, k))
    torch.testing.assert_close(mean[0], u0[0], atol=1e-4, rtol=0)
    assert (process.scaling(k)[:, 0, -1, -1] > heat.scaling(k)[:, 0, -1, -1]).all()
