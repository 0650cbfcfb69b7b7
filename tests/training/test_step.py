"""One training step: accumulated, in mixed precision, clipped, averaged and weighted as it should
be.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ml_collections import ConfigDict

from model_code import build_process
from model_code.blur import blur_schedule
from model_code.unet import InputConv
from scripts.runtime.randomness import Purpose, normal_batch, stream
from scripts.training.step import Trainer, learning_rate, process_loss
from tests.images import random_images
from tests.tiny import tiny_config
from tests.training.runs import CPU, differing, gradients_of, trainer_of

IMAGES = random_images(4, 1, 8, 8)


def trained(config: ConfigDict, steps: int) -> Trainer:
    trainer = trainer_of(config)
    for images in random_images(steps, 4, 1, 8, 8, seed=1):
        trainer.train_step(images)
    return trainer


def first_moment(trainer: Trainer) -> torch.Tensor:
    """Adam's, of all weights."""
    states = [trainer.optimizer.state[weight] for weight in trainer.model.parameters()]
    return torch.cat([state["exp_avg"].flatten() for state in states])


def test_accumulation_is_the_full_batch() -> None:
    """Same data, levels and noise; without dropout, whose masks are drawn per part, the same
    gradients to float error.
    """
    moments = [
        first_moment(trained(tiny_config(model__dropout=0.0, training__accumulation_steps=n), 3))
        for n in (1, 4)
    ]
    assert (moments[0] - moments[1]).norm() < 1e-5 * moments[0].norm()


def test_averages_follow_the_weights() -> None:
    trainer, start = trained(tiny_config(), 1), trainer_of(tiny_config())
    decay = min(0.999, 2 / 11)
    for name, weight in trainer.model.named_parameters():
        expected = decay * start.ema.shadow[name] + (1 - decay) * weight
        torch.testing.assert_close(trainer.ema.shadow[name], expected)


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_alike(amp_dtype: str) -> None:
    """Losses near those in float32, unlike with a forgotten scale or a target in 16 bits."""
    results = []
    for mixed in (False, True):
        trainer = trainer_of(tiny_config(optim__automatic_mp=mixed, optim__amp_dtype=amp_dtype))
        scaled = mixed and amp_dtype == "float16"
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=128.0, enabled=scaled)
        results.append([trainer.train_step(IMAGES).losses.mean().item() for _ in range(5)])
    np.testing.assert_allclose(results[1], results[0], rtol=0.05)


def test_the_loss_scale_is_resumed() -> None:
    config = tiny_config(optim__automatic_mp=True, optim__amp_dtype="float16")
    trainer = trained(config, 3)
    trainer.scaler.update(1024.0)
    again = trainer_of(config)
    again.load_state_dict(trainer.state_dict())
    assert again.scaler.get_scale() == 1024
    assert not differing(again.state_dict(), trainer.state_dict())


def test_gradient_clipping() -> None:
    """The reported norm is from before clipping, and Adam's first moment, (1 - beta1) g, does not
    exceed the limit.
    """
    free, clipped = (trainer_of(tiny_config(optim__grad_clip=limit)) for limit in (0.0, 1e-3))
    assert clipped.train_step(IMAGES).grad_norm == pytest.approx(free.train_step(IMAGES).grad_norm)
    assert first_moment(clipped).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_tiny_overfitting() -> None:
    """A few images learnt by heart: the loss falls to a fifth."""
    optim = {"optim__lr": 5e-3, "optim__warmup": 1, "training__batch_size": 8}
    trainer = trainer_of(tiny_config(model__dropout=0.0, **optim))
    row = torch.arange(8.0)
    stripes, diagonals = row.expand(8, 8), row + row[:, None]
    images = torch.stack([stripes, diagonals] * 4)[:, None] % 3 / 2
    losses = [trainer.train_step(images).losses.mean().item() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.2 * np.mean(losses[:3])


def test_learning_rate() -> None:
    """By step, up from the first and, with "cosine", down to 0; in the release from 0."""
    constant = {0: 0.1, 4: 0.5, 9: 1, 50: 1, 109: 1}
    cosine = {0: 0.1, 9: 1, 10: 1, 60: 0.5, 110: 0}
    released = {0: 0, 4: 0.4, 10: 1, 109: 1}
    for schedule, protocol, rates in (
        ("constant", "paper", constant),
        ("cosine", "paper", cosine),
        ("constant", "released", released),
    ):
        settings = {"warmup": 10, "n_iters": 110, "schedule": schedule, "protocol": protocol}
        found = {}
        for step in rates:
            found[step] = learning_rate(step, lr=1.0, **settings)  # type: ignore[arg-type]
        assert found == pytest.approx(rates, abs=1e-12)
    assert learning_rate(0, lr=2.0, warmup=0, schedule="constant", n_iters=5) == 2.0


@pytest.mark.parametrize(("protocol", "last"), [("paper", 5), ("released", 4)])
def test_training_levels(protocol: str, last: int) -> None:
    """Uniform; the paper trains level K, from which sampling starts; the release does not."""
    trainer = trainer_of(tiny_config(model__K=5, model__protocol=protocol))
    levels = torch.cat([trainer.train_step(IMAGES).levels for _ in range(60)])
    assert sorted(set(levels.tolist())) == list(range(1, last + 1))
    assert (torch.bincount(levels)[1:] / len(levels) - 1 / last).abs().max() < 0.12


@pytest.mark.parametrize(("protocol", "last"), [("paper", 5), ("released", 4)])
def test_level_weights_are_powers_of_the_blur_with_mean_1_over_what_is_trained(
    protocol: str, last: int
) -> None:
    process = build_process(tiny_config(model__K=5, model__protocol=protocol))
    assert process.level_weights(0.0).tolist() == [0, 1, 1, 1, 1, 1]
    weights, sigma_B = process.level_weights(2.0).double(), blur_schedule(5, 0.5, 4.0)
    np.testing.assert_allclose(weights[1:] / weights[1], (sigma_B[1:] / 0.5) ** 2, rtol=1e-5)
    assert weights[1 : last + 1].mean() == pytest.approx(1)


def test_the_gradient_is_that_of_the_weighted_loss_and_the_loss_is_reported_without() -> None:
    config = tiny_config(training__level_weighting=1.5, optim__grad_clip=0.0, model__dropout=0.0)
    trainer = trainer_of(config)
    weights = 0.5 * (4.0 / 0.5) ** (torch.arange(3) / 2)  # sigma_B for K = 3, evenly in log
    weights = weights**1.5 / (weights**1.5).mean()
    k = torch.from_numpy(stream(config.seed, Purpose.LEVEL, 0).integers(1, 4, 4))
    eps = normal_batch(CPU, config.seed, Purpose.TRAIN_NOISE, 0, range(4), 4, (1, 8, 8))
    losses = process_loss(trainer.process, trainer.model.train(), IMAGES, k, eps)
    weighted = (weights[k - 1] * losses).mean()
    expected = torch.autograd.grad(weighted, list(trainer.model.parameters()))
    found = gradients_of(trainer)
    torch.testing.assert_close(trainer.train_step(IMAGES).losses, losses.detach())
    torch.testing.assert_close(found, list(expected), rtol=1e-4, atol=1e-7)


def test_images_are_not_rounded_under_autocast() -> None:
    """A change far below bfloat16's resolution at 1 comes through, where an ordinary convolution
    would not see it.
    """
    conv = InputConv(1, 32, 3, padding=1)
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
