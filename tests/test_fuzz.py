"""Random damage: whatever a checkpoint or a configuration holds, it is accepted and works, or refused in one line."""

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from configs import default
from model_code import build_blur, build_model
from scripts import checkpoint
from scripts.checkpoint import load_trained, meta_path, read_to_resume, write_meta
from scripts.config import flatten, to_json, validate
from scripts.data.datasets import load_images
from scripts.device import resolve_device
from scripts.errors import UserError
from scripts.evaluation.statistics_files import statistics_from_file
from scripts.training.loop import train
from scripts.training.step import Trainer
from tests.conftest import tiny_config
from tests.images import data_config


def fuzzed(share: float) -> settings:
    """A share of the profile's examples."""
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(max_examples=int(share * settings().max_examples), suppress_health_check=checks)


def works_or_is_refused(action: Callable[[], object]) -> None:
    """Run something that may refuse with a UserError, and may raise nothing else."""
    with warnings.catch_warnings(), contextlib.suppress(UserError):
        warnings.simplefilter("ignore")
        action()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_array: Path) -> bytes:
    """A real checkpoint's bytes."""
    workdir = tmp_path_factory.mktemp("run")
    train(run_config(tiny_array), workdir)
    return meta_path(workdir).read_bytes()


def run_config(array: Path) -> ConfigDict:
    return tiny_config(data__dataset="npy", data__path=str(array), training__n_iters=1)


def use(config: ConfigDict, workdir: Path) -> None:
    """All that the program does with a checkpoint: sample from it, and train on."""
    works_or_is_refused(lambda: load_trained(config, workdir, 0).prior)

    def resume() -> None:
        contents = read_to_resume(workdir)
        assert contents is not None
        trainer = Trainer(config, torch.device("cpu"))
        checkpoint.prior_bank(contents, config, workdir)
        try:
            trainer.load_state_dict(contents)
        except (ValueError, RuntimeError):
            return  # which training reports in a line
        trainer.train_step(torch.rand(4, 1, 8, 8))

    works_or_is_refused(resume)


@fuzzed(1)
@given(data=st.data())
def test_damaged_bytes_of_a_checkpoint(data: st.DataObject, saved: bytes, tiny_array: Path, tmp_path: Path) -> None:
    """Bytes overwritten in the header, in the middle or at the end, cut off, or repeated."""
    damaged = bytearray(saved)
    near = st.one_of(st.integers(0, 4096), st.integers(len(saved) - 8192, len(saved) - 1), st.integers(0, len(saved) - 1))
    for _ in range(data.draw(st.integers(1, 4), "number of wounds")):
        start, piece = data.draw(near, "start"), data.draw(st.binary(min_size=1, max_size=8), "bytes")
        damaged[start : start + len(piece)] = piece
    end = data.draw(st.one_of(st.just(len(damaged)), near), "end")
    path = meta_path(tmp_path)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(damaged[:end] + damaged[: data.draw(st.sampled_from([0, 0, 100]), "repeated")])
    use(run_config(tiny_array), tmp_path)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.binary(max_size=4),
    st.just({}),
    st.just([]),
    st.just("{}"),
    st.just('{"model": {"K": 1000000000000}}'),
    st.just("[" * 5_000),
    st.sampled_from([
        torch.tensor(float("nan")), torch.ones(2), torch.ones(0), torch.ones(1).expand(10**12), torch.ones(3, 1, 8, 8),
        torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64), torch.ones(2, 2).to_sparse(),
        torch.ones(2, device="meta"), torch.full((32,), torch.inf),
    ]),
)  # fmt: skip


