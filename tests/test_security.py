"""Files from strangers: nothing in them is run, none fills the memory, and no name leads elsewhere."""

import io
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch

from scripts import arrays, checkpoint
from scripts.checkpoint import load_trained, meta_path
from scripts.config import fail
from scripts.data import datasets
from scripts.data.datasets import load_images
from scripts.data.images import FolderImages, LsunImages, UnreadableImage
from scripts.data.labels import load_labelled
from scripts.errors import UserError, one_line, printable
from scripts.evaluation.classifier import classifier_features
from scripts.evaluation.features import NativeFolder, image_features, kept_features
from scripts.evaluation.inception import InceptionFeatures
from scripts.evaluation.results import Result, append_result, results_directory
from scripts.evaluation.statistics_files import custom_files, named_statistics, statistics_from_file
from scripts.io import user_path
from scripts.tools.show_run import inspect
from tests.conftest import tiny_config
from tests.images import data_config, save_images
from tests.test_checkpoint import RunsCode

CPU = torch.device("cpu")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads fail at once."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def malicious_npz(path: Path, trap: Path) -> None:
    """An .npz of which every array is a pickle that writes `trap`."""
    objects = np.empty(1, dtype=object)
    objects[0] = RunsCode(trap)
    names = ("images", "held_out", "labels", "mu", "sigma", "feats", "features", "head.weight")
    np.savez(path, allow_pickle=True, **dict.fromkeys(names, objects))


def inside(path: Path, write: Callable[[Path], None]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path)
    return path


def write(path: Path, contents: bytes) -> None:
    path.write_bytes(contents)


def mnist_files(root: Path, trap: Path) -> None:
    """Where older versions of torchvision kept pickled tensors."""
    for name in ("training.pt", "test.pt"):
        inside(root / "MNIST" / "processed" / name, lambda path: torch.save((RunsCode(trap), RunsCode(trap)), path))


def cifar_files(root: Path, trap: Path) -> None:
    """CIFAR-10's own files are pickles: torchvision compares checksums before it loads them."""
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch", "batches.meta"):
        inside(root / "cifar-10-batches-py" / name, lambda path: write(path, pickle.dumps(RunsCode(trap))))


def torchscript_with_code(path: Path, trap: Path) -> None:
    """A TorchScript archive with Python's pickle of code in place of its own data."""
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, pickle.dumps(RunsCode(trap)) if name.endswith("data.pkl") else source.read(name))


def read_features(folder: Path) -> None:
    kept_features(folder, {}, 4, 2, lambda indices: np.zeros((len(indices), 2), np.float32), "")


def cached_features(folder: Path, trap: Path) -> None:
    read_features(folder)
    (file,) = folder.glob("features_*.npz")
    malicious_npz(file, trap)


def classifier_file(folder: Path, trap: Path) -> None:
    classifier_features(folder, tiny_config().data, CPU, steps=1)
    (file,) = folder.glob("classifier_*.npz")
    malicious_npz(file, trap)


def npy(path: Path, trap: Path) -> None:
    objects = np.empty(2, dtype=object)
    objects[:] = RunsCode(trap)
    np.save(path, objects, allow_pickle=True)


def release(path: Path, trap: Path) -> None:
    torch.save({"model": {}, "step": 1, "ema": {"shadow_params": [RunsCode(trap)]}}, path)


