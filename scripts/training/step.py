"""One optimizer step, and nothing around it: the loop is in `training.py`."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from ml_collections import ConfigDict
from torch import nn

from model_code import build_blur, build_model
from model_code.blur import blur_schedule
from model_code.ema import EMA
from scripts import distributed
from scripts.device import Precision, to_device
from scripts.losses import deblurring_loss
from scripts.randomness import Purpose, normal_batch, stream

MAX_OVERFLOWS = 40
"""Times in a row that float16 may overflow before the loss scale, fallen by 2^40 then, is not to blame: the step is bad."""


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured."""

    losses: torch.Tensor
    """float32 (B,): squared error of each example of the batch, all processes' examples, summed over pixels."""
    levels: torch.Tensor
    """int64 (B,): the blur level of each example."""
    grad_norm: float
    """Before clipping. Not finite for a bad step, and for one that overflowed."""
    overflowed: bool
    """float16 overflowed: nothing was updated except the loss scale, and the step is to be repeated."""
    bad_parameters: tuple[str, ...] = ()
    """Names of parameters whose gradient is not finite."""

    @property
    def finite(self) -> bool:
        """Whether the weights may follow this gradient. The one number behind it is the same in all processes of a run."""
        return math.isfinite(self.grad_norm)


def learning_rate(step: int, *, lr: float, warmup: int, schedule: str, n_iters: int) -> float:
    """The rate of 0-based step `step`: a linear rise over `warmup` steps, then constant or a half cosine down to 0."""
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    if schedule == "constant":
        return lr * rise
    progress = min(1.0, max(0, step - warmup) / max(1, n_iters - warmup))
    return lr * rise * (1 + math.cos(math.pi * progress)) / 2


def draw_levels(seed: int, step: int, batch_size: int, K: int, protocol: str) -> torch.Tensor:
    """Blur levels of one batch, uniform on 1..K (in the release 1..K-1): int64 (batch_size,)."""
    return torch.from_numpy(stream(seed, Purpose.LEVEL, step).integers(1, last_level(K, protocol) + 1, batch_size))


def level_weights(config: ConfigDict) -> torch.Tensor:
    """By how much the loss of each level counts, of mean 1 over those that are trained: float32 (K + 1,), 0 for level 0.

    Squared errors fall with the blur, about as 1 / sigma_B: weighted by its first power all levels count alike.
    """
    model = config.model
    sigma_B = blur_schedule(model.K, model.blur_sigma_min, model.blur_sigma_max)
    weights = torch.zeros_like(sigma_B)
    weights[1:] = sigma_B[1:] ** config.training.level_weighting
    return (weights / weights[1 : last_level(model.K, model.protocol) + 1].mean()).float()


def last_level(K: int, protocol: str) -> int:
    """The last level that is trained; the release leaves out level K."""
    return K if protocol == "paper" else K - 1


