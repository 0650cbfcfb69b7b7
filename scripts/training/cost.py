"""What training and sampling would cost on GPUs: a model from counted operations and bytes, nothing is run or allocated."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from ml_collections import ConfigDict
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from model_code import build_model
from model_code.unet import UNet
from scripts.device import Precision

MACHINE = 8
"""Devices to a machine."""
BANDWIDTH = {"within a machine": 300e9, "between machines": 50e9}
"""Bytes a second that a device exchanges with others: of a GPU's own links, and of a network card of 400 Gbit/s for each."""
STATE_BYTES = {"weights": 4, "gradients": 4, "Adam's moments": 8, "averaged weights": 4}
"""Bytes for each parameter, all in float32."""


def forward_flops(config: ConfigDict) -> int:
    """Floating-point operations (a multiplication and an addition are two) of the U-Net for one image, forward."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        image = torch.empty(1, config.data.num_channels, config.data.image_size, config.data.image_size)
        build_model(config)(image, torch.ones(1, dtype=torch.long))
    return counter.get_total_flops()


def num_parameters(config: ConfigDict) -> int:
    """Weights of the U-Net."""
    with torch.device("meta"):
        return sum(weight.numel() for weight in build_model(config).parameters())


def step_passes(config: ConfigDict) -> int:
    """What a training step costs, in forward passes: backward is two, for inputs and for weights, and recomputing one more."""
    return 4 if config.training.recompute else 3


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass leaves for the backward pass, without `torch.compile`."""

    image: int
    """For each image."""
    batch: int
    """Once, however many images: weights in the precision of the products."""

    @classmethod
    def of(cls, config: ConfigDict, device: str = "cuda") -> "Activations":
        """Count them, on a device that need not be there."""
        one, two = (_activation_bytes(config, images, device) for images in (1, 2))
        return cls(two - one, 2 * one - two)


def _activation_bytes(config: ConfigDict, images: int, device: str) -> int:
    """What autograd saves, each storage once, counted with tensors that have shapes and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    def total() -> int:
        """Bytes kept so far."""
        return sum(storage.nbytes() for storage in kept.values())

    def kept_by(model: UNet) -> int:
        """Bytes that a forward pass of `model` leaves, weights not counted."""
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            change = model(u, k)  # held, as what it depends on lives no longer
        for weight in model.parameters():
            kept.pop(weight.untyped_storage()._cdata, None)
        del change
        return total()

    with FakeTensorMode(), _FusedAttention(), _autocast(Precision.of(config, torch.device(device))):
        size = config.data.image_size
        with torch.device(device):
            model = build_model(config)
            u, k = torch.empty(images, config.data.num_channels, size, size), torch.ones(images, dtype=torch.long)
        if not model.recompute:
            return kept_by(model)
        ends = kept_by(model)
        # While the backward pass is at a stage, what is inside that is there as well.
        totals: list[int] = []  # before and after each stage
        for stage in model.stages():
            stage.register_forward_pre_hook(lambda *_: totals.append(total()))
            stage.register_forward_hook(lambda *_: totals.append(total()))
        model.recompute = False
        kept_by(model)
        return ends + max(after - before for before, after in zip(totals[::2], totals[1::2], strict=True))


class _FusedAttention(TorchFunctionMode):
    """For a GPU that is not there PyTorch chooses attention that holds all pairs of pixels; a real one has fused kernels."""

    def __torch_function__(
        self, func: Callable, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and args[0].device.type == "cuda":
            q, k, v = args
            return torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, q.requires_grad)[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _autocast(precision: Precision) -> Iterator[None]:
    """As `precision.autocast()`, which would have none of CUDA where there is no GPU."""
    kind = precision.device.type
    before = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    torch.set_autocast_enabled(kind, precision.enabled)
    torch.set_autocast_dtype(kind, precision.dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, before[0])
        torch.set_autocast_dtype(kind, before[1])
        torch.clear_autocast_cache()


@dataclass(frozen=True)
class Cost:
    """What `config` takes on GPUs that reach `flops` operations a second."""

    config: ConfigDict
    flops: float
    forward: int
    """Operations for an image."""
    parameters: int
    activations: Activations

    @classmethod
    def of(cls, config: ConfigDict, flops: float) -> "Cost":
        """Count. Takes seconds for the largest configuration."""
        return cls(config, flops, forward_flops(config), num_parameters(config), Activations.of(config))

    @property
    def step(self) -> int:
        """Operations for a training step."""
        return step_passes(self.config) * self.forward * self.config.training.batch_size

    def step_seconds(self, devices: int) -> float:
        """Of one step, on as many devices. Gradients are exchanged during the backward pass, unless that takes longer."""
        exchanged = 2 * (devices - 1) / devices * 4 * self.parameters  # by a ring, in float32
        bandwidth = BANDWIDTH["within a machine" if devices <= MACHINE else "between machines"]
        return max(self.step / devices / self.flops, exchanged / bandwidth)

    def memory(self, devices: int) -> float:
        """Bytes on each of as many devices."""
        training = self.config.training
        images = math.ceil(training.batch_size / devices / training.accumulation_steps)
        state = sum(STATE_BYTES.values()) * self.parameters
        return state + self.activations.batch + images * self.activations.image

    def sampling_seconds(self, num_samples: int, devices: int) -> float:
        """Of drawing so many samples, K forward passes each."""
        return num_samples * self.config.model.K * self.forward / devices / self.flops
