"""Samples are functions of (seed, index), and the four kinds share what they say they share."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_code import build_model, build_process
from scripts.data.images import ArrayImages
from scripts.data.loader import clean_batches
from scripts.errors import UserError
from scripts.runtime.device import Precision
from scripts.sampling.output import frame_levels, interpolation_set, sample_set
from scripts.sampling.reverse import BLOCK, IndependentNoise, SphericalNoise, linear_path, reverse_process
from scripts.sampling.sampler import DataPrior, Sampler, make_sampler, parse_delta
from tests.conftest import tiny_config
from tests.golden import fill_golden

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)
SOURCE = ArrayImages(PIXELS[:, 0], 8, 1)
CPU = torch.device("cpu")
FLOAT32 = Precision.named(CPU, "float32")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    config = tiny_config()
    model = build_model(config).eval()
    fill_golden(model)
    process = build_process(config)
    prior = process.build_prior([torch.from_numpy(PIXELS) / 255])
    return make_sampler(config, model, process, prior, FLOAT32, None, delta=0.05, seed=1)


def test_reverse_process_with_an_exact_model() -> None:
    """A model that removes what it is told to: the result is a sum that can be written down."""
    u_K, K, delta = torch.full((2, 1, 4, 4), 10.0), 3, 0.5
    seen: list[tuple[int, float]] = []
    result = reverse_process(
        lambda u, k: -k.float()[:, None, None, None].expand_as(u),
        u_K,
        K,
        delta,
        lambda k: torch.full_like(u_K, float(k)),
        lambda k, u: seen.append((k, u[0, 0, 0, 0].item())),
    )
    # 10 - 3 + 0.5 * 3 = 8.5; 8.5 - 2 + 0.5 * 2 = 7.5; 7.5 - 1 = 6.5, without the noise of k = 1
    assert seen == [(2, 8.5), (1, 7.5), (0, 6.5)]
    assert torch.equal(result, torch.full_like(u_K, 6.5))


def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    together = sampler.independent(range(6))
    for index in (0, 3, 5):
        torch.testing.assert_close(sampler.independent([index])[0], together[index], atol=1e-4, rtol=0)
    torch.testing.assert_close(sampler.independent([5, 2]), together[[5, 2]], atol=1e-4, rtol=0)
    assert not torch.allclose(replace(sampler, seed=2).independent([0]), together[:1], atol=0.01)


def states(sampler: Sampler, kind: str, count: int) -> dict[int, torch.Tensor]:
    seen: dict[int, torch.Tensor] = {}
    getattr(sampler, kind)(range(count), lambda k, u: seen.update({k: u.clone()}))
    assert sorted(seen) == list(range(sampler.K + 1))
    return seen


def test_same_init(sampler: Sampler) -> None:
    """One initial state, noise included; then each sample its own noise. The first is an ordinary sample."""
    seen = states(sampler, "same_init", 3)
    assert torch.equal(seen[3][0], seen[3][2])
    assert not torch.allclose(seen[2][0], seen[2][2], atol=1e-3)
    torch.testing.assert_close(seen[0][:1], sampler.independent([0]), atol=1e-4, rtol=0)


def test_share_noise(sampler: Sampler) -> None:
    """Different prior means; without the model's doing, all states of the process differ by just that."""
    still = replace(sampler, model=lambda u, k: torch.zeros_like(u))
    seen = states(still, "share_noise", 3)
    assert not torch.allclose(seen[3][0], seen[3][1], atol=1e-3)
    for k in (2, 1, 0):
        torch.testing.assert_close(seen[k][0] - seen[k][1], seen[3][0] - seen[3][1], atol=1e-5, rtol=0)


def test_interpolation_ends_at_ordinary_samples(sampler: Sampler) -> None:
    points = sampler.interpolate((2, 3), 7)
    torch.testing.assert_close(points[[0, -1]], sampler.independent([2, 3]), atol=1e-4, rtol=0)
    noise = SphericalNoise(0, (0, 1), (1, 100, 100), 5, CPU)(1)
    np.testing.assert_allclose(noise.std((1, 2, 3)), 1, atol=0.03)  # standard normal everywhere
    np.testing.assert_allclose(linear_path(torch.tensor([[[[0.0]]], [[[1.0]]]]), 3).flatten(), [0, 0.5, 1])


def test_noise_of_a_sample_is_a_function_of_seed_index_and_level() -> None:
    """Whatever the batch, the order of levels and the blocks in which it is drawn; no two of them alike."""
    together, alone = IndependentNoise(3, [4, 9], (1, 5, 5), CPU), IndependentNoise(3, [9], (1, 5, 5), CPU)
    levels = (2 * BLOCK, BLOCK, BLOCK - 1, 1)
    down = [together(k)[1] for k in levels]
    up = [alone(k)[0] for k in reversed(levels)]
    assert all(torch.equal(one, other) for one, other in zip(down, reversed(up), strict=True))
    assert len({noise.sum().item() for noise in down}) == len(levels)


