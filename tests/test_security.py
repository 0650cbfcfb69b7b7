"""Files from strangers: nothing in them is run, and no name leads elsewhere or writes to the
terminal.
"""

import ast
import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.config.flags import fail
from scripts.config.paths import ROOT, plain_name, user_path
from scripts.data.datasets import load_images
from scripts.data.images import FolderImages, UnreadableImage
from scripts.errors import UserError, one_line, printable
from scripts.evaluation.inception import InceptionFeatures
from scripts.storage import checkpoint
from scripts.storage.checkpoint import load_trained, meta_path
from scripts.storage.files import read_npz
from tests.conftest import bad_input
from tests.images import data_config
from tests.tiny import tiny_config

CPU = torch.device("cpu")


class RunsCode:
    """An object whose pickle writes a file when it is loaded by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "code was run")


def our_checkpoint(folder: Path, trap: Path) -> None:
    meta_path(folder).parent.mkdir()
    torch.save({"format": checkpoint.FORMAT, "step": RunsCode(trap)}, meta_path(folder))


def release_checkpoint(folder: Path, trap: Path) -> None:
    meta_path(folder).parent.mkdir()
    contents = {"model": {}, "step": 1, "ema": {"shadow_params": [RunsCode(trap)]}}
    torch.save(contents, meta_path(folder), _use_new_zipfile_serialization=False)


def arrays(folder: Path, trap: Path) -> None:
    objects = np.empty(2, dtype=object)
    objects[:] = RunsCode(trap)
    np.save(folder / "a.npy", objects, allow_pickle=True)
    np.savez(folder / "a.npz", allow_pickle=True, images=objects)


def cifar_files(folder: Path, trap: Path) -> None:
    """CIFAR-10's own files are pickles: torchvision compares checksums before it loads them."""
    (folder / "cifar-10-batches-py").mkdir()
    for name in (
        "data_batch_1",
        "data_batch_2",
        "data_batch_3",
        "data_batch_4",
        "data_batch_5",
        "test_batch",
        "batches.meta",
    ):
        (folder / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(RunsCode(trap)))


def torchscript(folder: Path, trap: Path) -> None:
    """A TorchScript archive with Python's pickle of code in place of its own data."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    with (
        zipfile.ZipFile(buffer) as source,
        zipfile.ZipFile(folder / "inception-2015-12-05.pt", "w") as target,
    ):
        for name in source.namelist():
            target.writestr(
                name,
                pickle.dumps(RunsCode(trap)) if name.endswith("data.pkl") else source.read(name),
            )


READERS: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], object]]] = {
    "our checkpoint": (our_checkpoint, lambda d: load_trained(tiny_config(), d, 0)),
    "the release's checkpoint": (release_checkpoint, lambda d: load_trained(tiny_config(), d, 0)),
    "npz": (arrays, lambda d: read_npz(d / "a.npz")),
    "npy": (arrays, lambda d: load_images(data_config("npy", d / "a.npy"), "train")),
    "cifar10": (cifar_files, lambda d: load_images(data_config("cifar10", d), "train")),
    "Inception": (torchscript, lambda d: InceptionFeatures("clean", str(d), CPU)),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.usefixtures("no_network")
def test_nothing_in_a_file_is_run(reader: str, tmp_path: Path) -> None:
    """Each kind of file that the program reads, made to run code when unpickled carelessly:
    refused.
    """
    make, read = READERS[reader]
    trap, folder = tmp_path / "trap", tmp_path / "files"
    folder.mkdir()
    make(folder, trap)
    with pytest.raises(ValueError):  # noqa: PT011  # UserError is one
        read(folder)
    assert not trap.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()


def test_no_file_is_read_by_a_loader_that_runs_code() -> None:
    """torch.load only with weights_only=True, np.load never with pickles, and pickle's own loaders
    nowhere.
    """
    for file in [
        *ROOT.glob("*.py"),
        *(ROOT / "scripts").rglob("*.py"),
        *(ROOT / "model_code").rglob("*.py"),
    ]:
        for call in ast.walk(ast.parse(file.read_text())):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                options = {option.arg: ast.unparse(option.value) for option in call.keywords}
                assert name not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), file
                assert options.get("allow_pickle", "False") == "False", file
                assert name != "torch.load" or options.get("weights_only") == "True", file


def test_programs_are_not_images(tmp_path: Path) -> None:
    """Pillow would hand Encapsulated PostScript to Ghostscript, which runs it."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    (tmp_path / "a.png").write_bytes(program)
    with pytest.raises(UnreadableImage, match="no image"):
        FolderImages(tmp_path, ["a.png"], (3, 8, 8))[0]


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "a\nb", "a\x1bb"])
def test_names_of_files_are_plain(name: str) -> None:
    with pytest.raises(UserError, match="must be a plain name"):  # with the name as it is
        plain_name("--custom_name", name)
    assert plain_name("--custom_name", "my_images") == "my_images"


def test_paths_are_where_they_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home directory; a home that does not exist is an error in one line."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs", "--workdir") == tmp_path / "runs"
    assert user_path("a/~/b", "--workdir") == Path("a/~/b")
    for text in ("~nobody_of_this_name/x", "a\x1bb", "a\0b"):
        with bad_input(r"--workdir=.*not a path"):
            user_path(text, "--workdir")


def test_names_of_files_cannot_write_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Escape sequences, line breaks and direction marks in a file's name are escaped where it is
    mentioned.
    """
    odd = "a\x1b[2J\n\u202eb\udcff.png"
    with open(os.fsencode(tmp_path / odd), "wb") as file:  # noqa: PTH123  # a name that is not text
        file.write(b"no image")
    source = FolderImages(tmp_path, [odd], (3, 8, 8))
    assert "\\x1b[2J\\n\\u202eb" in source.name(0)
    with pytest.raises(UnreadableImage) as error:
        source[0]
    with pytest.raises(SystemExit):
        fail(error.value)
    assert capsys.readouterr().err.rstrip("\n").isprintable()
    assert (
        printable("a\tb\n\x1b[0m\x7f\u202e é 漢 \udcff")
        == "a\\tb\\n\\x1b[0m\\x7f\\u202e é 漢 \\udcff"
    )
    assert one_line(" a\n  b\x1b ") == "a b\\x1b"
