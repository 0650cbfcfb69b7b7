"""Tables and a picture of what docs/processes.sh measured so far: python docs/processes.py DIR.

For each data set a table, as Markdown: one row for a process, kernel and kind of steps, one column
for a number of network calls; means over training seeds, with the standard error of the evaluation
and, of several seeds, their standard deviation. frechet.png has them as curves.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from scripts.sampling.output import save_png

Rows = dict[tuple[str, str], dict[int, list[tuple[float, float]]]]
"""By data set and label: values and standard errors of each training seed by network calls."""
EXTRACTOR = "robust_classifier"


def read(out: Path, score: str) -> Rows:
    """Return the values of a score in DIR/DATA/PROCESS-SEED/evaluation/results.jsonl."""
    rows: Rows = defaultdict(lambda: defaultdict(list))
    for path in sorted(out.glob("*/*-*/evaluation/results.jsonl")):
        data, name = path.parts[-4:-2]
        process = name.rpartition("-")[0]
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["score"] != score or row.get("features_extractor") not in (None, EXTRACTOR):
                continue
            steps = len(row["chain"]) - 1
            sampler = row.get("sampler", "reverse")
            calls = 2 * steps - 1 if sampler == "heun" else steps
            kind = row["delta"] if sampler == "reverse" else sampler
            rows[data, f"{process}, {kind}"][calls].append((row["value"], row["standard_error"]))
    return rows


def cell(values: list[tuple[float, float]]) -> str:
    """Return the mean over seeds with both errors."""
    mean = np.mean([value for value, _ in values])
    error = np.sqrt(np.sum([error**2 for _, error in values])) / len(values)
    text = f"{mean:.1f} +- {error:.1f}" if mean >= 10 else f"{mean:.3f} +- {error:.3f}"
    if len(values) == 1:
        return text
    return f"{text} ({np.std([value for value, _ in values], ddof=1):.2g})"


def table(rows: Rows, data: str) -> str:
    """Markdown."""
    ours = {label: columns for (of, label), columns in rows.items() if of == data}
    calls = sorted({number for columns in ours.values() for number in columns})
    lines = [f"| {data} | " + " | ".join(map(str, calls)) + " |", "|---" * (len(calls) + 1) + "|"]
    for label, columns in ours.items():
        cells = [cell(columns[number]) if number in columns else "" for number in calls]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: Rows, path: Path) -> None:
    """Curves of each data set."""
    names = sorted({data for data, _ in rows})
    figure = Figure(figsize=(8 * len(names), 4.5), layout="constrained")
    for axes, data in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for (of, label), columns in rows.items():
            if of == data:
                calls = sorted(columns)
                means = [np.mean([value for value, _ in columns[number]]) for number in calls]
                errors = [np.mean([error for _, error in columns[number]]) for number in calls]
                axes.errorbar(calls, means, errors, fmt="o-", ms=4, capsize=3, label=label)
        axes.set(xlabel="network calls", ylabel="Frechet distance, % of variance", title=data)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    figure.savefig(path, dpi=110)


def draw_samples(out: Path, data: str) -> None:
    """samples_DATA.png: a row of the first 16 samples of each arm, in the order of their names."""
    rows = []
    for path in sorted(out.glob(f"{data}/*-1/additional_samples/*/delta_*_steps_25/final.npy")):
        print(f"row {len(rows) + 1} of samples_{data}.png: {path.parts[-5]}")
        rows.append(torch.from_numpy(np.load(path))[:16])
    if rows:
        save_png(out / f"samples_{data}.png", torch.cat(rows), 16)


def main(out: Path) -> None:
    """Print all tables, draw the picture."""
    for score in ("FID", "BPD"):
        rows = read(out, score)
        for data in sorted({data for data, _ in rows}):
            print(f"\n{score}\n\n{table(rows, data)}")
    fid = read(out, "FID")
    draw(fid, out / "frechet.png")
    for data in sorted({data for data, _ in fid}):
        draw_samples(out, data)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
