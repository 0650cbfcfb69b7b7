"""A process from a file of the user's: config.model.process = "FILE.py:CLASS"."""

import runpy
import zlib
from typing import Any

from ml_collections import ConfigDict

from scripts.config.load import error_with_line
from scripts.config.paths import user_path
from scripts.errors import UserError

KEY = "config.model.process"
checksums: dict[str, int] = {}
"""CRC32 of each file that has run, by the key's value."""


def register(name: str) -> None:
    """Run the file and enter its class. Raises UserError if that cannot be done.

    Only for a value in `load.named_code`: a checkpoint or JSON must never run code.
    """
    from model_code import PROCESSES, Preset, configured_chain  # imports PyTorch
    from model_code.gaussian import GaussianProcess
    from model_code.process import Process, next_levels

    text, _, class_name = name.rpartition(":")
    path, shown = user_path(text, KEY), f"{KEY} = {name!r}"
    if not path.is_file():
        raise UserError(f"{shown}: there is no such file")
    try:
        found: Any = runpy.run_path(str(path)).get(class_name)
    except Exception as error:
        raise UserError(f"{shown}: {error_with_line(error, path)}") from error
    if not isinstance(found, type) or not issubclass(found, Process):
        raise UserError(f"{shown}: the file has no class {class_name}, a subclass of Process")

    factory: Any = found

    def build(config: ConfigDict) -> Process:
        process: Process = factory(config)
        process.chain = configured_chain(config)
        if isinstance(process, GaussianProcess):
            process.next_level = next_levels(process.chain, process.K)
        return process

    PROCESSES[name] = Preset(build)
    checksums[name] = zlib.crc32(path.read_bytes())
