"""Make a small copy of a run to give away: averaged weights, configuration, prior and metrics, without the optimizer's state.

python -m scripts.tools.publish --workdir RUN --out DIR

sample.py, evaluate.py and the report read DIR as any other run directory; train.py refuses to continue from it.
"""

import json
import re
from pathlib import Path

from absl import flags

from scripts import checkpoint
from scripts.config import run
from scripts.errors import UserError
from scripts.io import atomic_write, make_directory, read_json_lines, user_path

KEPT = ("step", "config", "data", "prior")


def publish(workdir: Path, out: Path) -> Path:
    """Write `checkpoints/checkpoint_1.pth`, `config.json` and `metrics.jsonl` to `out`, from the newest checkpoint of a run.

    Returns the checkpoint's path. Raises UserError if there is nothing to publish or `out` is itself a run that can go on.
    """
    newest = checkpoint.read_newest(workdir)
    if newest is None or checkpoint.is_release(newest[1]):
        raise UserError(f"--workdir={workdir}: there is no checkpoint of this program in it")
    if checkpoint.meta_path(out).exists():
        raise UserError(f"--out={out}: there is a run in it that can be trained further; choose another directory")
    contents = newest[1]
    provenance = contents.get("provenance", {})
    if "command" in provenance:  # of absolute paths only the last part, as the rest may be private
        provenance = provenance | {"command": re.sub(r"(?<![^\s=])/\S*/", "", provenance["command"])}
    weights = {name: weight.clone() for name, weight in contents["ema"]["shadow"].items()}
    kept = {name: contents[name] for name in KEPT if name in contents}
    path = checkpoint.numbered_path(make_directory(out, "--out"), 1)
    checkpoint.write(path, {**kept, "ema": {"shadow": weights}, "provenance": provenance})

    config = json.loads(contents["config"]) | {"provenance": provenance}
    rows = [row for row in read_json_lines(workdir / "metrics.jsonl") if "event" not in row]  # events repeat the command
    metrics = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in (("config.json", json.dumps(config, indent=2) + "\n"), ("metrics.jsonl", metrics)):
        with atomic_write(out / name) as temporary:
            temporary.write_text(text)
    return path


def main() -> int:
    """Publish what the flags name."""
    path = publish(user_path(flags.FLAGS.workdir, "--workdir"), user_path(flags.FLAGS.out, "--out"))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory that train.py made.", required=True)
    flags.DEFINE_string("out", None, "Directory to write to.", required=True)
    run(main)
