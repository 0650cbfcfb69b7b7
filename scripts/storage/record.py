"""What a number or a picture depends on. One key names caches, finished points and repetitions."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from scripts.runtime.randomness import STREAM_VERSION

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
        """The record with more in some parts: `record.add(data={"samples_crc32": 1})`."""
        return replace(self, **{name: getattr(self, name) | part for name, part in parts.items()})

    def settings(self) -> dict[str, Any]:
        """Everything by name, as JSON gives it back."""
        parts = (self.weights, self.kernel, self.data, self.reference, self.metric, self.options)
        flat = {name: value for part in parts for name, value in part.items()}
        flat |= {"precision": self.precision, "randomness_version": self.version}
        return json.loads(json.dumps(flat | {"files": self.files}))

    def row(self) -> dict[str, Any]:
        """The settings and their key without the files, for results."""
        row = self.settings() | {"key": replace(self, files={}).key}
        del row["files"]
        return row