def places(contents: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every entry of nested dicts and lists."""
    found = []
    items = contents.items() if isinstance(contents, dict) else enumerate(contents) if isinstance(contents, list) else ()
    for key, value in items:
        found += [(*path, key), *places(value, (*path, key))]
    return found


@fuzzed(0.5)
@given(data=st.data())
def test_wrong_contents_of_a_checkpoint(data: st.DataObject, saved: bytes, tiny_array: Path, tmp_path: Path) -> None:
    """Entries of a real checkpoint left out, or of another type, shape or size; steps that are negative, huge or NaN."""
    contents = torch.load(io.BytesIO(saved), weights_only=True)
    assert contents.pop("format") == checkpoint.FORMAT
    for _ in range(data.draw(st.integers(1, 3), "changes")):
        # Most entries are weights; start from the top, so that others have their turn.
        top = data.draw(st.sampled_from(sorted(contents)), "entry") if contents else None
        *way, last = data.draw(st.sampled_from([p for p in places(contents) if p[0] == top] or [("step",)]), "place")
        inside = contents
        for key in way:
            inside = inside[key]
        if data.draw(st.booleans(), "leave out") and last in (inside if isinstance(inside, dict) else ()):
            del inside[last]
        else:
            inside[last] = data.draw(values, "value")
    write_meta(tmp_path, contents)
    use(run_config(tiny_array), tmp_path)


odd = st.one_of(
    values,
    st.integers(-2, 300),
    st.sampled_from([10**400, 2**63, 1e300, 1e-300, -0.0, (), (1,), (1, 2), (0,), (True,), [1, 2], (1.5,), ("1",), (2**70,)]),
    st.sampled_from(["Adam", "released", "cuda:99", "cuda:99999999999999999999", "meta"]),
    st.sampled_from(["~nobody_here/x", "\0", "a\nb", "\ud800"]),
    st.lists(st.integers(-1, 2**40), max_size=40).map(tuple),
)  # fmt: skip


@fuzzed(2)
@given(data=st.data())
def test_any_value_of_any_key_of_a_configuration(data: st.DataObject) -> None:
    """Refused in a line that names a key, or accepted; what is accepted can be built and has a device and data, or an error."""
    base = tiny_config().to_dict()
    keys = [key.split(".") for key, _ in flatten(default.get_config())]
    for way in data.draw(st.lists(st.sampled_from(keys), min_size=1, max_size=3), "keys"):
        section = base
        for name in way[:-1]:
            section = section[name]
        section[way[-1]] = data.draw(odd, ".".join(way))
    config = ConfigDict(base)

    def accept() -> None:
        validate(config)
        with torch.device("meta"):
            model = build_model(config)
            size = config.data.image_size
            if size <= 64:
                model(torch.empty(1, config.data.num_channels, size, size), torch.ones(1, dtype=torch.long))
            assert len(build_blur(config).schedule) == config.model.K + 1
        resolve_device(config.device)
        load_images(config.data, "held_out")
        json.loads(to_json(config))

    works_or_is_refused(accept)


@fuzzed(2)
@given(data=st.data())
def test_damaged_headers_of_arrays(data: st.DataObject, tmp_path: Path) -> None:
    """An .npy and an .npz of images whose headers claim other shapes and types, or are no headers: read, or one clear line."""
    header = data.draw(
        st.one_of(
            st.text(max_size=40),
            st.just("(" * 3000),
            st.builds(
                "{{'descr': {!r}, 'fortran_order': {!r}, 'shape': {!r}, }}".format,
                st.sampled_from(["|u1", "|O", "<f8", "<U9", "x", None, [("a", "|O")]]),
                st.sampled_from([True, False, 2]),
                st.one_of(st.lists(st.integers(-2, 2**70), max_size=4).map(tuple), st.just((40, 8, 8)), st.integers()),
            ),
        ),
        "header",
    )
    encoded = header.encode("utf-8", "replace").ljust(data.draw(st.integers(0, 200), "padding")) + b"\n"
    contents = b"\x93NUMPY\x01\x00" + len(encoded).to_bytes(2, "little") + encoded + bytes(40 * 64)
    (tmp_path / "a.npy").write_bytes(contents)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("images", "held_out", "labels", "mu", "sigma", "feats"):
            archive.writestr(f"{name}.npy", contents)

    def read_all(dataset: str, file: str) -> None:
        images = load_images(data_config(dataset, tmp_path / file, channels=1), "train")
        assert images[0].shape == (1, 8, 8)

    works_or_is_refused(lambda: read_all("npy", "a.npy"))
    works_or_is_refused(lambda: read_all("mnist5k", "a.npz"))
    works_or_is_refused(lambda: statistics_from_file(tmp_path / "a.npz", moments=True, features=True))
