"""Runs side by side: what differs in their configurations, and their scores over training seeds.

python -m scripts.tools.compare RUN... --out DIR [--scores=FID,BPD]

Runs that differ in nothing but the seed are one arm. Writes to DIR every score of every run as
`scores.csv`, the table as `scores.txt`, and a picture as `scores.png`.
"""

import csv
import math
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.stats import t as student_t

from scripts.config.flags import Values, run
from scripts.config.load import RUN_CONFIG, flatten, from_json, load
from scripts.config.paths import user_path
from scripts.data.datasets import require_outside_data
from scripts.errors import UserError
from scripts.estimate import Z95
from scripts.evaluation.results import RESULTS, is_set, save_figure
from scripts.storage.files import atomic_write, make_directory, read_json_lines, write_text

CAPTION = (
    "mean +- half of the 95% interval by Student's t over n trainings, of one training by its "
    "evaluation; each +-: standard error of an evaluation; differences are paired by training seed"
)
NOT_OF_AN_ARM = {"seed", "device", "data.num_workers"}
"""Keys in which runs of one arm may differ."""
SETTINGS = (
    "delta",
    "steps",
    "sampler",
    "guidance",
    "guidance_interval",
    "init",
    "per_init",
    "from_level",
    "num_images",
    "reference",
    "features_extractor",
    "features_mode",
    "dataset_split",
    "k",
    "exact",
    "num_levels_per_image",
    "dequantized",
    "precision",
    "images_crc32",
    "reference_crc32",
    "train_crc32",
)
"""What scores have in common that are compared."""
OF_A_RUN = (
    "calibration_images",
    "calibration_precision",
    "weights_crc32",
    "kernel_crc32",
    "samples_crc32",
    "other_images",
    "key",
)
"""What differs between runs, and tells scores of one run apart where nothing else does."""
COLUMNS = (
    "arm",
    "run",
    "training_seed",
    "score",
    "checkpoint_step",
    "value",
    "standard_error",
    "seed",
    *SETTINGS,
    *OF_A_RUN,
    "finished",
)


def arms_of(runs: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str], list[str]]:
    """Their configurations by "section.key", the keys in which they differ, and for each the arm,
    named by its values of these.

    Raises UserError for what is not a run directory, and for runs that are the same.
    """
    configs = []
    for path in runs:
        if not (path / RUN_CONFIG).is_file():
            raise UserError(f"{path}: not a run directory, it has no {RUN_CONFIG}")
        file = path / RUN_CONFIG
        configs.append(dict(flatten(from_json(file.read_text(), str(file)))))
    keys = [key for key in configs[0] if len({str(config[key]) for config in configs}) > 1]
    shown = [key for key in keys if key not in NOT_OF_AN_ARM]
    arms = [
        ", ".join(f"{key.rpartition('.')[2]} {config[key]}" for key in shown) or "all"
        for config in configs
    ]
    first: dict[tuple[str, int], Path] = {}
    for path, arm, config in zip(runs, arms, configs, strict=True):
        same = arm, config["seed"]
        if same in first:
            what = f"has the configuration and the seed of {first[same]}"
            raise UserError(f"{path}: {what}; leave one out")
        first[same] = path
    return configs, keys, arms


def read_scores(
    runs: Sequence[Path], seeds: Sequence[int], arms: Sequence[str]
) -> list[dict[str, Any]]:
    """What evaluate.py wrote down in the runs, of repetitions the last, as rows with `COLUMNS` and
    a "setting".
    """
    latest: dict[tuple[str, ...], dict[str, Any]] = {}
    for path, seed, arm in zip(runs, seeds, arms, strict=True):
        for row in read_json_lines(path / RESULTS):
            calls = len(row.get("chain", ())) - 1
            if "steps" not in row and calls >= 0 and calls != row["model"]["K"]:
                row["steps"] = str(calls)
            row |= {"arm": arm, "run": str(path), "training_seed": seed}
            same = ("run", "score", "checkpoint_step", "seed", "key", *SETTINGS)
            latest[tuple(str(row.get(key)) for key in same)] = row
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in latest.values():
        for key in SETTINGS:
            values[row["score"], key].add(str(row[key]) if is_set(row, key) else "")
    for row in latest.values():
        row["setting"] = row["score"]
        for key in SETTINGS:
            if len(values[row["score"], key]) > 1 and is_set(row, key):
                row["setting"] += f", {key} {row[key]}"
    tell_apart(list(latest.values()))
    return sorted(latest.values(), key=lambda row: (row["setting"], row["checkpoint_step"]))


