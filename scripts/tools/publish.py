"""A run made small enough to give away: averaged weights, configuration, prior bank, metrics; nothing that only training needs.

python -m scripts.tools.publish --workdir RUN --out DIR

DIR is a run directory that sample.py, evaluate.py and the report read as any other; train.py refuses to go on from it.
"""

import json
import re
from pathlib import Path

from absl import flags

from scripts import checkpoint
from scripts.config import run
from scripts.errors import UserError
from scripts.io import atomic_write, make_directory, read_json_lines, user_path

KEPT = ("step", "config", "data", "prior", "provenance")
ROWS = 100
"""Most rows about the training loss; all evaluations and events are kept."""


def main() -> int:
    """Publish what the flags name."""
    path = publish(user_path(flags.FLAGS.workdir, "--workdir"), user_path(flags.FLAGS.out, "--out"))
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


def publish(workdir: Path, out: Path) -> Path:
    """Write `checkpoints/checkpoint_1.pth`, `config.json` and `metrics.jsonl` below `out`, from the newest checkpoint of a run.

    Returns the checkpoint's path. Raises UserError if there is nothing to publish, or `out` holds checkpoints of a run.
    """
    newest = checkpoint.read_newest(workdir)
    if newest is None:
        raise UserError(f"--workdir={workdir}: there is no checkpoint in it; train first, or check the path")
    source, contents = newest
    if checkpoint.is_release(contents):
        raise UserError(f"{source}: a checkpoint of the original release has no configuration to publish")
    if checkpoint.meta_path(out).exists():
        raise UserError(f"--out={out}: there is a run in it that can be trained further; choose another directory")
    path = checkpoint.numbered_path(make_directory(out, "--out"), 1)
    weights = {name: weight.detach().clone() for name, weight in contents["ema"]["shadow"].items()}
    kept = {name: contents[name] for name in KEPT if name in contents}
    kept["provenance"] = without_places(contents.get("provenance", {}))
    checkpoint.write(path, {"ema": {"shadow": weights}} | kept)
    config = json.loads(contents["config"]) | {"provenance": kept["provenance"]}
    with atomic_write(out / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    rows = map(without_places, thinned(read_json_lines(workdir / "metrics.jsonl")))
    with atomic_write(out / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_places(facts: dict) -> dict:
    """The same without the folders in its "command", which are nobody's business: of absolute paths the last name stays."""
    if not isinstance(facts.get("command"), str):
        return facts
    return {**facts, "command": re.sub(r"(?<![^\s=])/\S*/", "", facts["command"])}


def thinned(rows: list[dict]) -> list[dict]:
    """All rows of metrics.jsonl but those about the training loss, and of these every n-th, about `ROWS` in all."""
    losses = [i for i, row in enumerate(rows) if "loss" in row]
    keep = {*losses[:: max(1, -(-len(losses) // ROWS))], *losses[-1:]}
    return [row for i, row in enumerate(rows) if "loss" not in row or i in keep]


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Run directory that train.py made.", required=True)
    flags.DEFINE_string("out", None, "Directory to write to.", required=True)
    run(main)
