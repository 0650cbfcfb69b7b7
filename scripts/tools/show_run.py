"""What a run directory or a checkpoint holds, this program's or the original release's.

python -m scripts.tools.show_run PATH

Nothing in the files is executed, and no model is built.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from configs import default
from scripts import checkpoint
from scripts.config import define_path_flag, differences, run, to_json
from scripts.errors import UserError, printable
from scripts.io import read_json_lines


def describe(path: Path) -> Iterator[str]:
    """Lines about a checkpoint, or about a run directory's newest checkpoint and its last metrics.

    Raises UserError for anything else, and for a damaged file.
    """
    if not path.is_dir():
        yield from _describe_checkpoint(path, checkpoint.read(path))
        return
    newest = checkpoint.read_newest(path)
    if newest is None:
        raise UserError(f"{path}: there is no checkpoint in this directory")
    yield from _describe_checkpoint(*newest)
    numbered = path.glob("checkpoints/checkpoint_*.pth")
    yield f"numbered checkpoints: {', '.join(sorted(file.stem.removeprefix('checkpoint_') for file in numbered)) or 'none'}"
    rows = [row for row in read_json_lines(path / "metrics.jsonl") if "event" not in row]
    yield "last metrics"
    for key, (value, step) in {key: (value, row.get("step")) for row in rows for key, value in row.items()}.items():
        yield f"  {key:<28} {value}  (step {step})"


def _describe_checkpoint(path: Path, contents: checkpoint.Contents) -> Iterator[str]:
    release = checkpoint.is_release(contents)
    weights = contents["ema"]["shadow_params"] if release else contents["ema"]["shadow"].values()
    yield f"{path}: checkpoint of {'the original release' if release else 'this program'}, {path.stat().st_size / 1e6:.1f} MB"
    yield f"  step         {contents['step']}"
    yield f"  parameters   {sum(weight.numel() for weight in weights):,}"
    if "config" in contents and not release:
        yield "configuration: differences from configs/default.py"
        own = ConfigDict(json.loads(contents["config"]))
        for key, change in differences(to_json(default.get_config()), own).items():
            yield f"  {key:<28} {change}"
    if "provenance" in contents:
        yield "provenance"
        for key, value in contents["provenance"].items():
            yield f"  {key:<12} {value}"


def main() -> int:
    """Describe what the flag names."""
    if flags.FLAGS.path is None:
        raise UserError("PATH is missing: python -m scripts.tools.show_run runs/mnist/pretrained")
    for line in describe(flags.FLAGS.path):
        print(printable(line))
    return 0


if __name__ == "__main__":
    define_path_flag("path", "Run directory or .pth file; the flag's name may be left out.")
    run(main, positional="path")