def tell_apart(rows: Sequence[dict[str, Any]]) -> None:
    """Add to the "setting" of scores of one run that are no repetitions, and only look alike, the
    first thing that differs.
    """
    alike: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        alike[row["run"], row["setting"], row["checkpoint_step"], row["seed"]].append(row)
    for group in alike.values():
        if len(group) == 1:
            continue
        differing = [
            key for key in OF_A_RUN if len({str(row.get(key)) for row in group}) == len(group)
        ]
        for row in group:
            row["setting"] += f", {differing[0]} {row.get(differing[0])}"


class Score(NamedTuple):
    """A value, and the standard error of evaluating it, NaN where it is not known."""

    value: float
    error: float


Curves = dict[int, dict[int, Score]]
"""A score by training seed and step."""


def curves(rows: Sequence[dict[str, Any]], setting: str, arm: str) -> Curves:
    """Those of one arm; evaluations that differ in their seed alone are averaged."""
    scores: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        if (row["setting"], row["arm"]) == (setting, arm):
            scores[row["training_seed"], row["checkpoint_step"]].append(row)
    by_seed: Curves = defaultdict(dict)
    for (seed, step), repetitions in scores.items():
        errors = [row.get("standard_error") or math.nan for row in repetitions]
        mean = statistics.fmean(row["value"] for row in repetitions)
        by_seed[seed][step] = Score(mean, math.hypot(*errors) / len(errors))
    return dict(by_seed)


def newest(by_seed: Curves) -> dict[int, Score]:
    """By training seed, of the newest checkpoint that was evaluated."""
    return {seed: curve[max(curve)] for seed, curve in by_seed.items()}


def mean_and_interval(scores: Sequence[Score]) -> tuple[float, float]:
    """The mean over trainings and half of its 95% interval, by Student's t; of one training by the
    error of its evaluation.
    """
    values = [score.value for score in scores]
    if len(values) == 1:
        return values[0], Z95 * scores[0].error
    quantile = float(student_t.ppf(0.975, len(values) - 1))
    return statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(len(values))


def cell(scores: Sequence[Score]) -> str:
    """Mean, interval, number of trainings and the error of an evaluation, as text."""
    if not scores:
        return "-"
    mean, half = mean_and_interval(scores)
    error = math.hypot(*(score.error for score in scores)) / math.sqrt(len(scores))
    each = f", each +- {error:.2g}" if math.isfinite(error) else ""
    interval = f" +- {half:.2g}" if math.isfinite(half) else ""
    return f"{mean:.4g}{interval} (n = {len(scores)}{each})"


def paired(first: dict[int, Score], other: dict[int, Score]) -> list[Score]:
    """Differences of the trainings with the same seed."""
    pairs = [(first[seed], other[seed]) for seed in first if seed in other]
    return [Score(b.value - a.value, math.hypot(a.error, b.error)) for a, b in pairs]


def table(
    rows: Sequence[dict[str, Any]], settings: Sequence[str], arms: Mapping[str, str]
) -> Iterator[list[str]]:
    """For each score at the newest checkpoints a cell by arm, and of differences from the first
    arm, paired by seed.
    """
    letters = list(arms)
    yield ["", *letters, *(f"{letter} - A" for letter in letters[1:])]
    for setting in settings:
        of_arms = [curves(rows, setting, arm) for arm in arms.values()]
        steps = sorted({max(curve) for by_seed in of_arms for curve in by_seed.values()})
        if len(steps) > 1:
            setting = f"{setting} (at steps {steps}: not equally trained)"
        first, *others = all_arms = [newest(by_seed) for by_seed in of_arms]
        differences = [cell(paired(first, other)) for other in others]
        yield [setting, *(cell([*scores.values()]) for scores in all_arms), *differences]


