"""Samples are functions of (seed, index), and the four kinds share what they say they share."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model_code import build_blur, build_model
from model_code.prior import PriorBank
from scripts.device import Precision
from scripts.sampling.reverse import DataPrior, SphericalNoise, linear_path, reverse_process
from scripts.sampling.sampler import Sampler, frame_levels, interpolation_set, sample_set
from tests.conftest import tiny_config
from tests.golden import fill_golden


class ArraySource:
    """The smallest image source."""

    shape = (1, 8, 8)

    def __init__(self, images: np.ndarray) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> np.ndarray:
        return self.images[i]

    def name(self, i: int) -> str:
        return f"image {i}"


PIXELS = np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    config = tiny_config()
    model = build_model(config).eval()
    fill_golden(model)
    bank = PriorBank.from_images(torch.from_numpy(PIXELS) / 255, build_blur(config))
    precision = Precision.named(torch.device("cpu"), "float32")
    return Sampler(model, bank, 3, 0.05, 0.05, seed=1, precision=precision, shape=(1, 8, 8))


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


def test_another_seed_is_another_sample(sampler: Sampler) -> None:
    assert not torch.allclose(sampler.independent([0]), replace(sampler, seed=2).independent([0]), atol=0.01)


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


def test_spherical_noise_is_standard_normal_everywhere() -> None:
    noise = SphericalNoise(0, (0, 1), (1, 100, 100), 5)(1)
    np.testing.assert_allclose(noise.std((1, 2, 3)), 1, atol=0.03)
    np.testing.assert_allclose(linear_path(torch.tensor([[[[0.0]]], [[[1.0]]]]), 3).flatten(), [0, 0.5, 1])


def test_no_prior_noise_in_the_released_protocol(sampler: Sampler) -> None:
    seen: list[torch.Tensor] = []
    silent = replace(sampler, prior_delta=0.0)
    silent.independent(range(2), lambda k, u: seen.append(u.clone()))
    blurred = sampler.prior.blurred(torch.arange(30))
    nearest = torch.cdist(seen[0].flatten(1), blurred.flatten(1)).amin(1)
    assert nearest.max() < 1e-5, "each is a blurred training image, up to the rounding of a product of another batch size"


@pytest.mark.parametrize("dequantized", [False, True])
def test_bank_and_data_give_the_same_prior_states(dequantized: bool) -> None:
    blur = build_blur(tiny_config())
    images = (torch.from_numpy(PIXELS) + 0.5) / 256 if dequantized else torch.from_numpy(PIXELS) / 255
    bank, data = PriorBank.from_images(images, blur), DataPrior(ArraySource(PIXELS), blur, dequantized)
    assert len(bank) == len(data)
    chosen = torch.tensor([3, 29, 3])
    torch.testing.assert_close(bank.blurred(chosen), data.blurred(chosen), atol=2e-6, rtol=0)


def test_frame_levels() -> None:
    assert frame_levels(7, 3) == [7, 4, 1, 0]
    assert frame_levels(4, 1) == [4, 3, 2, 1, 0]
    assert frame_levels(4, 100) == [4, 0]


def test_files_of_a_sample_set(sampler: Sampler, tmp_path: Path) -> None:
    sample_set(tmp_path, sampler, range(5), every=2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "final.npy",
        "final.png",
        "init.png",
        "process.gif",
        "process.mp4",
        "samples.npy",
    }
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


def test_delta_and_seed_are_the_configs_unless_given(sampler: Sampler) -> None:
    config = tiny_config(model__sigma=0.02, seed=7)

    def made(delta: float | None, seed: int | None) -> Sampler:
        return Sampler.from_config(config, sampler.model, sampler.prior, torch.device("cpu"), delta, seed)

    assert (made(None, None).delta, made(None, None).prior_delta, made(None, None).seed) == (0.025, 0.025, 7)
    assert (made(0.0, 0).delta, made(0.0, 0).seed) == (0.0, 0)
    config.model.protocol = "released"
    assert (made(None, None).delta, made(None, None).prior_delta) == (0.025, 0.0)
