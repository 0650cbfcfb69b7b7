"""Which values the keys of a configuration may have, beyond their types. What only one process reads, it checks itself."""

from collections.abc import Iterator
from typing import Any

AT_LEAST_1 = (
    *("training.batch_size", "training.accumulation_steps", "training.n_iters", "training.log_freq", "training.eval_freq"),
    *("training.sampling_freq", "training.num_samples", "training.snapshot_freq", "training.snapshot_freq_for_preemption"),
    *("training.max_nonfinite_steps", "training.noise_images", "eval.batch_size", "data.image_size"),
    *("model.K", "model.model_channels", "model.num_res_blocks", "model.num_heads", "model.patch_size"),
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


def checks(given: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """(key, what would be right, whether it is) for a configuration by "section.key"; later ones rely on earlier ones."""
    for key in AT_LEAST_1:
        yield key, "an integer of at least 1", given[key] >= 1
    for key in AT_LEAST_0:
        yield key, "at least 0", given[key] >= 0
    for key in POSITIVE:
        yield key, "greater than 0", given[key] > 0
    for key in FRACTIONS:
        yield key, "in [0, 1)", 0 <= given[key] < 1
    for key, choices in CHOICES.items():
        yield key, f"one of {', '.join(map(repr, choices))}", given[key] in choices
    yield "seed", "an integer from 0 to 2^64 - 1", given["seed"] < 2**64
    batch_size, parts = given["training.batch_size"], given["training.accumulation_steps"]
    yield "training.accumulation_steps", f"a divisor of training.batch_size = {batch_size}", batch_size % parts == 0
    trains_a_level = given["model.protocol"] == "paper" or given["model.K"] >= 2
    yield "model.K", "at least 2 with model.protocol = 'released'", trains_a_level
    yield from _network_checks(given)


def _network_checks(given: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    channels, mult, attention = (given[f"model.{name}"] for name in ("model_channels", "channel_mult", "attention_levels"))
    levels = len(mult)
    yield "model.channel_mult", "a positive integer per level, such as (1, 2, 2)", levels > 0 and min(mult) > 0
    yield "model.model_channels", "a multiple of 32, the number of groups in GroupNorm", channels % 32 == 0
    patch_size = given["model.patch_size"]
    factor = patch_size * 2 ** (levels - 1)
    divides = given["data.image_size"] % factor == 0
    patches = f" and model.patch_size = {patch_size}" if patch_size > 1 else ""
    yield "data.image_size", f"divisible by {factor}, for {levels} levels in model.channel_mult{patches}", divides
    in_range = all(0 <= level < levels for level in attention)
    yield "model.attention_levels", f"levels from 0 to {levels - 1}, as model.channel_mult has {levels}", in_range
    attended = [channels * mult[level] for level in (*attention, levels - 1)]
    size, heads = given["model.num_head_channels"], given["model.num_heads"]
    yield "model.num_head_channels", "-1 or greater than 0", size == -1 or size > 0
    key, divisor = ("model.num_heads", heads) if size == -1 else ("model.num_head_channels", size)
    yield key, "a divisor of the channels at every level with attention", all(c % divisor == 0 for c in attended)
