"""Random damage: whatever a checkpoint or a configuration holds, it is accepted and works, or refused in one line."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scripts import checkpoint
from scripts.checkpoint import load_trained, meta_path, read_to_resume, write_meta
from scripts.errors import UserError
from scripts.train_step import Trainer
from scripts.training import train
from tests.conftest import tiny_config

fuzzed = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def one_line_or_none(action: Callable[[], object]) -> None:
    """Run something that may refuse with a UserError of one line, and may do nothing else that is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            action()
        except UserError as error:
            assert "\n" not in str(error)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, tiny_array: Path) -> bytes:
    """A real checkpoint's bytes."""
    workdir = tmp_path_factory.mktemp("run")
    train(run_config(tiny_array), workdir)
    return meta_path(workdir).read_bytes()


def run_config(array: Path) -> Any:
    return tiny_config(data__dataset="npy", data__path=str(array), training__n_iters=1)


def use(config: Any, workdir: Path) -> None:
    """All that the program does with a checkpoint: sample from it, and train on."""
    one_line_or_none(lambda: load_trained(config, workdir, 0).prior)

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

    one_line_or_none(resume)


@fuzzed
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
    st.just("[" * 100_000),
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


@fuzzed
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
