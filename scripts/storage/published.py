"""A published model: model.safetensors, the averaged weights under the network's names, and
process.safetensors, whatever else sampling and evaluation need: prior, calibration, configuration.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from scripts.errors import UserError, one_line
from scripts.storage.files import atomic_write

WEIGHTS, PROCESS = "model.safetensors", "process.safetensors"
PLAIN = "contents"
"""In a file's metadata: JSON of what is no tensor."""


def write_published(directory: Path, contents: Mapping[str, Any], weights_crc32: int) -> Path:
    """Write both files of a checkpoint's contents, in which no dict has `/` in its names; the path
    of the weights is returned.
    """
    weights = contents["ema"]["shadow"]
    plain = {"weights_crc32": weights_crc32}
    tensors: dict[str, torch.Tensor] = {}
    for name, value in contents.items():
        if name != "ema":
            plain[name] = _split(value, name, tensors)
    # The weights last: a directory with them is complete.
    plain["tensors_crc32"] = _checksum(tensors)
    _write(directory / PROCESS, tensors, plain)
    _write(directory / WEIGHTS, weights, {"names": list(weights)})
    return directory / WEIGHTS


def read_published(path: Path) -> tuple[dict[str, Any], int]:
    """Return the contents of a checkpoint from its weights and the file beside them, and the
    checksum that the weights must have.

    Raises UserError for files that are missing, damaged or foreign.
    """
    weights, order = _read(path)
    tensors, contents = _read(path.with_name(PROCESS))
    try:
        if contents.pop("tensors_crc32") != _checksum(tensors):
            raise ValueError("checksum")
        for name, tensor in tensors.items():
            *sections, key = name.split("/")
            place = contents
            for section in sections:
                place = place[section]
            place[key] = tensor
        shadow = {name: weights[name] for name in order["names"]}
        return contents | {"ema": {"shadow": shadow}}, contents.pop("weights_crc32")
    except (KeyError, TypeError, ValueError) as error:
        what = f"it or {PROCESS} beside it is damaged ({one_line(error)})"
        raise UserError(f"{path}: {what}") from None


def tensors_crc32(tensors: Iterable[torch.Tensor], value: int = 0) -> int:
    """Return the CRC32 of the bytes of tensors in their order, after what has the CRC32 `value`."""
    for tensor in tensors:
        whole = tensor.detach().cpu().contiguous().flatten()
        value = zlib.crc32(whole.view(torch.uint8).numpy().tobytes(), value)
    return value


def _checksum(tensors: Mapping[str, torch.Tensor]) -> int:
    value = 0
    for name in sorted(tensors):
        value = tensors_crc32([tensors[name]], zlib.crc32(name.encode(), value))
    return value


def _split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """Plain data without its tensors, which go to `tensors`."""
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return None
    if isinstance(value, Mapping):
        return {key: _split(part, f"{name}/{key}", tensors) for key, part in value.items()}
    return value


def _write(path: Path, tensors: Mapping[str, torch.Tensor], plain: Mapping[str, Any]) -> None:
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(whole, {"format": "pt", PLAIN: json.dumps(plain)}))


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        with safe_open(path, "pt") as file:
            plain = json.loads((file.metadata() or {})[PLAIN])
            # Copies, as sums over memory that is not aligned differ in the last bit.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, plain
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; a published model has both") from None
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        reason = one_line(error) or type(error).__name__
        raise UserError(f"{path}: damaged, or not published by this program ({reason})") from None
