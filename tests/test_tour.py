"""The notebook runs from top to bottom."""

import nbformat
from nbclient import NotebookClient

from scripts.config.paths import ROOT

TOUR = ROOT / "docs" / "tour.ipynb"


def pictures(cells: list[nbformat.NotebookNode]) -> list[bool]:
    """For each code cell, whether it shows a picture."""
    outputs = [cell.outputs for cell in cells if cell.cell_type == "code"]
    return [any("image/png" in output.get("data", {}) for output in of_cell) for of_cell in outputs]


def test_tour() -> None:
    """With fewer samples and levels, without a warning; the same cells show pictures as in the
    file.
    """
    notebook = nbformat.read(TOUR, as_version=4)
    kept = pictures(notebook.cells)
    assert sum(kept) == 9
    shorter = {
        "many, few = 96, 12": "many, few = 3, 3",
        "checkpoint=0, seed=1": "checkpoint=0, choice=Choice(steps='100,75,60,50,40,30,20,10,0'), seed=1",
    }
    for before, after in shorter.items():
        assert sum(before in cell.source for cell in notebook.cells) == 1
        for cell in notebook.cells:
            cell.source = cell.source.replace(before, after)
    NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(TOUR.parent)}},
    ).execute()
    assert pictures(notebook.cells) == kept
    assert not [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
