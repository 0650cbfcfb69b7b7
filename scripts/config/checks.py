"""Whether a configuration can be used, asked once, before anything is made or read."""

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from configs import default
from scripts.config.load import flatten, refuse_unknown
from scripts.errors import UserError

AT_LEAST_1 = (
    *("training.batch_size", "training.accumulation_steps", "training.n_iters", "training.log_freq", "training.eval_freq"),
    *("training.sampling_freq", "training.num_samples", "training.snapshot_freq", "training.snapshot_freq_for_preemption"),
    *("training.max_nonfinite_steps", "eval.batch_size", "data.image_size", "model.K"),
)
AT_LEAST_0 = (
    *("seed", "eval.num_images", "data.num_workers", "model.delta_over_sigma"),
    *("optim.warmup", "optim.weight_decay", "optim.grad_clip"),
)
POSITIVE = ("distributed_timeout_minutes", "model.blur_sigma_min", "model.sigma", "optim.lr", "optim.eps")
FRACTIONS = ("model.ema_rate", "model.dropout", "optim.beta1", "optim.beta2")
CHOICES = {
    "compile": ("none", "default", "reduce-overhead", "max-autotune"),
    "data.num_channels": (1, 3),
    "model.protocol": ("paper", "released"),
    "optim.optimizer": ("Adam", "AdamW"),
    "optim.schedule": ("constant", "cosine"),
    "optim.amp_dtype": ("auto", "bfloat16", "float16"),
}


def validate(config: ConfigDict) -> None:
    """Raise UserError, naming key, value and what would be right, unless process and network can be built and trained."""
    given = dict(flatten(config))
    refuse_unknown(given)
    for key, right, ok in _checks(given):
        if not ok:
            raise UserError(f"config.{key} = {given[key]!r}: must be {right}")
    from model_code import check_buildable  # imports PyTorch

    try:
        check_buildable(config)
    except ValueError as error:
        raise UserError(str(error)) from None


def unread(config: ConfigDict) -> list[str]:
    """A line for each key with another value than the default that the configuration's process does not read."""
    from model_code import build_process  # imports PyTorch
    from model_code.process import Process

    given, defaults = (dict(flatten(c)) for c in (config, default.get_config()))
    keys = sorted(Process.reads - build_process(config).reads)
    name = config.model.process
    return [f"config.{key} = {given[key]}: not read by process {name}" for key in keys if given[key] != defaults[key]]


def _checks(given: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(key, what would be right, whether it is) for a configuration by "section.key"; later ones rely on earlier ones."""
    for key in AT_LEAST_1:
        yield key, "at least 1", given[key] >= 1
    yield "training.noise_images", "at least 2", given["training.noise_images"] >= 2
    for key in AT_LEAST_0:
        yield key, "at least 0", 0 <= given[key] < math.inf
    for key in POSITIVE:
        yield key, "greater than 0", 0 < given[key] < math.inf
    for key in FRACTIONS:
        yield key, "in [0, 1)", 0 <= given[key] < 1
    for key, choices in CHOICES.items():
        yield key, f"one of {', '.join(map(repr, choices))}", given[key] in choices
    yield "seed", "an integer from 0 to 2^64 - 1", given["seed"] < 2**64
    batch_size, parts = given["training.batch_size"], given["training.accumulation_steps"]
    yield "training.accumulation_steps", f"a divisor of training.batch_size = {batch_size}", batch_size % parts == 0
    trains_a_level = given["model.protocol"] == "paper" or given["model.K"] >= 2
    yield "model.K", "at least 2 with model.protocol = 'released'", trains_a_level
