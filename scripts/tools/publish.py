"""Make a small copy of a run to give away: averaged weights, configuration, prior, calibration,
metrics and a model card.

python -m scripts.tools.publish --workdir RUN --out DIR [--license=mit] [--about=TEXT.md]

sample.py, evaluate.py and the report read DIR as any other run directory; train.py refuses to
continue from it. The same command again updates the card. Of paths, which may be private, only the
last part is published; of training images, what the prior holds.
"""

import json
import re
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from configs import default
from scripts.config.flags import Values, run
from scripts.config.load import RUN_CONFIG, flatten, to_json
from scripts.errors import UserError, one_line
from scripts.evaluation.results import RESULTS, SAMPLING, shown
from scripts.sampling.output import save_png
from scripts.sampling.sampler import load_sampler
from scripts.storage import checkpoint
from scripts.storage.checkpoint import Contents, for_sampling
from scripts.storage.files import make_directory, read_json_lines, write_text
from scripts.storage.published import write_published

CARD, MARKER = "README.md", "<!-- written by scripts.tools.publish -->"
SHOWN = {
    "delta": "{}",
    "steps": "steps {}",
    **SAMPLING,
    "features_extractor": "{}",
    "reference": "{}",
    "seed": "seed {}",
    "precision": "{}",
}
"""Settings of a score that the card has, and how."""
NO_PATHS = {"group_pattern", "device"}
"""Keys whose slashes are none of a path's: a regular expression, the name of a processor."""


def publish(workdir: Path, out: Path) -> Path:
    """Write a run's newest weights with what sampling needs, `config.json` and `metrics.jsonl` to
    `out`; the path of the weights is returned.

    Raises UserError if there is nothing to publish or `out` holds anything else.
    """
    path, contents = checkpoint.read_newest(workdir) or (None, None)
    if path is None or contents is None or "config" not in contents:
        raise UserError(f"--workdir={workdir}: there is no checkpoint of this program in it")
    crc32 = checkpoint.weights_crc32(contents)
    _refuse_others(out, crc32)
    calibration = checkpoint.read_calibration(
        path, contents.get("calibration"), contents["step"], crc32
    )
    published = without_folders(for_sampling(contents) | {"calibration": calibration})
    path = write_published(make_directory(out, "--out"), published, crc32)
    provenance = published.get("provenance", {})  # earlier versions had none
    config = json.loads(published["config"]) | {"provenance": provenance}
    write_text(out / RUN_CONFIG, json.dumps(config, indent=2) + "\n")
    rows = read_json_lines(checkpoint.run_directory(workdir) / "metrics.jsonl")
    rows = [row for row in without_folders(rows) if "event" not in row]  # events repeat the command
    write_text(out / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return path


def _refuse_others(out: Path, crc32: int) -> None:
    """Raise UserError if a directory holds a run, other weights, or a card that somebody wrote."""
    if checkpoint.meta_path(out).exists():
        raise UserError(
            f"--out={out}: there is a run in it that can be trained further; choose another "
            "directory"
        )
    _, there = checkpoint.read_newest(out) or (None, None)
    if there is not None and checkpoint.weights_crc32(there) != crc32:
        raise UserError(f"--out={out}: other weights are published there; choose another directory")
    card = out / CARD
    if card.exists() and MARKER not in card.read_text(errors="replace"):
        raise UserError(f"{card}: was not written by this command; move it")
    if there is None and out.exists() and any(out.iterdir()):
        raise UserError(f"--out={out}: there are other files in it; choose a new directory")


def write_card(workdir: Path, out: Path, license: str, about: str, samples: int) -> None:
    """Write `README.md`, a model card, about what was published in `out`.

    about: more text; samples: how many to draw for the card.
    """
    sampler, trained = load_sampler(out)
    config = trained.experiment.config
    if samples:
        save_png(out / "samples.png", sampler.independent(range(samples)))
    defaults = dict(flatten(json.loads(to_json(default.get_config()))))
    values = dict(flatten(json.loads(to_json(config))))
    contents = checkpoint.read(trained.path)
    provenance = contents.get("provenance", {})
    channels, height, width = sampler.shape
    environment = Environment(  # plain text: nothing is escaped
        loader=FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("card.md.jinja").render(
        marker=MARKER,
        name=out.resolve().name,
        license=license,
        about=about,
        data=config.data.dataset,
        shape=f"{height} x {width} x {channels}",
        model=config.model,
        process=f"{config.model.process}: {trained.experiment.process}",
        parameters=sum(weight.numel() for weight in trained.model.parameters()),
        step=trained.step,
        prior=describe_prior(contents),
        command=provenance.get("command", "unknown"),
        commit=(provenance.get("commit") or "")[:10],
        samples=samples,
        sampled=f"{sampler.num_steps} steps, delta {sampler.label}, seed {sampler.seed}",
        scores=scores_of(workdir, trained.weights_crc32),
        config={key: value for key, value in values.items() if value != defaults[key]},
    )
    write_text(out / CARD, text)


def read_about(path: Path) -> str:
    """The text for the card. Raises UserError for what is no text."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--about={path}: must be a text file ({one_line(error)})") from None


def scores_of(workdir: Path, weights_crc32: int) -> list[dict[str, Any]]:
    """Return what was measured with these weights, each once, as rows of the card."""
    rows = read_json_lines(checkpoint.run_directory(workdir) / RESULTS)
    latest = {(row["key"], row["score"]): row for row in rows if "key" in row}
    return [
        row
        | {
            "steps": len(row["chain"]) - 1 if "chain" in row else "",
            "settings": ", ".join(shown(row, SHOWN)),
        }
        for row in latest.values()
        if row.get("weights_crc32") == weights_crc32
    ]


def without_folders(value: Any, key: str = "") -> Any:
    """Return the same plain data with only the last part of every path. key: what `value` is
    called.
    """
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
    """Return the last part of a path, also after "--flag="; the program's own configurations keep
    their folder.
    """
    parts = text.split("=")
    for i, part in enumerate(parts):
        if not part.startswith("configs/"):
            parts[i] = part.rstrip("/").rpartition("/")[2]
    return "=".join(parts)


def describe_prior(contents: Contents) -> str | None:
    """Return what a checkpoint's prior tells of the training images; None if nothing."""
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
    if not re.fullmatch(r"[\w.+-]*", flags.license):
        shown = one_line(flags.license)
        raise UserError(f"--license={shown}: must be a name such as mit or cc-by-4.0")
    about = "" if flags.about is None else read_about(flags.about)
    path = publish(flags.workdir, flags.out)
    write_card(flags.workdir, flags.out, flags.license, about, flags.num_samples)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    if (prior := describe_prior(checkpoint.read(path))) is not None:
        print(prior)
    return 0


if __name__ == "__main__":
    run("publish", main)
