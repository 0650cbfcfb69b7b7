"""Imports point down: entry scripts -> training, evaluation -> sampling -> data -> storage ->
config, runtime -> model_code.
"""

import ast
from graphlib import TopologicalSorter
from itertools import chain

import pytest

from scripts.config.paths import ROOT

FLOORS = (
    ({"model_code"}, {"configs", "scripts"}),  # scripts itself holds only errors and estimates
    ({"scripts.config"}, {"scripts.runtime"}),
    ({"scripts.storage"},),
    ({"scripts.data"},),
    ({"scripts.sampling"},),
    ({"scripts.training"}, {"scripts.evaluation"}),
    ({"entry scripts"}, {"scripts.tools"}),
)
"""Groups of rooms from the bottom up: a group may import from itself and from all groups below its
floor.
"""
MAY_IMPORT = {
    room: group.union(*chain(*FLOORS[:floor]))
    for floor, groups in enumerate(FLOORS)
    for group in groups
    for room in group
} | {"scripts.config": {"scripts.config", "configs", "model_code", "scripts"}}
"""Rooms of this program that each may import from."""


def room(module: str) -> str:
    """The room of one of the program's modules."""
    parts = module.split(".")
    if len(parts) == 1 and parts[0] not in MAY_IMPORT:
        return "entry scripts"
    return next(name for name in (".".join(parts[:2]), parts[0]) if name in MAY_IMPORT)


def import_graph() -> dict[str, set[str]]:
    """What each module of the program imports, inside functions, too, but not for types alone.

    Of other packages the first part of the name.
    """
    files = [
        path
        for pattern in ("*.py", "configs/**/*.py", "model_code/*.py", "scripts/**/*.py")
        for path in ROOT.glob(pattern)
    ]
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }
    graph: dict[str, set[str]] = {}
    for module, file in modules.items():
        names = set()
        tree = ast.parse(file.read_text())
        for_types = {
            child
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for child in node.body
        }
        for node in set(ast.walk(tree)) - for_types:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        parts = [name.split(".") for name in names]
        prefixes = ([".".join(part[:i]) for i in range(len(part), 0, -1)] for part in parts)
        graph[module] = {
            next((name for name in candidates if name in modules), candidates[-1])
            for candidates in prefixes
        }
    return graph


def check(graph: dict[str, set[str]]) -> None:
    """Assert that imports stay within MAY_IMPORT and have no circles, and that config starts
    quickly.
    """
    for module, imported in graph.items():
        for other in imported & graph.keys():
            assert room(other) in MAY_IMPORT[room(module)], f"{module} imports {other}"
        assert "tests" not in imported, f"{module} imports tests"
        assert room(module) != "model_code" or not imported & {"absl", "PIL"}, module
    TopologicalSorter(graph).prepare()  # raises CycleError
    reached = {"scripts.config.flags"}
    while more := {other for module in reached for other in graph.get(module, ())} - reached:
        reached |= more
    assert not reached & {"torch", "torchvision", "scipy", "matplotlib", "cleanfid", "mpi4py"}
    assert not {name for name in reached if name.startswith("scripts.runtime")}


def test_the_program_keeps_to_the_rules() -> None:
    check(import_graph())


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("model_code.ema", "scripts.errors"),
        ("scripts.training.loop", "scripts.evaluation.scores"),
        ("scripts.errors", "torch"),
        ("scripts.errors", "scripts.config.paths"),  # which imports errors
    ],
)
def test_a_broken_rule_is_noticed(importer: str, imported: str) -> None:
    graph = import_graph()
    assert imported not in graph[importer]
    graph[importer].add(imported)
    with pytest.raises((AssertionError, ValueError)):  # CycleError is a ValueError
        check(graph)
