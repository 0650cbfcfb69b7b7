"""The prior bank and its bound against direct computations in pixel space."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model_code.blur import DCTBlur, blur_schedule
from model_code.elbo import prior_kl_bound
from model_code.prior import PriorBank

BLUR = DCTBlur(blur_schedule(4, 0.5, 6.0), 10, 12)


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(seed).random((count, 2, 10, 12)).astype(np.float32)
    )


def test_bank_gives_back_the_blurred_images() -> None:
    u = images(7)
    bank, chosen = PriorBank.from_images(u, BLUR), torch.tensor([5, 0, 5])
    blurred = BLUR(u[chosen], torch.full((3,), 4))
    torch.testing.assert_close(bank.means(chosen), blurred, atol=2e-6, rtol=0)
    assert len(bank) == 7


def test_bank_is_small() -> None:
    """8 of 784 coefficients for MNIST at sigma_B 20, 6 of 1024 per channel for CIFAR-10 at 24."""
    for size, sigma_max, expected in ((28, 20.0, 8), (32, 24.0, 6)):
        blur = DCTBlur(blur_schedule(3, 0.5, sigma_max), size, size)
        bank = PriorBank.from_images(torch.rand(3, 1, size, size), blur)
        assert bank.coefficients.shape == (3, 1, expected)


def test_bank_of_batches_is_the_bank_of_all() -> None:
    """Also from its state dict."""
    u, every = images(7), torch.arange(7)
    whole, parts = PriorBank.from_images(u, BLUR), PriorBank.from_batches(u.split(3), BLUR)
    again = PriorBank(**parts.state_dict())
    torch.testing.assert_close(again.means(every), whole.means(every))


def test_dequantised_bank_is_the_one_made_from_dequantised_data() -> None:
    pixels = (255 * images(6)).round()
    made = PriorBank.from_images((pixels + 0.5) / 256, BLUR)
    bank = PriorBank.from_images(pixels / 255, BLUR).dequantized()
    torch.testing.assert_close(bank.coefficients, made.coefficients)


def test_bank_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        PriorBank.from_batches([], BLUR)


def naive_bound(test: torch.Tensor, train: torch.Tensor, sigma: float, delta: float) -> np.ndarray:
    """log M - logsumexp_i(-KL_i) with KL_i between two full Gaussians in pixel space, float64."""
    x, y = (BLUR(u, torch.full((len(u),), 4)).double().flatten(1).numpy() for u in (test, train))
    N, distances = x.shape[1], ((x[:, None] - y) ** 2).sum(2)
    constant = sigma**2 / delta**2 * N - N + 2 * N * np.log(delta / sigma)
    KL = 0.5 * (constant + distances / delta**2)
    return np.log(len(y)) - np.logaddexp.reduce(-KL, axis=1)


@given(st.floats(0.01, 1), st.floats(0.5, 3), st.integers(1, 30), st.integers(0, 1000))
def test_bound_against_pixel_space(sigma: float, ratio: float, num_train: int, seed: int) -> None:
    train, test = images(num_train, seed), images(3, seed + 1)
    bank = PriorBank.from_images(train, BLUR)
    bound = prior_kl_bound(bank.project(test), bank, sigma, ratio * sigma)
    np.testing.assert_allclose(
        bound, naive_bound(test, train, sigma, ratio * sigma), rtol=1e-4, atol=1e-3
    )


def test_bound_over_several_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming over the bank and the test set changes nothing, also where the largest term comes
    last.
    """
    train, test = images(50), images(9, seed=1)
    bank = PriorBank.from_images(train, BLUR)
    whole = prior_kl_bound(bank.project(test), bank, 0.01, 0.0125)
    monkeypatch.setattr("model_code.elbo.BANK_CHUNK", 7)
    torch.testing.assert_close(
        prior_kl_bound(bank.project(test), bank, 0.01, 0.0125), whole, rtol=1e-6, atol=1e-6
    )


def test_a_training_image_is_at_most_log_m_away() -> None:
    """With delta = sigma the nearest component is the image's own: KL 0, so the bound is at most
    log M.
    """
    train = images(20)
    bank = PriorBank.from_images(train, BLUR)
    bound = prior_kl_bound(bank.project(train), bank, 0.01, 0.01)
    assert (bound <= math.log(20) + 1e-5).all()
