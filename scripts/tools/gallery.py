"""Draw the README's pictures from one run.

python -m scripts.tools.gallery --config C --workdir W --out DIR [--delta D]
"""

from pathlib import Path

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict

from scripts.config.flags import run
from scripts.data.datasets import load_images, require_outside_data
from scripts.sampling.choice import Choice
from scripts.sampling.output import grid, save_gif, save_png
from scripts.sampling.sampler import load_sampler
from scripts.storage.files import make_directory

COLUMNS, ROWS = 12, 3
GREYS = 32
"""Levels of each channel in the clip: with all 256 the noise of the process would take megabytes."""


def draw(config: ConfigDict, workdir: Path, out: Path, delta: str | None) -> None:
    """Write all pictures to `out`, from the newest checkpoint and the configuration's seed; delta
    None: the configuration's.

    Raises UserError if the checkpoint or the data set is missing.
    """
    sampler, _ = load_sampler(config, workdir, 0, choice=Choice(delta))
    require_outside_data(out, "--out", config.data)
    make_directory(out, "--out")
    states: dict[int, torch.Tensor] = {}
    keep = states.__setitem__  # on_step(k, u_k)
    chain = np.array(sampler.kernel.chain)
    levels = chain[np.linspace(sampler.num_steps, 0, COLUMNS).round().astype(int)].tolist()
    sampler.independent(range(ROWS * COLUMNS), keep)
    save_png(out / "samples.png", states[0], COLUMNS)
    rows = [states[k][row * COLUMNS] for row in range(ROWS) for k in reversed(levels)]
    save_png(out / "process.png", torch.stack(rows), COLUMNS)
    clip = [
        states[k][: COLUMNS // 2]
        for k in chain[
            np.linspace(0, sampler.num_steps, min(len(chain), 30)).round().astype(int)
        ].tolist()
    ]
    save_gif(
        out / "process.gif",
        [grid((u * (GREYS - 1)).round() / (GREYS - 1), COLUMNS // 2) for u in clip],
    )

    for name in ("same_init", "share_noise", "interpolation"):
        if name == "interpolation":
            sampler.interpolate((0, 1), COLUMNS, keep)
        else:
            getattr(sampler, name)(range(COLUMNS), keep)
        save_png(
            out / f"{name}.png", torch.cat([states[chain[0]], states[0]]), COLUMNS
        )  # initial states above their samples

    # Training images at the same levels of the forward process, without its noise.
    images = load_images(config.data, "train")
    u = (
        torch.from_numpy(
            np.stack([images[len(images) * row // ROWS] for row in range(ROWS)])
        ).float()
        / 255
    )
    u, k = u.repeat_interleave(COLUMNS, 0), torch.tensor(levels).repeat(ROWS)
    corrupted, _ = sampler.process.to(torch.device("cpu")).corrupt(
        u, k.clamp(min=1), torch.zeros_like(u)
    )
    save_png(
        out / "forward.png",
        torch.where((k == 0)[:, None, None, None], u, sampler.process.to_images(corrupted)),
        COLUMNS,
    )


def main() -> int:
    """Draw what the flags name."""
    values = flags.FLAGS
    draw(values.config, values.workdir, values.out, values.delta)
    print(f"pictures in {values.out}")
    return 0


if __name__ == "__main__":
    run("gallery", main)
