"""Classes of images, by the folders that they are in, a table of files, or an array beside them."""

import csv
import json
import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from scripts.data.images import FolderImages, ImageSource, file_and_frame
from scripts.errors import UserError, one_line, printable
from scripts.storage.files import read_npz

FOLDERS = "folders"
MOST_CLASSES = 10_000
KEY = "config.data.labels"


def read_labels(source: ImageSource, labels: str, place: Path) -> None:
    """Give images of `place` the classes that config.data.labels names.

    Raises UserError unless every image has one class, and every class an image.
    """
    shown = f"{KEY} = {labels!r}"
    try:
        if isinstance(source, FolderImages) and labels == FOLDERS:
            names = _folders(source.paths, place, shown)
        elif isinstance(source, FolderImages):
            files = [file_and_frame(path)[0] for path in source.paths]
            names = _of_files(_table(place / labels), files, shown)
        else:
            names = list(map(str, read_npz(place)[labels].tolist()))
    except (OSError, ValueError, KeyError) as error:
        right = "'folders', a .csv of file,label or a dataset.json; or an array in data.path's .npz"
        raise UserError(f"{shown}: cannot be read ({one_line(error)}); must be {right}") from None
    if len(names) != len(source):
        raise UserError(f"{shown}: has {len(names)} labels for {len(source)} images")
    source.classes = classes_of(names, shown)
    place_of = {name: i for i, name in enumerate(source.classes)}
    source.labels = np.array([place_of[name] for name in names], np.int64)


def classes_of(names: Iterable[str], shown: str) -> tuple[str, ...]:
    """The names of classes in their order, that of numbers if all are whole numbers.

    Raises UserError for numbers that are no classes, and for too few or too many.
    """
    classes = sorted(set(names))
    for name in classes:
        try:
            valid = 0 <= float(name) < math.inf
        except ValueError:
            valid = True
        if not valid:
            raise UserError(f"{shown}: has the label {name}; must be names, or numbers from 0")
    if not 2 <= len(classes) <= MOST_CLASSES:
        right = f"must tell 2 to {MOST_CLASSES:,} classes apart"
        raise UserError(f"{shown}: {right}, has {len(classes):,}, such as {printable(classes[0])}")
    if all(name.isdecimal() for name in classes):
        classes.sort(key=int)
    return tuple(classes)


def relabel(source: ImageSource, classes: Sequence[str], what: str) -> None:
    """Number the labels of images as `classes` are. Raises UserError if `what` has others."""
    if source.labels is None:
        raise UserError(f"{what}: has no labels, where classes are needed")
    if other := [name for name in source.classes if name not in classes]:
        raise UserError(f"{what}: has class {printable(other[0])}; must be of {listed(classes)}")
    numbers = np.array([classes.index(name) for name in source.classes], np.int64)
    source.labels, source.classes = numbers[source.labels], tuple(classes)


def count_classes(config: ConfigDict, *sources: ImageSource) -> ConfigDict:
    """The configuration with the number of classes, if the network is told them: those of images to
    train on, and held out.

    Raises UserError for images without, and if the configuration has another number.
    """
    if not config.model.class_conditional:
        return config
    data = config.data
    if any(source.labels is None for source in sources):
        none = f"config.data.dataset = {data.dataset!r} has no labels: set {KEY}"
        raise UserError(f"config.model.class_conditional = True: {none}")
    number = len(sources[0].classes)
    if data.num_classes not in (0, number):
        shown = f"config.data.num_classes = {data.num_classes}"
        raise UserError(f"{shown}: must be {number}, or 0 to be filled in")
    filled = config.copy_and_resolve_references()
    filled.data.num_classes = number
    return filled.lock()


def require_classes(source: ImageSource, classes: Collection[str], data: ConfigDict) -> None:
    """Raise UserError for images of other classes than a network is told, if it is told any."""
    if classes and source.labels is None:
        raise UserError(f"config.data.dataset = {data.dataset!r} has no labels: set {KEY}")
    if classes and source.classes != tuple(classes):
        now = f"has the classes {listed(source.classes)}"
        before = f"the network is told {listed([*classes])}"
        raise UserError(f"config.data.dataset = {data.dataset!r}: {now}, where {before}")


def class_counts(source: ImageSource) -> dict[str, int]:
    """How many images each class has, by name."""
    assert source.labels is not None
    counts = np.bincount(source.labels, minlength=len(source.classes)).tolist()
    return dict(zip(source.classes, counts, strict=True))


def find_classes(text: str, classes: Sequence[str]) -> tuple[int, ...]:
    """The classes that --class names: a name, a number, several with commas, or all.

    Raises UserError for one that there is not.
    """
    if text == "all":
        return tuple(range(len(classes)))
    found = []
    for name in [text] if text in classes else text.split(","):
        numbered = name.isdecimal() and int(name) < len(classes)
        if name not in classes and not numbered:
            which = f"there is no class {printable(name)!r}"
            raise UserError(f"--class={printable(text)}: {which}; there are {listed(classes)}")
        found.append(classes.index(name) if name in classes else int(name))
    return tuple(found)


def listed(classes: Sequence[str]) -> str:
    """The first names, for messages."""
    more = f", and {len(classes) - 20} more" if len(classes) > 20 else ""
    return ", ".join(map(printable, classes[:20])) + more


def _folders(paths: Sequence[str], place: Path, shown: str) -> list[str]:
    """The folder directly below `place` that each file is in."""
    for path in paths:
        if "/" not in path:
            raise UserError(f"{shown}: {printable(path)} is in no sub-folder; each is a class")
    names = [path.partition("/")[0] for path in paths]
    there = {path.name for path in place.iterdir() if path.is_dir() and path.name[0] != "."}
    if empty := sorted(there - set(names)):
        raise UserError(f"{shown}: the sub-folder {printable(empty[0])} has no images")
    return names


def _table(path: Path) -> list[tuple[str, str]]:
    """Files and labels of a table. Raises OSError, ValueError and KeyError for others."""
    if path.suffix == ".json":
        rows = json.loads(path.read_text())["labels"]
        if not isinstance(rows, list) or not all(isinstance(label, int) for _, label in rows):
            raise ValueError("labels must be [file, number] for each file")
        return [(file, str(label)) for file, label in rows]
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        if not {"file", "label"} <= set(table.fieldnames or ()):
            raise ValueError("the first line must be file,label")
        return [(row["file"], (row["label"] or "").strip()) for row in table]


def _of_files(rows: Iterable[tuple[str, str]], paths: Sequence[str], shown: str) -> list[str]:
    """The label of each file. Raises UserError for files with two, with none, or not there."""
    labels: dict[str, str] = {}
    for file, label in rows:
        if label == "" or labels.setdefault(file, label) != label:
            which = f"the labels {labels[file]!r} and {label!r}" if label else "an empty label"
            raise UserError(f"{shown}: {printable(file)} has {which}; must have one")
    for missing, of, what in (
        ([path for path in paths if path not in labels], paths, "no label"),
        (sorted(labels.keys() - {*paths}), labels, "a label, but are not there"),
    ):
        if missing:
            count = f"{len(missing)} of {len(of)} files have {what}"
            raise UserError(f"{shown}: {count}, such as {printable(missing[0])}")
    return [labels[path] for path in paths]
