"""One optimizer step, and nothing around it: the loop is in `loop.py`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from model_code import build_model
from model_code.ema import EMA
from model_code.guidance import conditioned
from model_code.process import Denoiser, Process
from scripts.config.resolve import Experiment
from scripts.data.loader import Batch
from scripts.runtime import distributed
from scripts.runtime.device import Precision, to_device
from scripts.runtime.randomness import Purpose, normal_batch, normal_by_index, stream


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step measured, of all processes' examples; it was skipped if the
    gradient's norm is not finite.
    """

    losses: torch.Tensor  # float32 (B,)
    levels: torch.Tensor  # int64 (B,)
    grad_norm: float  # before clipping

    @property
    def finite(self) -> bool:
        """Whether the weights followed this gradient."""
        return math.isfinite(self.grad_norm)


def learning_rate(
    step: int, *, lr: float, warmup: int, schedule: str, n_iters: int, protocol: str = "paper"
) -> float:
    """The rate of 0-based step `step`: a linear rise over `warmup` steps, then constant or a half
    cosine down to 0.

    The rise ends with step warmup - 1; in the release it starts at 0 and ends one step later.
    """
    risen = step + 1 if protocol == "paper" else step
    rise = min(1.0, risen / warmup) if warmup else 1.0
    if schedule == "constant":
        return lr * rise
    progress = min(1.0, max(0, step - warmup) / max(1, n_iters - warmup))
    return lr * rise * (1 + math.cos(math.pi * progress)) / 2


def process_loss(
    process: Process, model: Denoiser, u0: torch.Tensor, k: torch.Tensor, eps: torch.Tensor
) -> torch.Tensor:
    """|| target - prediction ||^2 for each example, summed over pixels (paper, Algorithm 1):
    float32 (B,).

    u0 in [0, 1] and standard normal eps are (B, C, H, W); levels k int64 (B,) in 1..K.
    """
    u_k, target = process.corrupt(u0, k, eps)
    return (target - process.predict(model(u_k, k), u_k, k)).square().sum(dim=(1, 2, 3))


