"""Tables and pictures of what docs/processes.sh measured so far: PYTHONPATH=. python
docs/processes.py DIR.

As Markdown: for each data set and score one row for a process and kind of steps, one column for a
number of network calls; then the same with 25 calls by steps of training, and what else was
measured with 25 calls. Means over training seeds, with the standard error of the evaluation and, of
several seeds, their standard deviation. frechet.png has the first as curves, samples_DATA.png a row
of samples for each process, training_DATA.png for each length of training.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from scripts.sampling.output import save_png

EXTRACTOR = "robust_classifier"
CALLS = 25
"""Where more is measured."""
STEPS = 1600
"""Of training, where a directory's name says none."""
DISTANCE, BOUND, FINE, SECONDS = "FID", "BPD", "finest octave", "seconds a sample"
OTHERS = {
    "VarianceRatio": "variance over the data's",
    FINE: "of the finest octave",
    "NearestRatio": "distance to the nearest training picture over held-out pictures'",
    SECONDS: SECONDS,
}
NAMES = {
    "heat": "heat dissipation",
    "blurring": "blurring diffusion",
    "gaussian": "Gaussian diffusion",
    "flow": "flow matching",
}
KINDS = {
    "eta_0": "deterministic",
    "posterior": "ancestral",
    "heun": "Heun",
    "0.125": "isotropic (1.25 sigma)",
}
LINES = {
    "deterministic": "o--",
    "ancestral": "s--",
    "deterministic, multistep": "o-",
    "ancestral, multistep": "s-",
    "Heun": "v:",
    "calibrated": "D-",
    "isotropic (1.25 sigma)": "x",
}
"""How each kind of steps is drawn."""
Values = dict[str, tuple[float, float]]
"""A value and its standard error by training seed."""
Rows = dict[str, dict[str, dict[int, Values]]]
"""By score, process with kind of steps, and number of network calls."""


