"""The pictures of a README, from one run: what the process does, and what decides about its results.

python -m scripts.tools.gallery --config C --workdir W --out DIR [--delta D] [--nobound]
"""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict

from model_code import build_blur
from scripts.config import define_config_flag, finite, run
from scripts.data.datasets import load_images
from scripts.data.loader import first_readable
from scripts.errors import UserError
from scripts.evaluation.bound import LikelihoodEvaluation
from scripts.io import atomic_write, make_directory, user_path
from scripts.progress import progress_bar
from scripts.sampling import output as visuals
from scripts.sampling.reverse import OnStep
from scripts.sampling.sampler import Sampler, frame_levels, load_sampler

COLUMNS = 12
ROWS = 3
FRAMES = 30
GREYS = 32
"""Shades in the clip: the faint noise of the process, to the last bit, would fill megabytes."""


def draw(config: ConfigDict, workdir: Path, out: Path, delta: float | None, bound: bool) -> None:
    """Write all pictures below `out`: functions of the run, `delta` (None: the configuration's) and the configuration's seed.

    bound: also the bound by level, of all held-out images. Raises UserError for whatever is missing.
    """
    sampler, _ = load_sampler(config, workdir, 0, delta=delta, from_data=None)
    if bound and sampler.delta == 0:
        raise UserError("--delta=0: the bound is infinite without sampling noise; leave it out with --nobound")
    make_directory(out, "--out")
    _samples(sampler, out)
    columns = range(COLUMNS)
    _with_initial_states(out / "same_init.png", sampler, lambda on_step: sampler.same_init(columns, on_step))
    _with_initial_states(out / "share_noise.png", sampler, lambda on_step: sampler.share_noise(columns, on_step))
    _with_initial_states(out / "interpolation.png", sampler, lambda on_step: sampler.interpolate((0, 1), COLUMNS, on_step))
    visuals.save_png(out / "forward.png", _blurred(config), COLUMNS)
    if bound:
        _bound_by_level(config, workdir, out / "bound_by_level.png", sampler)


def _draw(sampler: Sampler, kind: Callable[[OnStep], torch.Tensor], name: str) -> dict[int, torch.Tensor]:
    """The states of a batch by their levels, K..0."""
    states: dict[int, torch.Tensor] = {}
    with progress_bar(sampler.K, "step", name) as bar:

        def keep(k: int, u_k: torch.Tensor) -> None:
            states[k] = u_k.float().cpu()
            bar.update(k < sampler.K)

        kind(keep)
    return states


def _samples(sampler: Sampler, out: Path) -> None:
    """Samples as a still, the first row of them as a clip, and the first column as strips of states."""
    states = _draw(sampler, lambda on_step: sampler.independent(range(ROWS * COLUMNS), on_step), "samples.png")
    visuals.save_png(out / "samples.png", states[0], COLUMNS)
    levels = frame_levels(sampler.K, max(1, sampler.K // FRAMES))
    shades = {k: (states[k][:COLUMNS] * (GREYS - 1)).round() / (GREYS - 1) for k in levels}
    visuals.save_gif(out / "process.gif", [visuals.grid(shades[k], COLUMNS) for k in levels])
    strips = [states[k][row * COLUMNS] for row in range(ROWS) for k in reversed(_spread(sampler.K))]
    visuals.save_png(out / "process.png", torch.stack(strips), COLUMNS)


def _with_initial_states(path: Path, sampler: Sampler, kind: Callable[[OnStep], torch.Tensor]) -> None:
    """A row of initial states above a row of what became of them."""
    states = _draw(sampler, kind, path.name)
    visuals.save_png(path, torch.cat([states[sampler.K], states[0]]), COLUMNS)


def _blurred(config: ConfigDict) -> torch.Tensor:
    """Training images, row by row, at levels from 0 to K: the means of the forward process."""
    images, blur = load_images(config.data, "train"), build_blur(config)
    chosen = [first_readable(images, len(images) * row // ROWS, [])[1] for row in range(ROWS)]
    u = torch.from_numpy(np.stack(chosen)).float() / 255
    levels = torch.tensor(_spread(config.model.K))
    return blur(u.repeat_interleave(COLUMNS, 0), levels.repeat(ROWS))


def _spread(K: int) -> list[int]:
    """As many levels as there are columns, from 0 to K."""
    return np.linspace(0, K, COLUMNS).round().astype(int).tolist()


def _bound_by_level(config: ConfigDict, workdir: Path, path: Path, sampler: Sampler) -> None:
    evaluate = LikelihoodEvaluation(
        config,
        workdir,
        split="test",
        num_images=0,
        num_levels_per_image=10,
        exact=False,
        batch_size=config.eval.batch_size,
    )
    # What it prints names a folder that does not stay.
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        evaluate(checkpoint=0, delta=sampler.delta, seed=sampler.seed, directory=Path(folder))
        (picture,) = Path(folder).glob("*/bound_by_level.png")
        with atomic_write(path) as temporary:
            temporary.write_bytes(picture.read_bytes())


def main() -> int:
    """Draw what the flags name."""
    values = flags.FLAGS
    finite("--delta", values.delta)
    out = user_path(values.out, "--out")
    draw(values.config, user_path(values.workdir, "--workdir"), out, values.delta, values.bound)
    print(f"{out}: {sum(file.stat().st_size for file in out.iterdir()) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    define_config_flag()
    flags.DEFINE_string("workdir", None, "Run directory that train.py made.", required=True)
    flags.DEFINE_string("out", None, "Directory to write to.", required=True)
    flags.DEFINE_float("delta", None, "Sampling noise; by default config.model.delta_over_sigma * sigma.", lower_bound=0)
    flags.DEFINE_bool("bound", True, "Also the bound by level, which takes the longest.")
    run(main)