class Trainer:
    """Model, average, optimizer and loss scale, and the step that updates them, from the images and
    (seed, step) alone.

    Of several processes each takes its part of the batch; all end with the same weights.
    """

    def __init__(self, experiment: Experiment, device: torch.device) -> None:
        """Raises ValueError for a network that cannot be built."""
        config = experiment.config
        self.config, self.device = config, device
        self.process = experiment.process.to(device)
        torch.manual_seed(config.seed)  # initial weights
        chosen = Precision.of(config, device)
        # Measured in every process, decided by process 0.
        self.compute_in(Precision.named(device, distributed.from_main(chosen.name), chosen.reason))
        self.model = to_device(
            build_model(config), device, config.compile, autocast=self.precision.enabled
        )
        self.ddp_model = distributed.averaging_gradients(self.model, device)
        self.level_weights = self.process.level_weights(config.training.level_weighting).to(device)
        self.ema = EMA(self.model, config.model.ema_rate)
        optim = config.optim
        self.optimizer = getattr(torch.optim, optim.optimizer)(
            self.model.parameters(),
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        self.step = 0  # steps done, skipped ones included
        self.nonfinite_steps = 0  # skipped ones
        self.nonfinite_in_a_row = 0
        # Within the update: after an error there the state is inconsistent, and must not be saved.
        self.updating = False

    def compute_in(self, precision: Precision) -> None:
        """Set the precision of forward passes, and with it the loss scaling."""
        self.precision, self.scaler = precision, precision.grad_scaler()

    def train_step(self, images: torch.Tensor, labels: torch.Tensor | None = None) -> StepResult:
        """One optimizer step on images u_0 (B, C, H, W) in [0, 1], on any device, and for a
        class-conditional network their classes (B,); of several processes each has B of its own.

        A step whose gradient is not finite is skipped: weights, averages and moments stay as they
        were. In float16 that also lowers the loss scale, which is the usual reason there.
        """
        config, size = self.config, len(images)
        u0 = images.to(self.device, non_blocking=True)
        levels, k, eps = self._draw(size, tuple(images.shape[1:]))
        y = None if labels is None else self._told(labels)
        self.model.train()
        masks = stream(config.seed, Purpose.DROPOUT, self.step, distributed.rank())
        torch.manual_seed(int(masks.integers(2**63)))
        rate = learning_rate(
            self.step,
            lr=config.optim.lr,
            warmup=config.optim.warmup,
            schedule=config.optim.schedule,
            n_iters=config.training.n_iters,
            protocol=self.process.protocol,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        losses: list[torch.Tensor] = []
        parts = config.training.accumulation_steps
        for rows in torch.arange(size, device=self.device).chunk(parts):
            with distributed.averaging_after(self.ddp_model, last=len(losses) == parts - 1):
                model = self.ddp_model if y is None else conditioned(self.ddp_model, y[rows])
                with self.precision.autocast():
                    loss = process_loss(self.process, model, u0[rows], k[rows], eps[rows])
                # The mean over this process's examples: averaged over processes, the mean over the
                # whole batch.
                self.scaler.scale((self.level_weights[k[rows]] * loss).sum() / size).backward()
            losses.append(loss.detach())

        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.model.parameters(), config.optim.grad_clip or math.inf
        ).item()
        result = StepResult(distributed.gather_rows(torch.cat(losses)), levels, norm)
        if result.finite:
            self.updating = True
            self.scaler.step(self.optimizer)
            self.ema.update(self.model)
            self.updating = False
            self.nonfinite_in_a_row = 0
        else:
            self.nonfinite_steps += 1
            # float16 may overflow often while its scale is still too large.
            self.nonfinite_in_a_row += self.scaler.get_scale() <= 1
        self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        return result

    def _draw(
        self, size: int, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Levels of the whole batch, then levels k (size,) and noise eps (size, *shape) of this
        process's part of it.

        They are drawn for the whole batch, so that they do not depend on the number of processes
        (paper, Algorithm 1).
        """
        seed, allowed = self.config.seed, self.process.training_levels
        total, rank = size * distributed.world_size(), distributed.rank()
        rows = range(rank * size, (rank + 1) * size)
        levels = torch.tensor(allowed)[
            stream(seed, Purpose.LEVEL, self.step).integers(len(allowed), size=total)
        ]
        eps = normal_batch(self.device, seed, Purpose.TRAIN_NOISE, self.step, rows, total, shape)
        return levels, levels[rows.start : rows.stop].to(self.device, non_blocking=True), eps

    def _told(self, labels: torch.Tensor) -> torch.Tensor:
        """The classes (B,) that the network is told, -1 where they are dropped: drawn for the whole
        batch, too.
        """
        total, rank = len(labels) * distributed.world_size(), distributed.rank()
        thrown = stream(self.config.seed, Purpose.LABEL_DROPOUT, self.step).random(total)
        dropped = torch.from_numpy(thrown < self.config.training.label_dropout)
        return labels.masked_fill(dropped.view(-1, len(labels))[rank], -1).to(self.device)

    def all_finite(self) -> bool:
        """Whether all weights and averages are finite: a finite gradient times an absurd learning
        rate may be too large.
        """
        tensors = [*self.model.parameters(), *self.ema.shadow.values()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def start_from(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take over weights, by name, for the network and its average."""
        self.model.load_state_dict(weights)
        self.ema = EMA(self.model, self.config.model.ema_rate)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, as plain data."""
        return {
            "step": self.step,
            "nonfinite_steps": self.nonfinite_steps,
            "nonfinite_in_a_row": self.nonfinite_in_a_row,
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "precision": self.precision.name,
            "threads": torch.get_num_threads(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict` of the same architecture.

        Raises ValueError or RuntimeError if it is another's.
        """
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        # Moments are the checkpoint's, settings the configuration's.
        self.optimizer.load_state_dict(
            {**self.optimizer.state_dict(), "state": state["optimizer"]["state"]}
        )
        if state["scaler"]:  # empty unless the run was in float16 when it was saved
            self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.nonfinite_steps = state["nonfinite_steps"]
        self.nonfinite_in_a_row = state["nonfinite_in_a_row"]


@torch.no_grad()
def held_out_losses(trainer: Trainer, batch: Batch) -> torch.Tensor:
    """Losses on held-out images: float32 (B,), on the CPU.

    Levels and noise belong to the image, so that evaluations at different steps differ by the
    weights alone.
    """
    trainer.model.eval()
    seed, allowed = trainer.config.seed, trainer.process.training_levels
    images, positions = batch.images, batch.indices.tolist()
    levels = [
        allowed[int(stream(seed, Purpose.EVAL_LEVEL, position=i).integers(len(allowed)))]
        for i in positions
    ]
    device, shape = trainer.device, tuple(images.shape[1:])
    places = [(0, i) for i in positions]
    eps = normal_by_index(device, seed, Purpose.EVAL_NOISE, places, shape)
    k, u0 = torch.tensor(levels).to(device), images.to(device)
    model: Denoiser = trainer.model
    if trainer.config.model.class_conditional:
        assert batch.labels is not None
        model = conditioned(trainer.model, batch.labels.to(device))
    with trainer.precision.autocast():
        return process_loss(trainer.process, model, u0, k, eps).cpu()
