"""Where results come from: the program's version and its packages', the command, the
configuration's checksum, the machine.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from datetime import UTC, datetime
from typing import Any

from ml_collections import ConfigDict

from scripts.config.checks import process_checksums
from scripts.config.paths import ROOT

PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pillow",
    "ml_collections",
    "clean-fid",
)  # that results may depend on


def provenance(config: ConfigDict, *, device: str, world_size: int) -> dict[str, Any]:
    """Facts about this process as plain data; device: in words; world_size: the number of
    processes.
    """
    name = config.model.process
    own = {"process_crc32": process_checksums[name]} if name in process_checksums else {}
    return own | {
        "time": now(),
        "config_hash": config_hash(config),
        "seed": config.seed,
        "command": shlex.join(sys.orig_argv),
        "commit": commit(),
        "versions": {
            "program": program_version(),
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "device": device,
        "world_size": world_size,
    }


def now() -> str:
    """The time in UTC, to the second: "2026-01-31T12:00:00+00:00"."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def config_hash(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that tell one configuration, with all overrides, from another."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def program_version() -> str:
    """The version in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["version"]


def commit() -> str | None:
    """The commit that the program is at, with "+changes" if its files are not as in there; None if
    git does not know.
    """
    environment = os.environ | {
        "GIT_CEILING_DIRECTORIES": str(ROOT.parent)
    }  # not that of a repository further up
    command = [
        "git",
        "-C",
        str(ROOT),
        "describe",
        "--always",
        "--abbrev=40",
        "--exclude=*",
        "--dirty=+changes",
    ]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=environment
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
