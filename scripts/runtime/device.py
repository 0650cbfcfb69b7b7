"""Where and in which precision to compute."""

import functools
import os
import re
import statistics
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch import nn

from scripts.errors import UserError
from scripts.runtime import distributed


def resolve_device(name: str) -> torch.device:
    """Return the device that config.device names; "auto" is a GPU if there is one. Raises UserError
    if it is not to be had.

    "cuda" is, for the i-th process of a machine, its i-th GPU. On a GPU, PyTorch is set to compute
    the same numbers every time, and float32 where float32 is asked for.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index, count = 0, torch.cuda.device_count()
    if re.fullmatch(r"cuda:\d+", name):
        index = int(name.removeprefix("cuda:"))
    elif name not in ("auto", "cuda"):
        raise UserError(f"config.device = {name!r}: must be 'auto', 'cpu', 'cuda' or 'cuda:1'")
    elif count != 1 and torch.distributed.is_initialized():
        # A scheduler may show each process no GPU but its own.
        index = int(os.environ.get("LOCAL_RANK", 0))
    if index >= count:
        raise UserError(
            f"config.device = {name!r}: there is no GPU number {index}, as this machine has "
            f"{count}; or use 'cpu'"
        )
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    # Read when CUDA starts; without it sums vary in order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False
    return device


def device_name(device: torch.device) -> str:
    """Return a device in words: "NVIDIA H100" or "cpu, 4 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def to_device(
    model: ModuleT, device: torch.device, compile_mode: str, *, autocast: bool = False
) -> ModuleT:
    """Move `model` to `device` and, unless `compile_mode` (config.compile) is "none", compile it in
    place.

    autocast: whether it will run in 16 bits; tensor cores then want channels last. Parameter names
    do not change. A compiled model's first pass in each mode, and with each shape of a batch, takes
    minutes.
    """
    model.to(device)
    if device.type == "cuda" and (autocast or compile_mode != "none"):
        model.to(memory_format=torch.channels_last)
    if compile_mode != "none":
        # Shapes are static, for CUDA graphs: each size of a batch compiles its own.
        torch._dynamo.config.recompile_limit = 32
        model.compile(mode=compile_mode, dynamic=False)
    return model


@dataclass(frozen=True)
class Precision:
    """float32 throughout, or autocast of matrix products and convolutions to bfloat16 or float16;
    weights stay float32.
    """

    device: torch.device
    dtype: torch.dtype
    reason: str = ""
    """Why this one, as a clause: "bfloat16 took 31 times as long as float32 here"."""

    @classmethod
    def named(cls, device: torch.device, name: str, reason: str = "") -> "Precision":
        """Return the precision of that `name`: "float32", "bfloat16", "float16", or "auto" for the
        `fastest`.
        """
        if name == "auto":
            return cls.fastest(device)
        return cls(device, getattr(torch, name), reason)

    @classmethod
    def of(cls, config: ConfigDict, device: torch.device) -> "Precision":
        """Return what config.optim.automatic_mp and config.optim.amp_dtype ask for; "auto" is
        bfloat16 where it is faster.
        """
        if not config.optim.automatic_mp:
            return cls.named(device, "float32", "config.optim.automatic_mp is off")
        if config.optim.amp_dtype != "auto":
            return cls.named(device, config.optim.amp_dtype, "config.optim.amp_dtype asks for it")
        return cls.fastest(device)

    @classmethod
    def fastest(cls, device: torch.device) -> "Precision":
        """Return bfloat16 on GPUs, and on processors where it was measured to be faster."""
        if device.type == "cuda":
            return cls.named(device, "bfloat16", "the default on CUDA")
        ratio = bfloat16_ratio()
        if ratio < 1:
            reason = f"bfloat16 took {ratio:.0%} of float32's time here"
            return cls.named(device, "bfloat16", reason)
        reason = f"bfloat16 took {ratio:.2g} times as long as float32 here"
        return cls.named(device, "float32", reason)

    @property
    def name(self) -> str:
        """As in `named`."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def enabled(self) -> bool:
        """Whether anything is autocast."""
        return self.dtype != torch.float32

    def autocast(self) -> AbstractContextManager:
        """Return the context for forward passes; does nothing in float32."""
        return torch.autocast(
            self.device.type, dtype=self.dtype if self.enabled else None, enabled=self.enabled
        )

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only float16 needs; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        kind = f"{self.name} autocast" if self.enabled else self.name
        return f"{kind} ({self.reason})" if self.reason else kind


def choose_threads(before: int | None = None) -> None:
    """Let PyTorch compute in one thread where all of the processor's take longer, as beside other
    programs, and print which it is; or in as many as `before`, when a run began.

    Nothing changes where OMP_NUM_THREADS, which torchrun sets, has said how many, among several
    processes, or where there is a GPU.
    """
    several = torch.get_num_threads()
    told = "OMP_NUM_THREADS" in os.environ
    if told or distributed.world_size() > 1 or torch.cuda.is_available():
        return
    if before is not None:
        torch.set_num_threads(before)
    if before is not None or several == 1:
        return
    times = {}
    for threads in (several, 1):
        torch.set_num_threads(threads)
        times[threads] = median_time()
    best = min(times, key=times.__getitem__)
    torch.set_num_threads(best)
    listed = " and ".join(f"{1e3 * times[n]:.1f} ms in {n}" for n in (1, several))
    print(f"threads: {best}, as convolutions took {listed}; OMP_NUM_THREADS=N chooses", flush=True)


def median_time() -> float:
    """Seconds of the clock for a 3x3 convolution and its gradients, the median of nine."""
    image = torch.ones(16, 64, 16, 16, requires_grad=True)
    weight = torch.ones(64, 64, 3, 3, requires_grad=True)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        F.conv2d(image, weight, padding=1).sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])  # the first one prepares


@functools.cache
def bfloat16_ratio() -> float:
    """Return how many times as long as in float32 a convolution and a matrix product take in
    bfloat16 on a core of this processor.

    Where it has no bfloat16 instructions, PyTorch emulates them, 10 to 500 times slower than
    float32.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # all work is this thread's, whose processor time is measured
    try:
        return shortest_time(torch.bfloat16) / shortest_time(torch.float32)
    finally:
        torch.set_num_threads(threads)


@torch.inference_mode()
def shortest_time(dtype: torch.dtype) -> float:
    """Seconds of this thread's processor time for one 3x3 convolution and one matrix product of
    similar work, the best of 10, or of fewer if they are slow.

    Waiting for other programs' turns does not count: on a busy machine that made bfloat16 look 190
    times as slow where it is 5 times as fast.
    """
    image, weight, matrix = (
        torch.ones(*shape, dtype=dtype) for shape in ((4, 64, 16, 16), (64, 64, 3, 3), (256, 256))
    )
    times: list[float] = []
    while len(times) < 3 or (len(times) < 10 and sum(times) < 0.1):  # the first one prepares
        start = time.thread_time()
        F.conv2d(image, weight, padding=1)
        torch.mm(matrix, matrix)
        times.append(time.thread_time() - start)
    return min(times)
