"""What a checkpoint must hold, checked before anything looks into it: files come from disks that fail, and from strangers."""

import json
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Kind = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test of it."""
Form = dict[str, "Kind | Form"]
"""Names, with "?" behind those that may be absent, and what must be there. Other names may be there too."""


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_tensor(value: Any) -> bool:
    """Floating-point numbers that are all there: not sparse, nor a few that strides make appear as terabytes."""
    return (
        type(value) in (torch.Tensor, nn.Parameter)
        and value.is_floating_point()
        and value.device.type == "cpu"
        and value.layout == torch.strided
        and not value.is_nested
        and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
    )


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(type(name) is str and _is_tensor(tensor) for name, tensor in value.items())


def _is_tensor_list(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_tensor, value))


def _is_configuration(value: Any) -> bool:
    try:
        sections = json.loads(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(sections, dict) and not any(
        isinstance(inner, dict)
        for section in sections.values()
        for inner in (section.values() if isinstance(section, dict) else ())
    )


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(value, dict)


def _is_optimizer(value: Any) -> bool:
    state = value.get("state") if isinstance(value, dict) else None
    return isinstance(state, dict) and all(type(i) is int and _is_tensors(moments) for i, moments in state.items())


def _is_scaler(value: Any) -> bool:
    return value == {} or misfit(value, _SCALER) is None


def _is_prior(value: Any) -> bool:
    if not _is_tensors(value) or not {"coefficients", "basis", "decay"} <= value.keys():
        return False
    coefficients, basis, decay = (value[name] for name in ("coefficients", "basis", "decay"))
    return (
        (coefficients.ndim, basis.ndim, decay.ndim) == (3, 3, 1)
        and len(coefficients) > 0
        and coefficients.shape[2] == len(basis) == len(decay)
        and all(bool(tensor.isfinite().all()) for tensor in (coefficients, basis, decay))
    )


_COUNT: Kind = ("a whole number of at least 0", _is_count)
_NUMBER: Kind = ("a number", _is_number)
_TENSORS: Kind = ("tensors by name", _is_tensors)
_SCALER: Form = {
    "scale": _NUMBER,
    "growth_factor": _NUMBER,
    "backoff_factor": _NUMBER,
    "growth_interval": _COUNT,
    "_growth_tracker": _COUNT,
}

OURS: Form = {
    "step": _COUNT,
    "config": ("a configuration as JSON", _is_configuration),
    "ema": {"shadow": _TENSORS, "num_updates?": _COUNT},
    "model?": _TENSORS,
    "optimizer?": ("an optimizer's state", _is_optimizer),
    "scaler?": ("a loss scaler's state", _is_scaler),
    "data?": {"num_images": _COUNT, "names_crc32": _COUNT, "pixels_crc32?": _COUNT},
    "prior?": ("a prior bank", _is_prior),
    "provenance?": ("a dictionary of plain data", _is_plain),
}
"""Without what is optional a model can be sampled from."""
RELEASE: Form = {"step": _COUNT, "ema": {"shadow_params": ("a list of tensors", _is_tensor_list)}}
"""As far as it is read."""


def misfit(contents: Any, form: Form, where: str = "") -> str | None:
    """What in `contents` is not as `form` says, in words such as "ema.shadow is missing"; None if all is well."""
    if not isinstance(contents, dict):
        return f"{where.rstrip('.') or 'it'} is {type(contents).__name__}, not a dictionary"
    for key, expected in form.items():
        name = key.rstrip("?")
        if name not in contents:
            if name == key:
                return f"{where}{name} is missing"
        elif isinstance(expected, dict):
            if problem := misfit(contents[name], expected, f"{where}{name}."):
                return problem
        elif not expected[1](contents[name]):
            return f"{where}{name} is not {expected[0]}"
    return None


def first_not_finite(contents: Any, where: str = "") -> str | None:
    """The name of a tensor in nested dictionaries and lists that holds NaN or infinity, such as ema.shadow.head.bias."""
    if isinstance(contents, torch.Tensor):
        return None if bool(contents.isfinite().all()) else where
    items = contents.items() if isinstance(contents, dict) else enumerate(contents) if isinstance(contents, list) else ()
    names = (first_not_finite(value, f"{where}.{key}" if where else str(key)) for key, value in items)
    return next(filter(None, names), None)


def to_resume(form: Form) -> Form:
    """The same with everything required, as a run needs that goes on."""
    return {
        key.rstrip("?"): to_resume(expected) if isinstance(expected, dict) else expected
        for key, expected in form.items()
        if key != "provenance?"  # older checkpoints have none
    }
