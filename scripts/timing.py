"""How long a piece of work takes, and on what processor."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

WARM_UP = 2
"""Runs that are not counted: memory is found, kernels are chosen."""


def seconds(once: Callable[[], object], device: torch.device) -> float:
    """Duration of one call, the work that it leaves to a GPU included."""
    start = time.perf_counter()
    once()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def processor_name() -> str:
    """The processor in words, with what matters to matrix products: "Intel(R) Xeon(R) Processor (avx512f, amx_bf16)"."""
    path = Path("/proc/cpuinfo")
    entries = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line) if path.exists() else {}
    facts = {key.strip(): value.split() for key, value in entries.items()}
    name = " ".join(facts.get("model name", [platform.processor() or platform.machine()]))
    extensions = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts.get("flags", [])]
    return f"{name} ({', '.join(extensions)})" if extensions else name
