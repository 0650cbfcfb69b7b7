"""What a run directory or a checkpoint holds, ours or the release's.

python -m scripts.tools.show_run PATH [--json]

Nothing in the files is run, and no model is built.
"""

import sys

if not __package__:
    # Where this folder is searched for modules, this file takes the place of Python's own `inspect`, which PyTorch needs.
    sys.exit("error: modules of scripts/ are run as `python -m scripts.tools.show_run`, in the project's folder")

import argparse
import importlib
import json
import shlex
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from scripts import checkpoint
from scripts.config import ROOT, fail, flatten, to_json
from scripts.errors import UserError, printable
from scripts.io import read_json_lines, user_path
from scripts.provenance import json_hash

Facts = dict[str, Any]


def main() -> int:
    """Look and print."""
    parser = argparse.ArgumentParser(prog="python -m scripts.tools.show_run", description="What a run or a checkpoint holds.")
    parser.add_argument("path", help="run directory, or .pth file of this program or of the original release")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.error = fail  # type: ignore[assignment, method-assign]  # one line, as everywhere
    arguments = parser.parse_args()
    try:
        facts = inspect(user_path(arguments.path, "PATH"))
    except (UserError, OSError) as error:
        fail(error)
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(lines(facts)))
    return 0


def inspect(path: Path) -> Facts:
    """The facts about a run directory or a checkpoint, as plain data. Raises UserError for anything else."""
    if path.is_dir():
        return run_facts(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or directory")
    return checkpoint_facts(path)


def run_facts(workdir: Path) -> Facts:
    """Checkpoints, configuration, last metrics and samples of a run. Raises UserError for a directory that is none."""
    found = [
        checkpoint.meta_path(workdir),
        checkpoint.previous_path(workdir),
        *sorted((workdir / "checkpoints").glob("checkpoint_*.pth"), key=lambda path: (len(path.name), path.name)),
    ]
    found = [path for path in found if path.is_file()]
    config_file = workdir / "config.json"
    if not found and not config_file.is_file():
        raise UserError(f"{workdir}: not a run directory, as it has neither checkpoints nor a config.json")
    facts: Facts = {"path": str(workdir), "kind": "run directory", "checkpoints": [_brief(workdir, path) for path in found]}
    if config_file.is_file():
        try:
            config = json.loads(config_file.read_text())
            facts |= config_facts(config, config.pop("provenance", None))
        except (ValueError, AttributeError, TypeError, RecursionError):
            raise UserError(f"{config_file}: damaged, not a configuration as JSON") from None
    rows = read_json_lines(workdir / "metrics.jsonl")
    facts["events"] = [row for row in rows if "event" in row]
    facts["metrics"] = {
        name: {"step": row.get("step"), "value": value}
        for row in rows
        if "event" not in row
        for name, value in row.items()
        if name != "step"
    }
    # A folder of samples is one that has a picture of them.
    pictures = sorted({path.parent for name in ("final.png", "interpolation.png") for path in workdir.glob(f"*/*/**/{name}")})
    facts["samples"] = [str(path.relative_to(workdir)) for path in pictures]
    return facts


def _brief(workdir: Path, path: Path) -> Facts:
    facts: Facts = {"name": str(path.relative_to(workdir)), **_file_facts(path)}
    try:
        return facts | {"step": checkpoint.read(path)["step"]}
    except UserError as error:
        return facts | {"problem": str(error)}


def _file_facts(path: Path) -> Facts:
    status = path.stat()
    written = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
    return {"bytes": status.st_size, "written": written}


def checkpoint_facts(path: Path) -> Facts:
    """What a checkpoint holds, all of it read and compared with its checksums. Raises UserError if it is none or damaged."""
    contents = checkpoint.read(path)
    release = checkpoint.is_release(contents)
    ema = contents["ema"]
    shadow = ema["shadow_params"] if release else list(ema["shadow"].values())
    facts: Facts = {
        "path": str(path),
        "kind": "checkpoint of the original release" if release else "checkpoint of this program",
        **_file_facts(path),
        "step": contents["step"],
        "parameters": sum(weight.numel() for weight in shadow),
        "sizes": {
            "model": tensor_bytes(contents.get("model")),
            "ema": tensor_bytes(shadow),
            "optimizer": tensor_bytes(contents.get("optimizer")),
            "prior": tensor_bytes(contents.get("prior")),
        },
    }
    if "prior" in contents:
        coefficients = contents["prior"]["coefficients"]
        facts["prior"] = {"images": len(coefficients), "coefficients_per_channel": coefficients.shape[2]}
    if "config" in contents and not release:
        facts |= config_facts(json.loads(contents["config"]), contents.get("provenance"))
    return facts


def tensor_bytes(state: object) -> int:
    """Bytes of all tensors in nested dictionaries and lists, each counted once however often it is in there."""
    found: dict[int, object] = {}
    left = [state]
    while left:
        value = left.pop()
        if id(value) not in found:
            found[id(value)] = value
            left += value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(value.numel() * value.itemsize for value in found.values() if isinstance(value, torch.Tensor))


def config_facts(config: dict[str, Any], provenance: Facts | None) -> Facts:
    """A configuration's checksum and what it changes: of configs/default.py, and of the experiment file in the command."""
    facts: Facts = {
        "config": config,
        "config_hash": json_hash(json.dumps(config)),
        "differences": {"configs/default.py": config_differences("configs.default", config)},
    }
    experiment = experiment_file((provenance or {}).get("command"))
    if experiment is not None:
        module = ".".join(experiment.with_suffix("").parts)
        facts["differences"][experiment.as_posix()] = config_differences(module, config)
    return facts | {"provenance": provenance}


def config_differences(module: str, config: dict[str, Any]) -> dict[str, list[Any]]:
    """{"model.K": [the base's value, this one]} of a configuration and what a module of configs/ says; None where absent."""
    base = dict(flatten(json.loads(to_json(importlib.import_module(module).get_config()))))
    own = dict(flatten(config))
    return {key: [base.get(key), own.get(key)] for key in sorted(base.keys() | own.keys()) if base.get(key) != own.get(key)}


def experiment_file(command: object) -> Path | None:
    """The project's own experiment file in a command line, relative to its root; None for any other.

    A configuration file is a program: one that only a checkpoint names must not be run.
    """
    try:
        words = shlex.split(str(command))
    except ValueError:
        return None
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in ("--config", "-config"):
            given = (value or following).replace("\\", "/")
            for path in (ROOT / "configs").glob("*/*.py"):
                own = path.relative_to(ROOT)
                if f"/{given}".endswith(f"/{own.as_posix()}"):
                    return own
    return None


def lines(facts: Facts) -> list[str]:
    """The facts for people."""
    text = [f"{facts['path']}: {facts['kind']}"]
    if "step" in facts:
        text += [
            f"  step         {facts['step']}",
            f"  file         {megabytes(facts['bytes'])}, written {facts['written']}",
            f"  parameters   {facts['parameters']:,}",
            f"  sizes        {', '.join(f'{name} {megabytes(size)}' for name, size in facts['sizes'].items())}",
        ]
    if "prior" in facts:
        prior = facts["prior"]
        text.append(f"  prior bank   {prior['images']} images, {prior['coefficients_per_channel']} coefficients a channel")
    for found in facts.get("checkpoints", []):
        what = f"step {found['step']}" if "step" in found else found["problem"]
        text.append(f"  {found['name']:<40} {what}, {megabytes(found['bytes'])}, written {found['written']}")
    if "config_hash" in facts:
        text.append(f"configuration {facts['config_hash']}")
        for base, changes in facts["differences"].items():
            text.append(f"  {'differences from' if changes else 'as'} {base}" + (", there and here:" if changes else ""))
            text += [f"    {key:<40} {there!s:<16} {here}" for key, (there, here) in changes.items()]
    elif facts["kind"].startswith("checkpoint"):
        text.append("no configuration in it")
    if facts.get("provenance"):
        text.append("made by")
        text += [f"  {name:<12} {_inline(value)}" for name, value in facts["provenance"].items()]
    if facts.get("events"):
        text.append("history")
        text += [f"  step {row.get('step')}: {row['event']} {row.get('time', '')}" for row in facts["events"]]
    if facts.get("metrics"):
        text.append("last metrics")
        text += [f"  {name:<28} {last['value']}  (step {last['step']})" for name, last in facts["metrics"].items()]
    if facts.get("samples"):
        text.append("samples")
        text += [f"  {name}" for name in facts["samples"]]
    return [printable(line) for line in text]


def _inline(value: object) -> str:
    return ", ".join(f"{name} {inner}" for name, inner in value.items()) if isinstance(value, dict) else str(value)


def megabytes(size: int) -> str:
    """Bytes as "4.4 MB"."""
    return f"{size / 1e6:.1f} MB"


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # ends quietly where `head` has read enough
    sys.exit(main())
