"""Draw the README's pictures from the newest checkpoint of a run.

PYTHONPATH=. python docs/gallery/draw.py WORKDIR OUT
"""

import sys
from pathlib import Path

import numpy as np
import torch

from scripts.data.datasets import load_images
from scripts.sampling.output import grid, save_gif, save_png
from scripts.sampling.sampler import load_sampler
from scripts.storage.checkpoint import saved_config
from scripts.storage.files import make_directory

COLUMNS = 12
ROWS = 3
CLIP_FRAMES = 30
GREYS = 32
"""Levels of each channel in the clip: with all 256 the noise would take megabytes."""


def draw(workdir: Path, out: Path) -> None:
    """Write all pictures to `out`. Raises UserError without checkpoint or data set."""
    config = saved_config(workdir, 0)
    sampler, _ = load_sampler(workdir, config=config)
    make_directory(out, "OUT")
    states: dict[int, torch.Tensor] = {}
    keep = states.__setitem__  # on_step(k, u_k)
    chain = np.array(sampler.kernel.chain)

    def levels(number: int) -> list[int]:
        """So many levels of the chain, the last first."""
        return chain[np.linspace(0, sampler.num_steps, number).round().astype(int)].tolist()

    sampler.independent(range(ROWS * COLUMNS), keep)
    save_png(out / "samples.png", states[0], COLUMNS)
    rows = [states[k][row * COLUMNS] for row in range(ROWS) for k in levels(COLUMNS)]
    save_png(out / "process.png", torch.stack(rows), COLUMNS)
    clip = [states[k][: COLUMNS // 2] for k in levels(min(len(chain), CLIP_FRAMES))]
    coarse = [(u * (GREYS - 1)).round() / (GREYS - 1) for u in clip]
    save_gif(out / "process.gif", [grid(u, COLUMNS // 2) for u in coarse])

    def save_with_initial_states(name: str) -> None:
        """Initial states above their samples."""
        save_png(out / f"{name}.png", torch.cat([states[chain[0]], states[0]]), COLUMNS)

    sampler.same_init(range(COLUMNS), keep)
    save_with_initial_states("same_init")
    sampler.share_noise(range(COLUMNS), keep)
    save_with_initial_states("share_noise")
    sampler.interpolate((0, 1), COLUMNS, keep)
    save_with_initial_states("interpolation")

    # Training images at the same levels of the forward process, without its noise.
    images = load_images(config.data, "train")
    pixels = np.stack([images[len(images) * row // ROWS] for row in range(ROWS)])
    u = (torch.from_numpy(pixels).float() / 255).repeat_interleave(COLUMNS, 0)
    k = torch.tensor(levels(COLUMNS)[::-1]).repeat(ROWS)
    process = sampler.process.to(torch.device("cpu"))
    blurred, _ = process.corrupt(u, k.clamp(min=1), torch.zeros_like(u))
    sharp = (k == 0)[:, None, None, None]
    save_png(out / "forward.png", torch.where(sharp, u, process.to_images(blurred)), COLUMNS)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
