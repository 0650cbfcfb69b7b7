"""The process is a seam: one that the program does not know trains, samples and is evaluated."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict

import model_code
from model_code import Preset
from model_code.prior import Prior, StoredStates
from model_code.process import Denoiser, Process, ReverseKernel
from scripts.config.paths import ROOT
from scripts.config.resolve import register_process, resolve
from scripts.evaluation.bound import BoundEvaluation
from scripts.evaluation.results import Point
from scripts.sampling.sampler import load_sampler
from scripts.storage.checkpoint import saved_config
from scripts.training.loop import train
from tests.conftest import bad_input
from tests.tiny import tiny_config
from tests.training.runs import array_config


class AdditiveNoise(Process):
    """u_k = u_0 + s_k eps, s_k = k / K: the network predicts u_0, steps are by the posterior."""

    discrete = False

    def __init__(self, config: ConfigDict) -> None:
        size = config.data.image_size
        super().__init__(config.model.K, (config.data.num_channels, size, size))

    def std(self, k: torch.Tensor) -> torch.Tensor:
        return k[:, None, None, None] / self.K

    def corrupt(
        self, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return u0 + self.std(k) * eps, u0

    def predict(self, F: torch.Tensor, u_k: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return F

    def step(
        self, F: torch.Tensor, u_k: torch.Tensor, k: int, j: int
    ) -> tuple[torch.Tensor, float]:
        share = (j / k) ** 2
        return torch.lerp(F, u_k, share), math.sqrt(share * (k**2 - j**2)) / self.K

    def build_prior(self, batches: object) -> Prior:
        return StoredStates(torch.zeros(1, *self.shape))

    def bound_levels(self, kernel: ReverseKernel) -> Sequence[int]:
        return sorted(kernel.chain[:-2])

    def errors(
        self,
        denoise: Denoiser,
        u0: torch.Tensor,
        k: torch.Tensor,
        eps: torch.Tensor,
        kernel: ReverseKernel,
    ) -> torch.Tensor:
        u_k, target = self.corrupt(u0, k, eps)
        return (denoise(u_k, k) - target).double().square().sum((1, 2, 3))[:, None]

    def terms(
        self, errors: torch.Tensor, k: torch.Tensor, kernel: ReverseKernel, *, last: bool = False
    ) -> torch.Tensor:
        if last:
            constant = math.log(math.sqrt(2 * math.pi) / self.K)
            return errors[:, 0] / 2 * self.K**2 + math.prod(self.shape) * constant
        return errors[:, 0] / 2 * (self.std(k - 1) ** -2 - self.std(k) ** -2).flatten()

    def prior_summary(self, u0: torch.Tensor, prior: Prior) -> torch.Tensor:
        return u0.double().square().sum((1, 2, 3)) / 2

    def prior_term(
        self, summary: torch.Tensor, prior: Prior, kernel: ReverseKernel
    ) -> torch.Tensor:
        return summary


def pixelate_file(tmp_path: Path) -> str:
    """The file of docs/your_own_process.md, and the class in it."""
    text = (ROOT / "docs" / "your_own_process.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 60
    (tmp_path / "pixelate.py").write_text(code)
    return f"{tmp_path / 'pixelate.py'}:Pixelate"


@pytest.mark.parametrize("name", ["additive_noise", "pixelate", "velocity_blurring_diffusion"])
def test_another_process_trains_is_sampled_and_evaluated(
    name: str, tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training with pictures, a restart, the four kinds of samples and the bound if it has one."""
    monkeypatch.setitem(model_code.PROCESSES, "additive_noise", Preset(AdditiveNoise))
    if name == "pixelate":
        name = pixelate_file(tmp_path)
        register_process(name)
    density = name == "additive_noise"
    config = array_config(
        tiny_array,
        model__process=name,
        data__uniform_dequantization=density,
        training__sampling_freq=3,
    )
    run = tmp_path / "run"
    assert train(config, run) == 0
    assert any((run / "samples").rglob("*.png"))
    config.training.n_iters += 2
    assert train(config, run) == 0

    sampler, _ = load_sampler(run, config=config)
    samples = sampler.independent([0, 1])
    assert samples.shape == (2, 1, 8, 8)
    assert samples.isfinite().all()
    scale = samples.abs().max().item()  # untrained processes have large states
    ends = sampler.interpolate((0, 1), 3)[[0, 2]]
    torch.testing.assert_close(ends, samples, atol=1e-5 * scale + 1e-5, rtol=0)
    with (
        bad_input("--share_noise: there is one initial mean")
        if len(sampler.prior) == 1
        else contextlib.nullcontext()
    ):
        sampler.share_noise([0, 1])
    first = sampler.same_init([0, 1])[0]
    torch.testing.assert_close(first, samples[0], atol=1e-5 * scale + 1e-5, rtol=0)

    bound = BoundEvaluation(
        config,
        run,
        tmp_path,
        split="test",
        num_images=4,
        num_levels_per_image=2,
        exact=True,
        batch_size=8,
    )
    if ":" in name:
        with bad_input("Pixelate has no bound"):
            bound(Point(seed=0))
        return
    nats, bits = bound(Point(seed=0))
    assert nats.per_image is not None
    assert np.isfinite(nats.per_image).all()
    if not density:
        with bad_input(r"--eta=0: the bound is infinite"):
            bound(Point(eta=0.0, seed=0))
    offset = 8 if density else 0  # densities and probabilities of 8-bit images
    nats_per_bit = 64 * math.log(2)
    assert bits.estimate.value == pytest.approx(nats.estimate.value / nats_per_bit + offset)


def test_pixelation_of_rectangles(tmp_path: Path) -> None:
    name = pixelate_file(tmp_path)
    register_process(name)
    config = tiny_config(model__process=name, model__K=2, data__image_size=(4, 16))
    process = resolve(config).process
    u0 = torch.rand(2, 1, 4, 16)
    means, _ = process.corrupt(u0, torch.tensor([1, 2]), torch.zeros(2, 1, 4, 16))
    torch.testing.assert_close(means[0, 0, :2, :4], u0[0, 0, :2, :4].mean().expand(2, 4))
    torch.testing.assert_close(means[1, 0], u0[1].mean().expand(4, 16))


def test_code_runs_only_where_the_command_line_names_it(
    tiny_array: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that names a file is not enough; what cannot be used is one line."""
    name = pixelate_file(tmp_path)
    register_process(name)
    config = array_config(tiny_array, model__process=name, data__uniform_dequantization=False)
    assert train(config, tmp_path / "run") == 0
    del model_code.PROCESSES[name]
    with bad_input(r"a file of code runs only where the command line names it"):
        load_sampler(tmp_path / "run", config=saved_config(tmp_path / "run", 0))
    for wrong, message in (
        ("missing.py:A", "no such file"),
        (name.replace("Pixelate", "Missing"), "has no class Missing"),
        (name.replace("Pixelate", "torch"), "has no class torch"),
    ):
        with bad_input(message):
            register_process(wrong)
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_this_name\n")
    with bad_input(r"ModuleNotFoundError: .* \(line 1\)"):
        register_process(f"{broken}:A")


def test_the_presets_are_named_in_the_documentation() -> None:
    text = (ROOT / "docs" / "your_own_process.md").read_text()
    for name in (name for name in model_code.PROCESSES if ":" not in name):
        assert f"`{name}`" in text, name
        model_code.build_process(tiny_config(model__process=name))
