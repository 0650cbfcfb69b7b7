"""The paper and its family: tensors in, tensors out. Configurations are read here and by
`UNet.from_config` alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ml_collections import ConfigDict
from torch.nn import Module

from model_code import presets
from model_code.blur import DCTBlur, blur_schedule
from model_code.process import Chain, Process, full_chain, subchain
from model_code.unet import UNet, image_shape

BLUR = frozenset({"model.blur_sigma_max"})
PROCESS_KEY = "config.model.process"
HEAT = BLUR | {
    *("model.blur_schedule", "model.blur_sigma_min", "model.sigma", "model.delta_over_sigma"),
    *("model.protocol", "training.level_weighting", "training.noise_images"),
}
"""Keys that not every process reads: one that is set and not read is a warning."""


@dataclass(frozen=True)
class Preset:
    """A process that config.model.process can name."""

    build: Callable[[ConfigDict], Process]
    reads: frozenset[str] = HEAT
    """Of the keys that not every process reads."""


def _heat(config: ConfigDict) -> Process:
    model = config.model
    _, height, width = image_shape(config.data)
    if not 0 < model.blur_sigma_min <= model.blur_sigma_max:
        least = f"must be at least config.model.blur_sigma_min = {model.blur_sigma_min}"
        raise ValueError(f"config.model.blur_sigma_max = {model.blur_sigma_max}: {least}")
    schedule = blur_schedule(model.K, model.blur_sigma_min, model.blur_sigma_max)
    if model.blur_schedule != "log":
        if isinstance(model.blur_schedule, str):  # a file or the images have not been read
            shown = f"config.model.blur_schedule = {model.blur_schedule!r}"
            raise ValueError(f"{shown}: its levels are not known here")
        schedule = torch.tensor(model.blur_schedule, dtype=torch.float64)
    return presets.heat_dissipation(
        DCTBlur(schedule, height, width),
        model.sigma,
        protocol=model.protocol,
        delta_over_sigma=model.delta_over_sigma,
        **_common(config),
    )


def _diffusion(build: Callable[..., Process], **settings: Any) -> Preset:
    """Return a preset whose blur goes up to config.model.blur_sigma_max, unless that is in
    `settings`.
    """

    def from_config(config: ConfigDict) -> Process:
        blur = config.model.blur_sigma_max
        _, *size = image_shape(config.data)
        if blur < 0:
            raise ValueError(f"config.model.blur_sigma_max = {blur}: must be at least 0")
        arguments = {"blur_sigma_max": blur, **settings, **_common(config)}
        return build(config.model.K, size=size, **arguments)

    return Preset(from_config, frozenset() if "blur_sigma_max" in settings else BLUR)


def _common(config: ConfigDict) -> dict[str, Any]:
    return {
        "num_channels": config.data.num_channels,
        "patch_size": config.model.patch_size,
        "chain": configured_chain(config),
    }


DIFFUSION = presets.blurring_diffusion
PROCESSES = {
    "heat": Preset(_heat),
    "blurring_diffusion": _diffusion(DIFFUSION, predicts="eps"),
    "velocity_blurring_diffusion": _diffusion(DIFFUSION, predicts="v"),
    "gaussian_diffusion": _diffusion(DIFFUSION, predicts="v", blur_sigma_max=0.0),
    "flow_matching": _diffusion(presets.flow_matching, predicts="x"),
}
"""config.model.process: what images are destroyed by."""
NETWORKS: dict[str, Callable[[ConfigDict], Module]] = {"unet": UNet.from_config}
"""config.model.network: what undoes it. Each checks its own settings, and raises ValueError."""


def build_process(config: ConfigDict) -> Process:
    """Return the process that config.model.process names. Raises ValueError for what cannot be."""
    name = config.model.process
    if name not in PROCESSES and ".py:" in name:
        named = f"a file of code runs only where the command line names it: --{PROCESS_KEY}={name}"
        raise ValueError(f"{PROCESS_KEY} = {name!r}: {named}")
    if name not in PROCESSES:
        raise ValueError(f"{PROCESS_KEY} = {name!r}: must be one of {', '.join(PROCESSES)}")
    process = PROCESSES[name].build(config)
    noise, valid = config.model.sampling_noise, process.sampling_noises
    if noise not in valid:
        raise ValueError(f"config.model.sampling_noise = {noise!r}: must be {' or '.join(valid)}")
    return process


def build_model(config: ConfigDict) -> Module:
    """Return the network that config.model.network names, freshly initialised: f(u, k).

    Raises ValueError for what cannot be.
    """
    name = config.model.network
    if name not in NETWORKS:
        raise ValueError(f"config.model.network = {name!r}: must be one of {', '.join(NETWORKS)}")
    return NETWORKS[name](config)


def configured_chain(config: ConfigDict) -> Chain:
    """Return the levels that config.model.chain names, all by default."""
    levels, text = full_chain(config.model.K), config.model.chain
    try:
        return subchain(text, levels) if text else levels
    except ValueError as error:
        raise ValueError(f"config.model.chain = {text!r}: {error}") from None
