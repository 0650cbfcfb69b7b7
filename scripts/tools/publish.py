"""Make a small copy of a run to give away: averaged weights, configuration, prior, sampling noise and metrics.

python -m scripts.tools.publish --workdir RUN --out DIR

sample.py, evaluate.py and the report read DIR as any other run directory; train.py refuses to continue from it.
"""

import json
import re
from pathlib import Path

from absl import flags

from scripts.config.flags import define_path_flag, run
from scripts.config.load import RUN_CONFIG
from scripts.errors import UserError
from scripts.storage import checkpoint
from scripts.storage.files import make_directory, read_json_lines
from scripts.storage.snapshots import for_sampling


def publish(workdir: Path, out: Path) -> Path:
    """Write `checkpoints/checkpoint_1.pth` (its path is returned), `config.json` and `metrics.jsonl` of a run to `out`.

    Raises UserError if there is nothing to publish or `out` is itself a run that can go on.
    """
    path, contents = checkpoint.read_newest(workdir) or (None, None)
    if path is None or contents is None or checkpoint.is_release(contents):
        raise UserError(f"--workdir={workdir}: there is no checkpoint of this program in it")
    if checkpoint.meta_path(out).exists():
        raise UserError(f"--out={out}: there is a run in it that can be trained further; choose another directory")
    crc32 = checkpoint.weights_checksum(checkpoint.averages(contents))
    measured = checkpoint.read_measured(path, contents.get("noise"), contents["step"], crc32)
    provenance = contents.get("provenance", {})  # earlier versions had none
    # Of absolute paths only the last part, as the rest may be private.
    provenance["command"] = re.sub(r"(?<![^\s=])/\S*/", "", provenance.get("command", ""))
    path = checkpoint.numbered_path(make_directory(out, "--out"), 1)
    if path.exists() and checkpoint.weights_checksum(checkpoint.averages(checkpoint.read(path))) != crc32:
        raise UserError(f"--out={out}: other weights are published there; choose another directory")
    checkpoint.write(path, for_sampling(contents) | {"noise": measured, "provenance": provenance})
    config = json.loads(contents["config"]) | {"provenance": provenance}
    (out / RUN_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    rows = [row for row in read_json_lines(workdir / "metrics.jsonl") if "event" not in row]  # events repeat the command
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main() -> int:
    """Publish what the flags name."""
    path = publish(flags.FLAGS.workdir, flags.FLAGS.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    define_path_flag("workdir", "Run directory that train.py made.", required=True)
    define_path_flag("out", "Directory to write to.", required=True)
    run(main)
