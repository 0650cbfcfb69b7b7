"""What a run that stops for bad steps leaves to find the reason by."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts.data.loader import Batch
from scripts.io import replacing
from scripts.training.step import StepResult, Trainer


def save_diagnosis(workdir: Path, trainer: Trainer, batch: Batch, result: StepResult, name: Callable[[int], str]) -> Path:
    """Write `diagnosis/step_N.json` and, with the batch itself, `step_N.npz` about step N, just skipped as bad.

    `name(i)` is what image i is called. Numbers that are not finite, which JSON does not have, are strings. Returns the path
    of the former file; `images` in the latter is float32 (B, C, H, W), `indices` and `levels` are int64 (B,).
    """
    path = workdir / "diagnosis" / f"step_{trainer.step}.json"
    path.parent.mkdir(exist_ok=True)
    indices = batch.indices.tolist()
    facts = {
        "step": trainer.step,
        "bad_steps_in_a_row": trainer.bad_in_a_row,
        "bad_steps": trainer.bad_steps,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "precision": trainer.precision.name,
        "fallback": None if trainer.fallback is None else str(trainer.fallback),
        "loss_scale": trainer.scaler.get_scale(),
        "gradient_norm": _plain(result.grad_norm),
        "parameters_with_bad_gradients": result.bad_parameters,
        "parameters_not_finite": [n for n, weight in trainer.model.named_parameters() if not weight.isfinite().all()],
        "examples": [
            {"index": index, "name": name(index), "level": level, "loss": _plain(loss)}
            for index, level, loss in zip(indices, result.levels.tolist(), result.losses.tolist(), strict=True)
        ],
    }
    with replacing(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, images=batch.images.numpy(), indices=batch.indices.numpy(), levels=result.levels.cpu().numpy())
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return path


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