class Trainer:
    """Model, average, optimizer and loss scale, and the step that moves them.

    A step is a function of these, the images and (seed, step): no generator's state is part of it. Of several processes each
    takes its part of the batch; all end with the same weights.
    """

    def __init__(self, config: ConfigDict, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(config.seed)  # initial weights
        self.precision = Precision.of(config, device)
        self.model = to_device(build_model(config), device, config.compile, autocast=self.precision.enabled)
        self.averaging_model = distributed.averaging_gradients(self.model, device)
        self.blur = build_blur(config).to(device)
        self.level_weights = level_weights(config).to(device)
        self.ema = EMA(self.model, config.model.ema_rate)
        self.scaler = self.precision.grad_scaler()
        self.fallback = Precision.fallback(config, device)
        optim = config.optim
        optimizer_class = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[optim.optimizer]
        self.optimizer = optimizer_class(
            self.model.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.step = 0  # steps done, bad ones included
        self.bad_steps = 0  # of these
        self.bad_in_a_row = 0  # and of these, those since the last good one
        self._overflows = 0  # attempts at the present step
        if distributed.world_size() > 1:
            self._settle_order_of_sums()

    def _settle_order_of_sums(self) -> None:
        """One backward pass for nothing: after its first one DistributedDataParallel groups gradients anew, and then for good.

        Sums over three processes and more depend on the groups, in the last bit. This way a run that is resumed adds up as one
        that never stopped.
        """
        data = self.config.data
        image = torch.zeros(1, data.num_channels, data.image_size, data.image_size, device=self.device)
        level = torch.ones(1, dtype=torch.int64, device=self.device)
        with self.precision.autocast():
            change = self.averaging_model(image, level)
        (0 * change.float().sum()).backward()
        self.optimizer.zero_grad()

    def train_step(self, images: torch.Tensor) -> StepResult:
        """One optimizer step on images u_0 (B, C, H, W) in [0, 1], on any device; of several processes each has B of its own.

        A bad step, whose loss or gradient is not finite, is skipped: it is counted, and weights, averages, moments and loss
        scale stay as they were. In float16 the loss scale may be at fault. An overflow lowers it and is reported, to be
        repeated, `MAX_OVERFLOWS` times in all; with config.optim.fp16_fallback the step is done in that precision at once.
        """
        if self._overflows == 0:
            self._scale_before = self.scaler.state_dict()
        result = self._attempt(images, self.precision, self.scaler)
        if not result.finite and self.scaler.is_enabled():
            self._overflows += 1
            if self.fallback is not None:
                result = self._attempt(images, self.fallback, self.fallback.grad_scaler())
            elif self._overflows < MAX_OVERFLOWS:
                return replace(result, overflowed=True)
        if result.finite:
            self.bad_in_a_row = 0
        else:
            self.scaler.load_state_dict(self._scale_before)  # no scale helped
            self.bad_steps += 1
            self.bad_in_a_row += 1
        self._overflows = 0
        self.step += 1
        return result

    def _attempt(self, images: torch.Tensor, precision: Precision, scaler: torch.amp.GradScaler) -> StepResult:
        """Move weights, averages and moments if the gradient is finite, and the loss scale whether or not it is."""
        result = self._backward(images, precision, scaler)
        if result.finite:
            scaler.step(self.optimizer)
            self.ema.update(self.model)
        scaler.update()
        self.optimizer.zero_grad()
        return result

    def _backward(self, images: torch.Tensor, precision: Precision, scaler: torch.amp.GradScaler) -> StepResult:
        config, step, batch_size = self.config, self.step, len(images)
        positions = distributed.shard(range(batch_size * distributed.world_size()))  # in the whole batch
        self.model.train()
        torch.manual_seed(int(stream(config.seed, Purpose.DROPOUT, step, distributed.rank()).integers(2**63)))
        optim = config.optim
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step, lr=optim.lr, warmup=optim.warmup, schedule=optim.schedule, n_iters=config.training.n_iters
            )

        levels = draw_levels(config.seed, step, batch_size * distributed.world_size(), config.model.K, config.model.protocol)
        losses = []
        part_size = batch_size // config.training.accumulation_steps
        for start in range(0, batch_size, part_size):
            part = positions[start : start + part_size]
            eps = normal_batch(config.seed, Purpose.TRAIN_NOISE, step, part, tuple(images.shape[1:]))
            of_part = images[start : start + part_size]
            u0, k, eps = (x.to(self.device, non_blocking=True) for x in (of_part, levels[part.start : part.stop], eps))
            with distributed.averaging_after(self.averaging_model, last=start + part_size == batch_size):
                with precision.autocast():
                    loss = deblurring_loss(self.averaging_model, self.blur, u0, k, eps, config.model.sigma)
                # The gradient of the mean over this process's examples: the average over processes makes it that over the
                # whole batch. Of a loss that is not finite none: the gradient's norm alone then tells a bad step.
                weights = torch.where(loss.detach().isfinite(), self.level_weights[k] / batch_size, math.nan)
                scaler.scale(loss).backward(weights)
            losses.append(loss.detach())

        scaler.unscale_(self.optimizer)
        gradients = {name: weight.grad for name, weight in self.model.named_parameters() if weight.grad is not None}
        norm = nn.utils.get_total_norm(gradients.values())
        result = StepResult(distributed.gather_rows(torch.cat(losses)), levels, norm.item(), overflowed=False)
        if not result.finite:
            return replace(result, bad_parameters=tuple(name for name, g in gradients.items() if not g.isfinite().all()))
        nn.utils.clip_grads_with_norm_(self.model.parameters(), optim.grad_clip or math.inf, norm)
        return result

    def all_finite(self) -> bool:
        """Whether all weights and averages are finite: a finite gradient times an absurd learning rate may be too large."""
        return all(bool(x.isfinite().all()) for x in [*self.model.parameters(), *self.ema.shadow.values()])

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain data."""
        return {
            "step": self.step,
            "bad_steps": self.bad_steps,
            "bad_in_a_row": self.bad_in_a_row,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same architecture. Raises ValueError or RuntimeError if it is another's."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        moments = state["optimizer"]["state"]
        shapes = [{"step": (), "exp_avg": weight.shape, "exp_avg_sq": weight.shape} for weight in self.model.parameters()]
        found = {i: {name: value.shape for name, value in entry.items()} for i, entry in moments.items()}
        if found and found != dict(enumerate(shapes)):  # there are none before the first step
            raise ValueError("the optimizer's moments belong to another architecture")
        # Moments are the checkpoint's, settings the configuration's.
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        if state["scaler"]:  # empty unless the run was in float16 when it was saved
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.bad_steps = state.get("bad_steps", 0)  # checkpoints of earlier versions do not count them
        self.bad_in_a_row = state.get("bad_in_a_row", 0)


@torch.no_grad()
def held_out_losses(trainer: Trainer, images: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Losses of the averaged weights on held-out images (B, C, H, W) with data set indices (B,): float32 (B,), on the CPU.

    Levels and noise belong to the image, so that evaluations at different steps differ by the weights alone.
    Call within `trainer.ema.swapped_in(trainer.model)`.
    """
    config = trainer.config
    trainer.model.eval()
    seed, K, positions = config.seed, config.model.K, indices.tolist()
    levels = torch.tensor([int(stream(seed, Purpose.EVAL_LEVEL, position=i).integers(1, K + 1)) for i in positions])
    noise = normal_batch(seed, Purpose.EVAL_NOISE, 0, positions, tuple(images.shape[1:]))
    u0, k, eps = (x.to(trainer.device) for x in (images, levels, noise))
    with trainer.precision.autocast():
        return deblurring_loss(trainer.model, trainer.blur, u0, k, eps, config.model.sigma).cpu()
