"""What a number or a picture depends on, whose one key names caches, finished points and
repetitions; and where it came from: the program's version and its packages', the command, the
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
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from ml_collections import ConfigDict

from scripts.config.paths import ROOT
from scripts.config.resolve import process_checksums
from scripts.runtime.randomness import STREAM_VERSION

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "ml_collections", "clean-fid")
"""Those that results may depend on."""
Part = dict[str, Any]
"""Plain data by name; no two parts of a record have a name in common."""


@dataclass(frozen=True)
class Record:
    """All that samples, features, scores or pictures depend on.

    Equal keys mean the same thing made again.
    """

    weights: Part = field(default_factory=dict)
    """Step and checksum of a checkpoint and settings of its model; or where samples come from."""
    kernel: Part = field(default_factory=dict)
    """Of the reverse process: its chain, its numbers, and the calibration that they come from."""
    data: Part = field(default_factory=dict)
    """Images that samples start from, and checksums of the images that were scored."""
    reference: Part = field(default_factory=dict)
    """What samples are compared with."""
    metric: Part = field(default_factory=dict)
    """What is computed, and the features that it is computed from."""
    options: Part = field(default_factory=dict)
    """The seed, and how many."""
    precision: str = "float32"
    """What the network computes in."""
    version: int = STREAM_VERSION
    files: dict[str, str] = field(default_factory=dict)
    """Versions of all images and weights that are read (see `data.images.files_version`). They are
    there before anything is computed, on this machine: rows have checksums of pixels instead."""

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits of everything above."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def add(self, **parts: Part) -> "Record":
        """Return the record with more in some parts: `record.add(data={"samples_crc32": 1})`."""
        return replace(self, **{name: getattr(self, name) | part for name, part in parts.items()})

    def settings(self) -> dict[str, Any]:
        """Everything by name, as JSON gives it back."""
        parts = (self.weights, self.kernel, self.data, self.reference, self.metric, self.options)
        flat = {name: value for part in parts for name, value in part.items()}
        flat |= {"precision": self.precision, "randomness_version": self.version}
        return json.loads(json.dumps(flat | {"files": self.files}))

    def row(self) -> dict[str, Any]:
        """Return the settings and their key without the files, for results."""
        row = self.settings() | {"key": replace(self, files={}).key}
        del row["files"]
        return row


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
    """Return the time in UTC, to the second: "2026-01-31T12:00:00+00:00"."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def config_hash(config: ConfigDict) -> str:
    """Twelve hexadecimal digits that tell one configuration, with all overrides, from another."""
    return hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode()).hexdigest()[:12]


def program_version() -> str:
    """Return the version in pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]["version"]


def commit() -> str | None:
    """Return the commit that the program is at, with "+changes" if its files are not as in there;
    None if git does not know.
    """
    # Not that of a repository further up.
    environment = os.environ | {"GIT_CEILING_DIRECTORIES": str(ROOT.parent)}
    options = ["--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    command = ["git", "-C", str(ROOT), "describe", *options]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=True, env=environment
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
