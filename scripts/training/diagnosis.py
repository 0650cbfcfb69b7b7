"""What a run leaves that stops after too many non-finite steps, to find the reason by."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from scripts import distributed
from scripts.data.loader import Batch
from scripts.io import atomic_write
from scripts.training.step import StepResult, Trainer


def save_diagnosis(workdir: Path, trainer: Trainer, batch: Batch, result: StepResult, name: Callable[[int], str]) -> Path:
    """Write `diagnosis/step_N.json` and, with the batch itself, `step_N.npz` about the step N that was just skipped.

    `name(i)` is what image i is called. Losses and gradient norm are text, as JSON has no NaN. Returns the path of the JSON
    file. The other has `images` float32 (B, C, H, W), `indices` and `levels` int64 (B,).
    """
    path = workdir / "diagnosis" / f"step_{trainer.step}.json"
    if not distributed.is_main():
        return path
    path.parent.mkdir(exist_ok=True)
    examples = zip(batch.indices.tolist(), result.levels.tolist(), result.losses.tolist(), strict=True)
    facts = {
        "step": trainer.step,
        "nonfinite_steps_in_a_row": trainer.nonfinite_in_a_row,
        "learning_rate": trainer.optimizer.param_groups[0]["lr"],
        "precision": trainer.precision.name,
        "gradient_norm": str(result.grad_norm),
        "weights_not_finite": [key for key, weight in trainer.model.named_parameters() if not weight.isfinite().all()],
        "examples": [{"index": i, "name": name(i), "level": level, "loss": str(loss)} for i, level, loss in examples],
    }
    with atomic_write(path.with_suffix(".npz")) as temporary:
        np.savez(temporary, images=batch.images.numpy(), indices=batch.indices.numpy(), levels=result.levels.cpu().numpy())
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(facts, indent=2, allow_nan=False) + "\n")
    return path