READERS: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], object]]] = {
    "our checkpoint": (
        lambda d, trap: torch.save({"format": checkpoint.FORMAT, "step": RunsCode(trap)}, inside(meta_path(d), Path.touch)),
        lambda d: load_trained(tiny_config(), d, 0),
    ),
    "the release's checkpoint": (
        lambda d, trap: release(inside(meta_path(d), Path.touch), trap),
        lambda d: load_trained(tiny_config(), d, 0),
    ),
    "an inspected checkpoint": (lambda d, trap: release(d / "a.pth", trap), lambda d: inspect(d / "a.pth")),
    "statistics": (
        lambda d, trap: malicious_npz(d / "a.npz", trap),
        lambda d: statistics_from_file(d / "a.npz", moments=True, features=True),
    ),
    "npy": (lambda d, trap: npy(d / "a.npy", trap), lambda d: load_images(data_config("npy", d / "a.npy"), "train")),
    "mnist5k": (
        lambda d, trap: malicious_npz(d / "a.npz", trap),
        lambda d: load_images(data_config("mnist5k", d / "a.npz"), "train"),
    ),
    "features": (cached_features, read_features),
    "classifier": (classifier_file, lambda d: classifier_features(d, tiny_config().data, CPU, steps=1)),
    "mnist": (mnist_files, lambda d: load_images(data_config("mnist", d), "train")),
    "cifar10": (cifar_files, lambda d: load_images(data_config("cifar10", d), "train")),
    "cifar10's labels": (cifar_files, lambda d: load_labelled(data_config("cifar10", d), "train")),
    "Inception, TorchScript": (
        lambda d, trap: torchscript_with_code(d / "inception-2015-12-05.pt", trap),
        lambda d: InceptionFeatures("clean", d / "inception-2015-12-05.pt", CPU),
    ),
    "Inception, weights": (
        lambda d, trap: torch.save({"Conv2d_1a_3x3.conv.weight": RunsCode(trap)}, d / "w.pth"),
        lambda d: InceptionFeatures("legacy_pytorch", d / "w.pth", CPU),
    ),
}


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("reader", READERS)
def test_nothing_in_a_file_is_run(reader: str, tmp_path: Path) -> None:
    """Each kind of file that the program reads, made to run code when unpickled carelessly: refused in a line."""
    make, read = READERS[reader]
    trap = tmp_path / "trap"
    folder = tmp_path / "files"
    folder.mkdir()
    make(folder, trap)
    assert not trap.exists()
    with pytest.raises(UserError):
        read(folder)
    assert not trap.exists()


