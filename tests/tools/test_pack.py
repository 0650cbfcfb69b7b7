"""The command that packs, and that a training from its result is the same training."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.training.loop import train
from tests.conftest import command, error_line
from tests.images import random_pixels, save_images
from tests.tiny import TINY, tiny_config
from tests.training.runs import differing, final_state


def pack(out: Path | str, *args: str) -> subprocess.CompletedProcess[str]:
    """The command, for grey images of 8x8 pixels."""
    return command("-m", "scripts.tools.pack", "--config", TINY, f"--out={out}", *args)


@pytest.mark.parametrize("kind", ["folder", "npy"])
def test_the_same_training(kind: str, tmp_path: Path) -> None:
    """Weights, averages, prior and all, bit for bit: from the images, from the pack, and going over
    to it.
    """
    save_images(tmp_path / "images", [f"{i}.png" for i in range(30)], size=20)
    (tmp_path / "images" / "20.png").write_bytes(b"damaged")
    np.save(
        tmp_path / "images.npy",
        random_pixels(30, 9, 9),
    )
    path, there = (
        str(tmp_path / ("images" if kind == "folder" else "images.npy")),
        str(tmp_path / "pack"),
    )
    done = pack(there, f"--config.data.dataset={kind}", f"--config.data.path={path}")
    assert done.stdout == f"packed: 30 images; --config.data.path={there} reads them\n", done.stderr
    config = tiny_config(data__dataset=kind, data__uniform_dequantization=True)

    def run(name: str, *parts: tuple[str, int]) -> dict[str, Any]:
        for config.data.path, config.training.n_iters in parts:
            assert train(config, tmp_path / name) == 0
        return final_state(tmp_path / name)

    expected = run("not packed", (path, 6))
    assert not differing(run("packed", (there, 6)), expected)
    assert not differing(run("first not packed", (path, 3), (there, 6)), expected)


def test_bad_input(tmp_path: Path) -> None:
    """One line that names key and value, and nothing written.

    What else can be wrong is in tests/data.
    """
    line = error_line(pack(tmp_path / "pack", "--config.data.num_workers=-2"))
    assert line == "error: config.data.num_workers = -2: must be at least 0, or -1"
    assert not (tmp_path / "pack").exists()
