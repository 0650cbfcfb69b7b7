"""A run directory as it can be read back: whatever of it is there."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from scripts.config import flatten
from scripts.errors import UserError
from scripts.evaluation.results import RESULTS
from scripts.io import read_json_lines

Row = dict[str, Any]


@dataclass(frozen=True)
class RunDirectory:
    """What the page tells of, read from the files of a run."""

    path: Path
    config: dict[str, Any]
    """Its config.json, {} if there is none."""
    rows: list[Row]
    """Of metrics.jsonl, by step."""
    written: float | None
    """When metrics.jsonl was last written to, seconds since 1970."""
    samples: dict[int, Path]
    """The directory of every sampling time that has pictures, by step."""
    scores: list[Row]
    """What evaluate.py found, oldest first."""

    @classmethod
    def read(cls, path: Path) -> "RunDirectory":
        """Raises UserError if that is no run directory or its configuration cannot be read."""
        config_path, metrics_path = path / "config.json", path / "metrics.jsonl"
        if not config_path.exists() and not metrics_path.exists():
            raise UserError(f"--workdir={path}: no run directory, it has neither config.json nor metrics.jsonl")
        try:
            config = json.loads(config_path.read_text()) if config_path.exists() else {}
        except ValueError as error:
            raise UserError(f"{config_path}: this is not JSON ({error})") from None
        if not isinstance(config, dict):
            raise UserError(f"{config_path}: must hold sections of keys, as train.py writes it")
        rows = [row for row in read_json_lines(metrics_path) if isinstance(row, dict) and finite(row.get("step"))]
        found = [(d.name.removeprefix("iter_"), d) for d in path.glob("samples/iter_*") if (d / "final.png").is_file()]
        return cls(
            path=path,
            config=config,
            rows=sorted(rows, key=lambda row: row["step"]),
            written=metrics_path.stat().st_mtime if rows else None,
            samples={int(step): directory for step, directory in sorted(found, key=_step) if step.isdecimal()},
            scores=[row for row in read_json_lines(path / RESULTS) if isinstance(row, dict)],
        )

    def setting(self, key: str) -> Any:
        """The value of "section.key" in the configuration, None if it is not there."""
        return dict(flatten(self.config)).get(key)

    def last(self, key: str) -> Row:
        """The last row with a finite number for `key`, {} if there is none."""
        return next((row for row in reversed(self.rows) if finite(row.get(key))), {})

    @property
    def step(self) -> int:
        """How far training has come, as far as the files tell."""
        return int(max([0, *self.samples, *(row["step"] for row in self.rows)]))


def _step(found: tuple[str, Path]) -> int:
    return int(found[0]) if found[0].isdecimal() else -1


def finite(value: object) -> TypeGuard[float]:
    """Whether that is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
