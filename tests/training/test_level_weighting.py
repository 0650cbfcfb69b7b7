"""Weighting of levels, and images that are not rounded before the network has seen them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from model_code.blur import blur_schedule
from model_code.nn import InputConv
from scripts.losses import deblurring_loss
from scripts.randomness import Purpose, normal_batch
from scripts.training.step import Trainer, draw_levels, level_weights
from tests.conftest import tiny_config

CPU = torch.device("cpu")


def test_without_weighting_all_levels_count_once() -> None:
    assert level_weights(tiny_config(model__K=5)).tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(("protocol", "last"), [("paper", 5), ("released", 4)])
def test_weights_are_powers_of_the_blur_of_mean_1_over_what_is_trained(protocol: str, last: int) -> None:
    weights = level_weights(tiny_config(model__K=5, model__protocol=protocol, training__level_weighting=2.0)).double()
    sigma_B = blur_schedule(5, 0.5, 4.0)
    np.testing.assert_allclose(weights[1:] / weights[1], (sigma_B[1:] / 0.5) ** 2, rtol=1e-5)
    assert weights[1 : last + 1].mean() == pytest.approx(1)


def test_the_gradient_is_that_of_the_weighted_loss_and_the_loss_is_reported_without() -> None:
    config = tiny_config(training__level_weighting=1.5, optim__grad_clip=0.0)
    u0 = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    k = draw_levels(config.seed, 0, 4, config.model.K, "paper")
    eps = normal_batch(config.seed, Purpose.TRAIN_NOISE, 0, range(4), (1, 8, 8))
    config.model.dropout = 0.0
    trainer = Trainer(config, CPU)
    captured: list[torch.Tensor | None] = []
    losses = deblurring_loss(trainer.model.train(), trainer.blur, u0, k, eps, config.model.sigma)
    weights = config.model.blur_sigma_min * (4.0 / 0.5) ** (torch.arange(3) / 2)  # K = 3, evenly in log
    weights = weights**1.5 / (weights**1.5).mean()
    expected = torch.autograd.grad((weights[k - 1] * losses).mean(), list(trainer.model.parameters()), allow_unused=True)
    trainer.optimizer.register_step_pre_hook(lambda *_: captured.extend(w.grad for w in trainer.model.parameters()))
    result = trainer.train_step(u0)
    torch.testing.assert_close(result.losses, losses.detach())
    for one, other in zip(captured, expected, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_images_are_not_rounded_under_autocast() -> None:
    """A change far below bfloat16's resolution at 1 comes through, where an ordinary convolution would not see it."""
    conv = InputConv(1, 32)
    with torch.no_grad():
        conv.weight.fill_(1.0)
        assert conv.bias is not None
        conv.bias.fill_(-9.0)
        u = torch.ones(1, 1, 3, 3)
        with torch.autocast("cpu", torch.bfloat16):
            out = conv(u + 1e-3)[0, :, 1, 1]
            rounded = F.conv2d(u + 1e-3, conv.weight, conv.bias, padding=1)[0, :, 1, 1]
    assert out.dtype == torch.bfloat16, "the layers after it work in 16 bits"
    torch.testing.assert_close(out.float(), torch.full((32,), 9e-3), rtol=0.01, atol=0)
    assert (rounded.float() - 9e-3).abs().min() > 5e-3
