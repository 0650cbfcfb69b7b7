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
from model_code.nn import InputConv
from scripts.runtime.randomness import Purpose, normal_batch, stream
from scripts.training.step import Trainer, learning_rate, process_loss
from tests.tiny import tiny_config
from tests.training.runs import CPU, differing, trainer_of

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(config: ConfigDict, steps: int) -> Trainer:
    trainer = trainer_of(config)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        trainer.train_step(
            torch.from_numpy(rng.random((config.training.batch_size, 1, 8, 8), dtype=np.float32))
        )
    return trainer


def test_accumulation_is_the_full_batch() -> None:
    """Same data, levels and noise; without dropout, whose masks are drawn per part, the same
    weights to float error.
    """
    whole, parts = (
        trained(tiny_config(model__dropout=0.0, training__accumulation_steps=n), 3) for n in (1, 4)
    )

    def flat(trainer: Trainer) -> tuple[torch.Tensor, torch.Tensor]:
        weights = list(trainer.model.parameters())
        moments = [trainer.optimizer.state[weight]["exp_avg"] for weight in weights]
        return torch.cat([w.detach().flatten() for w in weights]), torch.cat(
            [m.flatten() for m in moments]
        )

    start = flat(trained(whole.config, 1))[0]
    (weights, moments), (other_weights, other_moments) = flat(whole), flat(parts)
    assert (moments - other_moments).norm() < 1e-5 * moments.norm()
    # Adam divides by the gradient's own size, so that float error in the smallest ones shows in the
    # weights.
    assert (weights - other_weights).norm() < 3e-3 * (weights - start).norm()


def test_averages_follow_the_weights() -> None:
    trainer, start = trained(tiny_config(), 1), trainer_of(tiny_config())
    decay = min(0.999, 2 / 11)
    for name, weight in trainer.model.named_parameters():
        torch.testing.assert_close(
            trainer.ema.shadow[name], decay * start.ema.shadow[name] + (1 - decay) * weight
        )


@pytest.mark.parametrize("amp_dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_alike(amp_dtype: str) -> None:
    """Losses near those in float32, which a forgotten scale or a target in 16 bits would not give."""
    results = []
    for mixed in (False, True):
        trainer = trainer_of(tiny_config(optim__automatic_mp=mixed, optim__amp_dtype=amp_dtype))
        trainer.scaler = torch.amp.GradScaler(
            "cpu", init_scale=128.0, enabled=mixed and amp_dtype == "float16"
        )
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
    clipped, free = (
        trainer_of(tiny_config(optim__grad_clip=1e-3)),
        trainer_of(tiny_config(optim__grad_clip=0.0)),
    )
    assert clipped.train_step(IMAGES).grad_norm == pytest.approx(free.train_step(IMAGES).grad_norm)
    moments = [clipped.optimizer.state[weight]["exp_avg"] for weight in clipped.model.parameters()]
    norm = torch.cat([m.flatten() for m in moments]).norm().item()
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_tiny_overfitting() -> None:
    """A few images learnt by heart: the loss falls to a tenth."""
    trainer = trainer_of(
        tiny_config(
            model__dropout=0.0,
            model__ema_rate=0.5,
            optim__lr=3e-3,
            optim__warmup=1,
            training__batch_size=8,
        )
    )
    rows, columns = np.mgrid[:8, :8]
    images = (
        torch.from_numpy(np.stack([(rows + i * columns) % 3 for i in range(2)]) / 2)
        .float()[:, None]
        .repeat(4, 1, 1, 1)
    )
    losses = [trainer.train_step(images).losses.mean().item() for _ in range(150)]
    assert np.mean(losses[-10:]) < 0.1 * np.mean(losses[:3])


def test_learning_rate() -> None:
    def rate(step: int, schedule: str) -> float:
        return learning_rate(step, lr=1.0, warmup=10, schedule=schedule, n_iters=110)

    assert [rate(step, "constant") for step in (0, 4, 9, 50, 109)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1]
    )
    assert [rate(step, "cosine") for step in (0, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 1, 1, 0.5, 0], abs=1e-12
    )
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
    expected = torch.autograd.grad(
        (weights[k - 1] * losses).mean(), list(trainer.model.parameters()), allow_unused=True
    )
    captured: list[torch.Tensor | None] = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: captured.extend(w.grad for w in trainer.model.parameters())
    )
    torch.testing.assert_close(trainer.train_step(IMAGES).losses, losses.detach())
    torch.testing.assert_close(captured, list(expected), rtol=1e-4, atol=1e-7)


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
