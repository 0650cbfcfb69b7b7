"""Where and in which precision to compute."""

import os
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from ml_collections import ConfigDict
from torch import nn

from scripts.errors import UserError


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that config.device names; "auto" is a GPU if there is one. Raises UserError if it is not to be had.

    local_rank: of this process on its machine; "auto" and "cuda" are then the GPU of that number.

    On a GPU, PyTorch is told to compute the same numbers every time, and float32 where float32 is asked for.
    """
    device = _named_device(name)
    if device.type == "cuda":
        if device.index is None and local_rank > 0:
            device = _own_gpu(name, local_rank)
        if device.index is not None:
            torch.cuda.set_device(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it sums vary in order
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
        torch.backends.cudnn.allow_tf32 = False
    return device


def _named_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"config.device = {name!r}: must be 'auto', 'cpu', 'cuda' or 'cuda:1'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"config.device = {name!r}: this machine has {torch.cuda.device_count()} CUDA devices; use 'auto' or 'cpu'"
        )
    return device


def device_name(device: torch.device) -> str:
    """A device in words: "NVIDIA H100" or "cpu, 4 threads"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def _own_gpu(name: str, local_rank: int) -> torch.device:
    count = torch.cuda.device_count()
    if count == 1:
        return torch.device("cuda:0")  # a scheduler may show each process no GPU but its own
    if local_rank >= count:
        raise UserError(f"config.device = {name!r}: process {local_rank + 1} of this machine, which has {count} CUDA devices")
    return torch.device("cuda", local_rank)


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def place(model: ModuleT, device: torch.device, compile_mode: str) -> ModuleT:
    """`model` on `device`, and unless `compile_mode`, which is config.compile, is "none", compiled in place.

    Names of parameters stay as they are. The first pass in each mode and with each shape of a batch then takes minutes.
    """
    model.to(device)
    if compile_mode != "none":
        if device.type == "cuda":
            # What tensor cores want; without compiling, GroupNorm would undo and redo it each time.
            model.to(memory_format=torch.channels_last)
        # Each shape has a program of its own, without which there are no CUDA graphs: training, evaluation, samples, and the
        # last, smaller batches of these.
        torch._dynamo.config.recompile_limit = 32
        model.compile(mode=compile_mode, dynamic=False)
    return model


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed by instructions of its own. Where it is emulated a step takes thirty times as long."""
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class Precision:
    """float32 throughout, or matrix products and convolutions in bfloat16 or float16 (weights stay float32)."""

    def __init__(self, device: torch.device, *, automatic_mp: bool, amp_dtype: str) -> None:
        self.device = device
        self.enabled = automatic_mp
        self.dtype: torch.dtype = getattr(torch, amp_dtype)

    @classmethod
    def of(cls, config: ConfigDict, device: torch.device) -> "Precision":
        """What config.optim.automatic_mp and config.optim.amp_dtype ask for; "auto" is bfloat16 where that is fast."""
        optim = config.optim
        if optim.amp_dtype != "auto":
            return cls(device, automatic_mp=optim.automatic_mp, amp_dtype=optim.amp_dtype)
        return cls(device, automatic_mp=optim.automatic_mp and has_bfloat16(device), amp_dtype="bfloat16")

    @classmethod
    def fallback(cls, config: ConfigDict, device: torch.device) -> "Precision | None":
        """The precision for steps that overflow in float16, config.optim.fp16_fallback, if there is one."""
        name = config.optim.fp16_fallback
        return cls(device, automatic_mp=name != "float32", amp_dtype=name) if name else None

    def autocast(self) -> AbstractContextManager:
        """The context for forward passes; does nothing in float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Loss scaling, which only float16 needs; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.enabled and self.dtype == torch.float16)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} autocast" if self.enabled else "float32"