def test_the_trap_works(tmp_path: Path) -> None:
    """A careless reader would fall into it."""
    pickle.loads(pickle.dumps(RunsCode(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
BAD_IMAGES = {
    "bomb": (png_bomb(50_000, 50_000), "exceeds limit|over the limit"),
    "smaller bomb": (png_bomb(10_000, 10_000), "over the limit"),
    # Pillow would hand it to Ghostscript, which runs it.
    "program": (EPS, "cannot identify"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bombs_and_programs_are_unreadable_images(kind: str, tmp_path: Path) -> None:
    """For every reader of images: named, and nothing else is stopped by it."""
    contents, reason = BAD_IMAGES[kind]
    (tmp_path / "a.png").write_bytes(contents)
    with lmdb.open(str(tmp_path / "lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a.png", contents)
    for source in (
        FolderImages(tmp_path, ["a.png"], 8, 3),
        LsunImages(tmp_path / "lmdb", 8, 3),
        NativeFolder(tmp_path, ["a.png"]),
    ):
        with pytest.raises(UnreadableImage, match=reason) as error:
            source[0]
        assert error.value.name.endswith("a.png")


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by what they claim; the limits are lowered so that the test need not write gigabytes."""
    monkeypatch.setattr(arrays, "SUSPICIOUS_SIZE", 2**20)
    np.savez_compressed(tmp_path / "a.npz", mu=np.zeros(2**20))
    with pytest.raises(UserError, match="unpack to"):
        statistics_from_file(tmp_path / "a.npz", moments=True, features=False)
    np.savez_compressed(tmp_path / "b.npz", mu=np.random.default_rng(0).normal(size=2**18))
    assert len(arrays.read_npz(tmp_path / "b.npz")["mu"]) == 2**18
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(UserError, match="unpacks to more than its own size"):
        checkpoint.read(tmp_path / "a.pth")


@pytest.mark.parametrize("shape", [(2**40, 28, 28), (2**62, 2**62, 3), (-1, 8, 8), (10**30, 8, 8)])
def test_huge_headers_of_arrays(shape: tuple[int, ...], tmp_path: Path) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.write(bytes(1000))
    with pytest.raises(UserError, match=r"not an array that NumPy can map|fewer than 2"):
        load_images(data_config("npy", tmp_path / "a.npy"), "train")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/x", "a\nb", "a\x1bb"])
def test_names_of_statistics_are_plain(name: str) -> None:
    with pytest.raises(UserError, match="must be a plain name"):
        custom_files(name, "clean")
    with pytest.raises(UserError, match="must be a plain name"):
        named_statistics("cifar10", "clean", name, 32, moments=True, features=False)


@pytest.mark.parametrize(
    ("dataset", "experiment"),
    [("..", "e"), ("a/b", "e"), ("/x", "e"), ("d", "../e"), ("d", "a/../../e"), ("d", "/e"), ("d", "e\x1b"), ("", "e")],
)
def test_results_stay_below_runs(dataset: str, experiment: str) -> None:
    with pytest.raises(UserError, match=r"--(dataset|experiment)_name=.* must be a plain name"):
        results_directory(Path("runs"), dataset, experiment)
    assert results_directory(Path("runs"), "mnist", "a/b") == Path("runs/mnist/evaluation_results/a/b")


def test_a_label_cannot_forge_lines_of_a_log(tmp_path: Path) -> None:
    append_result(tmp_path, Result("FID", 1.0, None, 2, {}), param_name="a\nFID: 0", seconds=1.0)
    assert (tmp_path / "FID_log.txt").read_text() == "a\\nFID: 0, FID: 1\n"


def test_paths_are_where_they_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """~ is the home directory, and a link is followed; a home that is not there is an error in a line."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/runs", "--workdir") == tmp_path / "runs"
    assert user_path("a/~/b", "--workdir") == Path("a/~/b")
    for text in ("~nobody_of_this_name/x", "a\x1bb", "a\0b"):
        with pytest.raises(UserError, match=r"--workdir=.*not a path"):
            user_path(text, "--workdir")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    checkpoint.write(meta_path(tmp_path / "link"), {"step": 1})
    assert meta_path(tmp_path / "real").is_file()


ODD = "a\x1b[2J\n\u202eb\udcff.png"


def test_names_of_files_cannot_write_to_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, line breaks and direction marks in a file's name are written out wherever it is mentioned."""
    save_images(tmp_path, ["b.png"])
    path = os.fsencode(tmp_path / ODD)
    with open(path, "wb") as file:  # noqa: PTH123  # a name that is not text
        file.write(b"no image")
    for source in (FolderImages(tmp_path, [ODD], 8, 3), NativeFolder(tmp_path, [ODD])):
        assert source.name(0).isprintable()
        assert "\\x1b[2J\\n\\u202eb" in source.name(0)
        with pytest.raises(UnreadableImage) as error:
            source[0]
        with pytest.raises(SystemExit):
            fail(error.value)
        assert capsys.readouterr().err.rstrip("\n").isprintable()
        with pytest.raises(UserError) as none, pytest.warns(UserWarning, match="cannot be read") as warned:
            image_features(source, [0], lambda pixels: np.zeros((len(pixels), 1)))  # type: ignore[arg-type]
        assert str(none.value).isprintable()
        assert str(warned[0].message).isprintable()


def test_text_for_terminals() -> None:
    assert printable("a\tb\n\x1b[0m\x7f\u202e é 漢 \udcff") == "a\\tb\\n\\x1b[0m\\x7f\\u202e é 漢 \\udcff"
    assert one_line(" a\n  b\x1b ") == "a b\\x1b"


def test_a_checkpoints_missing_parts_are_named(tmp_path: Path) -> None:
    """Our format's mark alone does not make a checkpoint."""
    for contents, problem in (
        ({}, "step is missing"),
        ({"step": -1}, "step is not a whole number"),
        ({"step": float("nan")}, "step is not a whole number"),
        ({"step": 1, "config": "{}"}, "ema is missing"),
        ({"step": 1, "config": "[", "ema": {"shadow": {}}}, "config is not a configuration as JSON"),
        ({"step": 1, "config": "{}", "ema": {"shadow": {"w": 3}}}, "ema.shadow is not tensors by name"),
        ({"step": 1, "config": "{}", "ema": {"shadow": {}}, "prior": {}}, "prior is not a prior bank"),
        ({"step": 1, "config": "{}", "ema": {"shadow": {"w": torch.ones(1).expand(10**12)}}}, "not tensors by name"),
    ):
        checkpoint.write(tmp_path / "a.pth", contents)
        with pytest.raises(UserError, match=problem):
            checkpoint.read(tmp_path / "a.pth")
    checkpoint.write(meta_path(tmp_path), {"step": 1, "config": "{}", "ema": {"shadow": {}}, "optimizer": {"state": {}}})
    with pytest.raises(UserError, match=r"not trained further \(ema.num_updates is missing\)"):
        checkpoint.read_to_resume(tmp_path)


def test_damaged_embedded_data_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    good = arrays.read_npz(datasets.DATA / "mnist5k.npz")
    for name, value in (("images", np.zeros(3)), ("held_out", np.zeros(3, bool)), ("labels", np.zeros(3)), ("labels", None)):
        changed = {key: array for key, array in (good | {name: value}).items() if array is not None}
        np.savez(tmp_path / "a.npz", allow_pickle=False, **changed)
        with pytest.raises(UserError, match=r"a\.npz: must hold labels|a\.npz holds"):
            load_labelled(data_config("mnist5k", tmp_path / "a.npz", channels=1), "train")
