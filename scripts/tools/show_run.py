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
from scripts.config.comparison import differences
from scripts.config.flags import define_path_flag, run
from scripts.config.load import to_json
from scripts.errors import UserError, printable
from scripts.storage import checkpoint
from scripts.storage.files import read_json_lines


def describe(path: Path) -> Iterator[str]:
    """Lines about a checkpoint, or about a run directory's newest checkpoint and its last metrics.

    Raises UserError for anything else, and for a damaged file.
    """
    file, contents = (checkpoint.read_newest(path) or (None, {})) if path.is_dir() else (path, checkpoint.read(path))
    if file is None:
        raise UserError(f"{path}: there is no checkpoint in this directory")
    release = checkpoint.is_release(contents)
    weights = contents["ema"]["shadow_params"] if release else contents["ema"]["shadow"].values()
    yield f"{file}: checkpoint of {'the original release' if release else 'this program'}, {file.stat().st_size / 1e6:.1f} MB"
    yield f"  step         {contents['step']}"
    yield f"  parameters   {sum(weight.numel() for weight in weights):,}"
    if not release:
        yield "configuration: differences from configs/default.py"
        changes = differences(to_json(default.get_config()), ConfigDict(json.loads(contents["config"])))
        yield from (f"  {key:<28} {change}" for key, change in changes.items())
        yield "provenance"
        yield from (f"  {key:<12} {value}" for key, value in contents.get("provenance", {}).items())
    if path.is_dir():
        numbered = sorted(other.stem.removeprefix("checkpoint_") for other in path.glob("checkpoints/checkpoint_*.pth"))
        yield f"numbered checkpoints: {', '.join(numbered) or 'none'}"
        rows = [row for row in read_json_lines(path / "metrics.jsonl") if "event" not in row]
        last = {key: (value, row.get("step")) for row in rows for key, value in row.items()}
        yield "last metrics"
        yield from (f"  {key:<28} {value}  (step {step})" for key, (value, step) in last.items())


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