def test_noise_on_prior_states(sampler: Sampler) -> None:
    """The sampling noise's, also in scores of the released protocol; none in its pictures."""
    blurred = sampler.prior.means(torch.arange(30))

    def distance_of_initial_states(protocol: str, scoring: bool) -> float:
        seen: list[torch.Tensor] = []
        config = tiny_config(model__protocol=protocol)
        process = build_process(config)
        other = make_sampler(config, sampler.model, process, sampler.prior, FLOAT32, None, delta=0.05, scoring=scoring)
        other.independent(range(20), lambda k, u: seen.append(u.clone()))
        differences = seen[0].flatten(1)[:, None] - blurred.flatten(1)
        return float(differences.norm(dim=2).amin(1).mean())

    assert distance_of_initial_states("released", scoring=False) < 1e-5
    for protocol, scoring in (("paper", False), ("paper", True), ("released", True)):
        assert distance_of_initial_states(protocol, scoring) == pytest.approx(0.05 * 8, rel=0.1)  # of 64 pixels


@pytest.mark.parametrize(("dequantized", "mirrored"), [(False, False), (True, False), (False, True)])
def test_stored_prior_and_data_give_the_same_states(dequantized: bool, mirrored: bool) -> None:
    process = build_process(tiny_config())
    stored = process.build_prior(batch.images for batch in clean_batches(SOURCE, 4, 0, dequantized, mirrored))
    data, chosen = DataPrior(SOURCE, process, dequantized, mirrored), torch.tensor([6, 7, 29, 6])
    assert len(stored) == len(data) == (60 if mirrored else 30)
    torch.testing.assert_close(stored.means(chosen), data.means(chosen), atol=2e-6, rtol=0)
    is_mirror_image = torch.allclose(data.means(chosen)[1], data.means(chosen)[0].flip(-1), atol=2e-6)
    assert is_mirror_image == mirrored


def test_frame_levels() -> None:
    assert frame_levels(7, 3) == [7, 4, 1, 0]
    assert frame_levels(4, 1) == [4, 3, 2, 1, 0]
    assert frame_levels(4, 100) == [4, 0]


def test_files_of_a_sample_set(sampler: Sampler, tmp_path: Path) -> None:
    sample_set(tmp_path, sampler, range(5), every=2)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"final.npy", "final.png", "init.png", "process.gif", "process.mp4", "samples.npy"}
    kept, final = np.load(tmp_path / "samples.npy"), np.load(tmp_path / "final.npy")
    assert kept.shape == (3, 5, 1, 8, 8)
    np.testing.assert_array_equal(kept[-1], final)
    np.testing.assert_allclose(final, sampler.independent(range(5)), atol=1e-5)
    with Image.open(tmp_path / "process.gif") as gif:
        assert getattr(gif, "n_frames", 1) == 3
    assert b"avc1" in (tmp_path / "process.mp4").read_bytes(), "H.264"


def test_an_interrupted_set_leaves_nothing_half_written(sampler: Sampler, tmp_path: Path) -> None:
    def stop(k: int, u: torch.Tensor) -> None:
        if k == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample_set(tmp_path, sampler, range(2), on_step=stop)
    assert list(tmp_path.iterdir()) == []


def test_files_of_an_interpolation(sampler: Sampler, tmp_path: Path) -> None:
    interpolation_set(tmp_path, sampler, (0, 1), 4)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"init_input.png", "base_sample.png", "interpolation.png", "process.mp4"}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Sampling must not disturb torch's global generator: training relies on it for dropout."""
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


def test_delta_is_the_configurations_unless_given() -> None:
    config = tiny_config(model__sigma=0.02)
    assert parse_delta(None, config) == 0.025
    assert parse_delta("0", config) == 0.0
    assert parse_delta("spectral", config) == "spectral"
    assert parse_delta(None, tiny_config(model__protocol="released")) == 0.01
    assert parse_delta(None, tiny_config(model__sampling_noise="spectral")) == "spectral"
    assert parse_delta("posterior", tiny_config(model__sampling_noise="posterior")) == "posterior"
    for wrong in ("-1", "nan", "isotropic"):
        with pytest.raises(UserError, match=f"--delta={wrong}: must be a number of at least 0, or spectral"):
            parse_delta(wrong, config)


def test_spectral_noise_through_all_kinds(sampler: Sampler) -> None:
    """A spectrum changes the samples, and neither their independence of the batch nor the ends of an interpolation."""
    measured = sampler.process.measured_noise(torch.rand(sampler.K + 1, 11, generator=torch.Generator().manual_seed(0)))
    assert measured is not None
    config = tiny_config()
    spectral = make_sampler(
        config, sampler.model, sampler.process, sampler.prior, FLOAT32, dict(measured), delta="spectral", seed=1
    )
    together = spectral.independent(range(4))
    assert not torch.allclose(together, sampler.independent(range(4)), atol=1e-2)
    torch.testing.assert_close(spectral.independent([2])[0], together[2], atol=1e-4, rtol=0)
    torch.testing.assert_close(spectral.interpolate((2, 3), 5)[[0, -1]], together[[2, 3]], atol=1e-4, rtol=0)
    assert spectral.noise.label == "spectral"
    assert spectral.prior_std == config.model.sigma
    with pytest.raises(UserError, match=r"measure_noise"):
        make_sampler(config, sampler.model, sampler.process, sampler.prior, FLOAT32, None, delta="spectral")
