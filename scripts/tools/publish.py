"""Make a small copy of a run to give away: averaged weights, configuration, prior, sampling noise
and metrics.

python -m scripts.tools.publish --workdir RUN --out DIR

sample.py, evaluate.py and the report read DIR as any other run directory; train.py refuses to
continue from it. Of paths, which may be private, only the last part is published; of training
images, what the prior holds.
"""

import json
import shlex
from pathlib import Path
from typing import Any

from scripts.config.flags import Values, run
from scripts.config.load import RUN_CONFIG
from scripts.errors import UserError
from scripts.storage import checkpoint
from scripts.storage.checkpoint import Contents, for_sampling
from scripts.storage.files import atomic_write, make_directory, read_json_lines

NO_PATHS = {"group_pattern", "device"}
"""Keys whose slashes are none of a path's: a regular expression, the name of a processor."""


def publish(workdir: Path, out: Path) -> Path:
    """Write `checkpoints/checkpoint_1.pth` (its path is returned), `config.json` and
    `metrics.jsonl` of a run to `out`.

    Raises UserError if there is nothing to publish or `out` is itself a run that can continue.
    """
    path, contents = checkpoint.read_newest(workdir) or (None, None)
    if path is None or contents is None or "config" not in contents:
        raise UserError(f"--workdir={workdir}: there is no checkpoint of this program in it")
    if checkpoint.meta_path(out).exists():
        raise UserError(
            f"--out={out}: there is a run in it that can be trained further; choose another "
            "directory"
        )
    crc32 = checkpoint.weights_crc32(contents)
    calibration = checkpoint.read_calibration(
        path, contents.get("calibration"), contents["step"], crc32
    )
    path = checkpoint.numbered_path(make_directory(out, "--out"), 1)
    if path.exists() and checkpoint.weights_crc32(checkpoint.read(path)) != crc32:
        raise UserError(f"--out={out}: other weights are published there; choose another directory")
    published = without_folders(for_sampling(contents) | {"calibration": calibration})
    checkpoint.write(path, published)
    provenance = published.get("provenance", {})  # earlier versions had none
    config = json.loads(published["config"]) | {"provenance": provenance}
    with atomic_write(out / RUN_CONFIG) as temporary:
        temporary.write_text(json.dumps(config, indent=2) + "\n")
    rows = read_json_lines(workdir / "metrics.jsonl")
    rows = [row for row in without_folders(rows) if "event" not in row]  # events repeat the command
    with atomic_write(out / "metrics.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def without_folders(value: Any, key: str = "") -> Any:
    """The same plain data with only the last part of every path. key: what `value` is called."""
    if isinstance(value, dict):
        return {name: without_folders(part, str(name)) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(without_folders(part, key) for part in value)
    if not isinstance(value, str) or key in NO_PATHS:
        return value
    if key == "config":
        return json.dumps(without_folders(json.loads(value)), indent=2)
    if key == "command":
        return shlex.join(_without_folder(word) for word in shlex.split(value))
    return _without_folder(value)


def _without_folder(text: str) -> str:
    """The last part of a path, also after "--flag="; the program's own configurations keep their
    folder.
    """
    parts = text.split("=")
    for i, part in enumerate(parts):
        if not part.startswith("configs/"):
            parts[i] = part.rstrip("/").rpartition("/")[2]
    return "=".join(parts)


def describe_prior(contents: Contents) -> str | None:
    """What a checkpoint's prior tells of the training images; None if nothing."""
    coefficients = contents.get("prior", {}).get("coefficients")
    if coefficients is None:
        return None
    sigma_B, model = contents.get("sigma_B"), json.loads(contents["config"])["model"]
    blur = model["blur_sigma_max"] if sigma_B is None else sigma_B[-1].item()
    num_images, _, num_kept = coefficients.shape
    images = f"the {num_images} training images (mirror images counted)"
    return f"its prior holds {images}, blurred by {blur:g} pixels: {num_kept} numbers a channel"


def main(flags: Values) -> int:
    """Publish what the flags name."""
    path = publish(flags.workdir, flags.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if (prior := describe_prior(checkpoint.read(path))) is not None:
        print(prior)
    return 0


if __name__ == "__main__":
    run("publish", main)