def draw(
    path: Path, rows: Sequence[dict[str, Any]], settings: Sequence[str], arms: Mapping[str, str]
) -> None:
    """Write a picture with a panel for each score: means with 95% intervals by arm, or over
    checkpoints if several were evaluated, and each training as a small point.
    """
    width = min(3, len(settings))
    height = math.ceil(len(settings) / width)
    figure = Figure(figsize=(3.6 * width, 3 * height + 0.25 * len(arms)), layout="constrained")
    panels = iter(figure.subplots(height, width, squeeze=False).flat)
    for setting in settings:
        axes = next(panels)
        of_arms = [curves(rows, setting, arm) for arm in arms.values()]
        over_steps = any(len(curve) > 1 for by_seed in of_arms for curve in by_seed.values())
        for i, by_seed in enumerate(of_arms):
            steps = sorted({step for curve in by_seed.values() for step in curve})
            at = {
                step: [curve[step] for curve in by_seed.values() if step in curve]
                for step in (steps if over_steps else steps[-1:])
            }
            if not at:  # this arm has no such score
                continue
            x = list(at) if over_steps else [i] * len(at)
            means = [mean_and_interval(scores) for scores in at.values()]
            color = f"C{i}"
            axes.errorbar(x, *zip(*means, strict=True), fmt="o-", capsize=4, color=color)
            for place, scores in zip(x, at.values(), strict=True):
                values = [score.value for score in scores]
                axes.plot([place] * len(values), values, "_", color=color, alpha=0.5)
        if over_steps:
            axes.set_xlabel("step")
        else:
            axes.set(xticks=range(len(arms)), xticklabels=list(arms))
            axes.margins(x=0.2)
        axes.set_title("\n".join(textwrap.wrap(setting, 40)), fontsize="small")
        axes.grid(alpha=0.3)
    for axes in panels:
        axes.remove()
    handles = [Line2D([], [], marker="o", color=f"C{i}") for i in range(len(arms))]
    names = [f"{letter}: {arm}" for letter, arm in arms.items()]
    figure.legend(handles, names, loc="outside lower left", fontsize="small", frameon=False)
    save_figure(figure, path)


def write(out: Path, rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    """Write tables and picture; `arms` each once, which letters stand for. Returns the table as
    text.
    """
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    by_letter = {chr(ord("A") + i): arm for i, arm in enumerate(arms)}
    cells = list(table(rows, settings, by_letter))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    names = [f"{letter}: {arm}" for letter, arm in by_letter.items()]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
    text = "\n".join([*names, *lines, CAPTION])
    make_directory(out, "--out")
    write_text(out / "scores.txt", text + "\n")
    with atomic_write(out / "scores.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(out / "scores.png", rows, settings, by_letter)
    return text


def main(flags: Values) -> int:
    """Compare the runs that were named."""
    runs = [user_path(text, "RUN") for text in flags.run]
    configs, keys, arms = arms_of(runs)
    for path in runs:
        require_outside_data(flags.out, "--out", load(str(path / RUN_CONFIG)).data)
    rows = read_scores(runs, [config["seed"] for config in configs], arms)
    if not rows:
        raise UserError(
            f"{', '.join(map(str, runs))}: no {RESULTS} in them yet; evaluate.py adds scores"
        )
    if flags.scores:
        wanted = flags.scores.split(",")
        known = {row["score"] for row in rows}
        if missing := [score for score in wanted if score not in known]:
            listed = f"there are {', '.join(sorted(known))}"
            raise UserError(f"--scores={flags.scores}: no {missing[0]} in these runs; {listed}")
        rows = [row for row in rows if row["score"] in wanted]
    for key in keys:
        values = zip(configs, runs, strict=True)
        print(f"{key}: " + ", ".join(f"{config[key]} ({path.name})" for config, path in values))
    print(write(flags.out, rows, list(dict.fromkeys(arms))))
    print(f"tables and pictures: {flags.out}")
    return 0


if __name__ == "__main__":
    run("compare", main, positional="run")