def measured(row: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    """Scores, values and standard errors that a row of results has."""
    score, value, error = row["score"], row["value"], row["standard_error"]
    if score != DISTANCE or row["features_extractor"] == EXTRACTOR:
        yield score, value, error
    if score == DISTANCE:
        yield SECONDS, row["seconds"] / row["num_images"], math.nan
    if score == "VarianceRatio":
        finest = next(iter(row["by_octave"].values()))
        relative = math.log(10) / 10 * finest["standard_error_dB"]
        yield FINE, finest["ratio"], finest["ratio"] * relative


def name(process: str) -> str:
    """Return what it is called, of "flow_8" with the largest blur."""
    kind, _, blur = process.partition("_")
    return NAMES[kind] + (f" ({blur} pixels)" if blur else "")


def read(directory: Path) -> Rows:
    """Return what was measured in DIR/DATA/PROCESS-SEED; the last of what was measured twice."""
    rows: Rows = defaultdict(lambda: defaultdict(lambda: defaultdict(dict)))
    for path in sorted(directory.glob("*-*/evaluation/results.jsonl")):
        process, _, seed = path.parts[-3].rpartition("-")
        for line in path.read_text().splitlines():
            row = json.loads(line)
            steps = len(row["chain"]) - 1
            sampler = row.get("sampler")
            kind = "heun" if sampler == "heun" else row["delta"]
            label = f"{name(process)}, {KINDS.get(kind, kind)}"
            if sampler == "multistep":
                label += ", multistep"
            calls = 2 * steps - 1 if sampler == "heun" else steps
            for score, value, error in measured(row):
                rows[score][label][calls][seed] = value, error
    return rows


def cell(values: Values | None) -> str:
    """Return the mean over seeds with both errors."""
    if not values:
        return ""
    means, errors = zip(*values.values(), strict=True)
    mean, error = np.mean(means), math.hypot(*errors) / len(errors)
    digits = 1 if mean >= 10 else 2
    text = f"{mean:.{digits}f}"
    if not math.isnan(error):
        text += f" +- {error:.{digits}f}"
    if len(values) > 1:
        text += f" ({np.std(means, ddof=1):.2g})"
    return text


def table(title: str, columns: list[Any], cells: dict[str, list[str]]) -> str:
    """Markdown."""
    lines = [f"| {title} | " + " | ".join(map(str, columns)) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    lines += [f"| {label} | " + " | ".join(texts) + " |" for label, texts in cells.items()]
    return "\n".join(lines)


def by_calls(data: str, score: str, rows: Rows) -> str:
    """A score over numbers of network calls."""
    calls = sorted({number for measured in rows[score].values() for number in measured})
    cells = {
        label: [cell(measured.get(number)) for number in calls]
        for label, measured in rows[score].items()
    }
    return table(f"{data}, {score}, network calls", calls, cells)


def lengths_of(data: str, found: Iterable[str]) -> dict[int, str]:
    """Directories of a data set by the steps of training in their names, ascending."""
    of_data = [name.partition("_") for name in found]
    lengths = {
        int(steps or STEPS): data + mid + steps for name, mid, steps in of_data if name == data
    }
    return dict(sorted(lengths.items()))


def by_training(data: str, found: dict[str, Rows]) -> str:
    """Distances with 25 calls over steps of training; the first seed's."""
    lengths = lengths_of(data, found)
    cells = {}
    for label in found[lengths[max(lengths)]][DISTANCE]:
        of_label = [found[name][DISTANCE].get(label, {}) for name in lengths.values()]
        values = [row.get(CALLS, {}).get("1") for row in of_label]
        cells[label] = [cell(value and {"1": value}) for value in values]
    return table(f"{data}, {DISTANCE}, {CALLS} calls, steps of training", list(lengths), cells)


def others(data: str, rows: Rows) -> str:
    """What else was measured with 25 calls."""
    cells = {
        label: [cell(rows[score][label].get(CALLS)) for score in OTHERS]
        for label in rows["VarianceRatio"]
    }
    return table(f"{data}, {CALLS} calls", list(OTHERS.values()), cells)


def draw(found: dict[str, Rows], path: Path) -> None:
    """Curves of each data set."""
    figure = Figure(figsize=(8 * len(found), 4.5), layout="constrained")
    places = figure.subplots(1, len(found), squeeze=False)[0]
    colours: dict[str, str] = {}
    for axes, (data, rows) in zip(places, found.items(), strict=True):
        for label, columns in rows[DISTANCE].items():
            if len(columns) == 1:
                continue  # no curve
            process, _, kind = label.partition(", ")
            colour = colours.setdefault(process, f"C{len(colours)}")
            calls = sorted(columns)
            values = [np.mean(list(columns[number].values()), 0) for number in calls]
            means, errors = zip(*values, strict=True)
            axes.errorbar(
                calls, means, errors, fmt=LINES[kind], c=colour, ms=4, capsize=3, label=label
            )
        axes.set(xlabel="network calls", ylabel="Frechet distance, % of variance", title=data)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


def draw_samples(runs: Iterable[Path], path: Path) -> None:
    """A row of the first 16 samples of each run."""
    rows: list[torch.Tensor] = []
    for run in runs:
        kind = "" if run.name.startswith("heat") else "_multistep"
        for states in run.glob(f"additional_samples/*/delta_*_steps_{CALLS}{kind}/final.npy"):
            print(f"row {len(rows) + 1} of {path.name}: {run.name}, {run.parent.name}")
            rows.append(torch.from_numpy(np.load(states))[:16])
    if rows:
        save_png(path, torch.cat(rows), 16)


def main(out: Path) -> None:
    """Print all tables, draw the pictures."""
    found = {directory.name: read(directory) for directory in sorted(out.iterdir())}
    found = {data: rows for data, rows in found.items() if rows}
    compared = {data: rows for data, rows in found.items() if "_" not in data}
    for data, rows in compared.items():
        for score in (DISTANCE, BOUND):
            print(f"\n{by_calls(data, score, rows)}")
        print(f"\n{others(data, rows)}\n")
        draw_samples(sorted((out / data).glob("*-1")), out / f"samples_{data}.png")
        if len(lengths := lengths_of(data, found)) > 1:
            print(f"\n{by_training(data, found)}\n")
            runs = [
                out / name / f"{kind}-1" for kind in ("heat", "flow_8") for name in lengths.values()
            ]
            draw_samples(runs, out / f"training_{data}.png")
    draw(compared, out / "frechet.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
