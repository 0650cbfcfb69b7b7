"""Runs side by side: what differs in their configurations, and their scores over training seeds.

python -m scripts.tools.compare RUN... [--out DIR]

Runs that differ in nothing but the seed are one arm. Writes to DIR every score of every run as
`scores.csv`, the table as `scores.txt`, and a picture by arm and over checkpoints as `scores.png`.
"""

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from scripts.config.flags import Values, run
from scripts.config.load import RUN_CONFIG, flatten, from_json, load
from scripts.config.paths import user_path
from scripts.data.datasets import require_outside_data
from scripts.errors import UserError
from scripts.evaluation.results import RESULTS
from scripts.storage.files import atomic_write, make_directory, read_json_lines

NOT_OF_AN_ARM = {"seed", "device", "data.num_workers"}
"""Keys in which runs of one arm may differ."""
SETTINGS = (
    "delta",
    "steps",
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
            values[row["score"], key].add(str(row.get(key)))
    for row in latest.values():
        row["setting"] = row["score"]
        for key in SETTINGS:
            if len(values[row["score"], key]) > 1 and row.get(key) is not None:
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
        differing = [
            key for key in OF_A_RUN if len({str(row.get(key)) for row in group}) == len(group)
        ]
        for row in group if len(group) > 1 else ():
            row["setting"] += f", {differing[0]} {row.get(differing[0])}"


def curves(rows: Sequence[dict[str, Any]], setting: str, arm: str) -> dict[int, dict[int, float]]:
    """For each training seed of an arm a score by step; evaluations that differ in their seed alone
    are averaged.
    """
    values: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if (row["setting"], row["arm"]) == (setting, arm):
            values[row["training_seed"]][row["checkpoint_step"]].append(row["value"])
    return {
        seed: {step: statistics.fmean(values) for step, values in by_step.items()}
        for seed, by_step in values.items()
    }


def letters_of(arms: Sequence[str]) -> list[str]:
    """A, B, ..., by which tables and pictures name arms."""
    return [chr(ord("A") + i) for i in range(len(arms))]


def summary(values: Sequence[float], of_mean: bool = False) -> str:
    """Mean, standard deviation (with `of_mean` that of the mean, the standard error) and number of
    values.
    """
    if len(values) < 2:
        return f"{values[0]:.4g} (1)" if values else "-"
    spread = statistics.stdev(values) / (math.sqrt(len(values)) if of_mean else 1)
    return f"{statistics.fmean(values):.4g} +- {spread:.2g} ({len(values)})"


def table(
    rows: Sequence[dict[str, Any]], settings: Sequence[str], arms: Sequence[str]
) -> Iterator[list[str]]:
    """For each score at the newest checkpoints a summary by arm, and of differences from the first
    arm, paired by seed.
    """
    letters = letters_of(arms)
    yield ["", *letters, *(f"{letter} - A" for letter in letters[1:])]
    for setting in settings:
        of_arms = [curves(rows, setting, arm) for arm in arms]
        first, *others = all_arms = [
            {seed: curve[max(curve)] for seed, curve in by_seed.items()} for by_seed in of_arms
        ]
        steps = sorted({max(curve) for by_seed in of_arms for curve in by_seed.values()})
        if len(steps) > 1:
            setting = f"{setting} (at steps {steps}: not equally trained)"
        differences = [
            [other[seed] - first[seed] for seed in first if seed in other] for other in others
        ]
        yield [
            setting,
            *(summary([*v.values()]) for v in all_arms),
            *(summary(d, of_mean=True) for d in differences),
        ]


def draw(
    path: Path, rows: Sequence[dict[str, Any]], settings: Sequence[str], arms: Sequence[str]
) -> None:
    """Write a picture with a panel for each score, by arm, a line for each training seed; and one
    over checkpoints, if several were evaluated.
    """
    by_setting, letters = (
        {setting: [curves(rows, setting, arm) for arm in arms] for setting in settings},
        letters_of(arms),
    )
    steps = any(
        len(curve) > 1
        for by_arm in by_setting.values()
        for by_seed in by_arm
        for curve in by_seed.values()
    )
    num_rows = len(settings) if steps else math.ceil(len(settings) / 3)
    figure = Figure(figsize=(10, 1 + 2.5 * num_rows), layout="constrained")
    panels = iter(figure.subplots(num_rows, 2 if steps else 3, squeeze=False).flat)
    for setting, by_arm in by_setting.items():
        axes = [next(panels)]
        for seed in dict.fromkeys(seed for by_seed in by_arm for seed in by_seed):
            points = [
                (i, list(by_seed[seed].values())[-1])
                for i, by_seed in enumerate(by_arm)
                if seed in by_seed
            ]
            axes[0].plot(*zip(*points, strict=True), "o-", lw=1, label=f"seed {seed}")
        axes[0].set(xticks=range(len(arms)), xticklabels=letters)
        axes[0].margins(x=0.2)
        if steps:
            axes.append(next(panels))
            for i, by_seed in enumerate(by_arm):
                for n, curve in enumerate(by_seed.values()):
                    axes[1].plot(
                        curve.keys(),
                        curve.values(),
                        "o-",
                        ms=3,
                        lw=1,
                        color=f"C{i}",
                        label=None if n else letters[i],
                    )
            axes[1].set_xlabel("step")
        axes[0].set_title(setting, fontsize="medium")
        for ax in axes:
            ax.grid(alpha=0.3)
            ax.legend(fontsize="small")
    for ax in panels:
        ax.remove()
    figure.suptitle(
        "\n".join(f"{letter}: {arm}" for letter, arm in zip(letters, arms, strict=True)),
        fontsize="medium",
    )
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def write(out: Path, rows: Sequence[dict[str, Any]], arms: Sequence[str]) -> str:
    """Write tables and picture; `arms` each once. Returns the table as text."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    cells = list(table(rows, settings, arms))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    text = "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    make_directory(out, "--out")
    with atomic_write(out / "scores.txt") as temporary:
        temporary.write_text(text + "\n")
    with atomic_write(out / "scores.csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    draw(out / "scores.png", rows, settings, arms)
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
    for key in keys:
        values = zip(configs, runs, strict=True)
        print(f"{key}: " + ", ".join(f"{config[key]} ({path.name})" for config, path in values))
    once = list(dict.fromkeys(arms))
    for letter, arm in zip(letters_of(once), once, strict=True):
        print(f"{letter}: {arm}")
    print(write(flags.out, rows, once))
    print(
        "mean +- standard deviation (number of training seeds); differences: mean +- standard "
        "error, paired by seed"
    )
    print(f"tables and pictures: {flags.out}")
    return 0


if __name__ == "__main__":
    run("compare", main, positional="run")
