"""The paper: tensors in, tensors out. Only what builds from a configuration is here or called `from_config`."""

from collections.abc import Callable

import torch
from ml_collections import ConfigDict
from torch.nn import Module

from model_code.blurring_diffusion import BlurringDiffusion, VelocityBlurringDiffusion
from model_code.heat import HeatDissipation
from model_code.process import Process
from model_code.unet import UNet

PROCESSES: dict[str, Callable[[ConfigDict], Process]] = {
    "heat": HeatDissipation.from_config,
    "blurring_diffusion": BlurringDiffusion.from_config,
    "velocity_blurring_diffusion": VelocityBlurringDiffusion.from_config,
}
"""config.model.process: what images are destroyed by."""
NETWORKS: dict[str, Callable[[ConfigDict], Module]] = {"unet": UNet.from_config}
"""config.model.network: what undoes it. Each checks its own settings, and raises ValueError for those that cannot be."""


def build_process(config: ConfigDict) -> Process:
    """The process that config.model.process names. Raises ValueError for a name or settings that cannot be."""
    name = config.model.process
    if name not in PROCESSES:
        raise ValueError(f"config.model.process = {name!r}: must be one of {', '.join(PROCESSES)}")
    return PROCESSES[name](config)


def build_model(config: ConfigDict) -> Module:
    """The network that config.model.network names, freshly initialised: f(u, k). Raises ValueError as `build_process` does."""
    name = config.model.network
    if name not in NETWORKS:
        raise ValueError(f"config.model.network = {name!r}: must be one of {', '.join(NETWORKS)}")
    return NETWORKS[name](config)


def check_buildable(config: ConfigDict) -> None:
    """Raise ValueError, naming key and value, unless process and network can be built. Nothing is allocated for the network."""
    build_process(config)
    with torch.device("meta"):
        build_model(config)
