"""The notebook runs from top to bottom, and commands print what the documents quote."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from scripts.config.paths import ROOT
from tests.conftest import command

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
    assert sum(kept) == 13
    shorter = {
        "many, few = 96, 12": "many, few = 3, 3",
        "load_sampler(run, seed=1)": "load_sampler(run, "
        "choice=Choice(steps='100,75,60,50,40,30,20,10,0'), seed=1)",
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


def test_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every snippet of docs/library.md runs after those before it."""
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "library.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 9
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(snippet, names)
    first = names["fast"].independent([0])
    torch.testing.assert_close(names["first_image"], first, rtol=0, atol=1e-4)
    assert names["gradient"].abs().max() > 0
    assert [k for k, _ in names["states"]] == list(range(100, -1, -10))
    total = names["bound"].prior + names["bound"].intermediate + names["bound"].reconstruction
    torch.testing.assert_close(total, names["bound"].total)
    assert 3 < names["bound"].bits_per_dim.mean() < 9
    assert names["distance"].standard_error > 0


QUOTED = [
    (words.split(), printed)
    for document in sorted((ROOT / "docs").glob("*.md"))
    for words, printed in re.findall(r"\$ python (.*)\n([^`]+)", document.read_text())
    if "benchmark" not in words  # times of one machine
]


@pytest.mark.parametrize(("words", "printed"), QUOTED, ids=lambda part: part[0])
def test_commands_print_what_the_documents_quote(
    words: list[str], printed: str, tmp_path: Path
) -> None:
    """From its beginning; files are named without their directory, and go into one of the test."""
    new_file = str(tmp_path / "schedule.npy")
    words = [word.replace("schedule.npy", new_file) for word in words]
    if "scripts.tools.data_sheet" in words:
        words.append(f"--out={tmp_path / 'data.png'}")
    result = command(*words)
    assert result.stdout.replace(f"{tmp_path}/", "").startswith(printed), result.stderr
