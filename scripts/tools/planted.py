"""Whether a measure of samples sees what people see: Frechet distances of pictures made worse.

python -m scripts.tools.planted --config C --feature_extractor=E --out DIR

Held-out pictures, corrupted in known ways, stand for samples; the training pictures are the
reference. The table, planted_E.png in DIR, has the cases about in the order in which people would
rank them: a measure that orders them otherwise cannot decide between models that err in these ways.
"""

import numpy as np
import torch
from matplotlib.figure import Figure

from scripts.config.flags import Values, run
from scripts.storage.files import make_directory

SEED = 0
SHOWN = 10
"""Pictures of each case in planted_E.png."""


def main(flags: Values) -> int:
    """Print the table, draw the picture."""
    from scripts.config.resolve import validate
    from scripts.data.datasets import Split, load_images, require_outside_data
    from scripts.data.images import all_pixels, spread_evenly
    from scripts.evaluation.command import make_extractor
    from scripts.evaluation.corruptions import CORRUPTIONS
    from scripts.evaluation.distances import Gaussian, frechet_estimate
    from scripts.evaluation.results import save_figure
    from scripts.sampling.output import as_colours, to_uint8

    validate(flags.config)
    require_outside_data(flags.out, "--out", flags.config.data)
    make_directory(flags.out, "--out")
    extractor = make_extractor(flags, flags.config, flags.out)

    def pixels(split: Split) -> torch.Tensor:
        return torch.from_numpy(all_pixels(load_images(flags.config.data, split)))

    def features(images: torch.Tensor) -> np.ndarray:
        return np.concatenate([extractor(batch) for batch in images.split(100)])

    reference = Gaussian.of(features(pixels("train")))
    held_out = pixels("held_out").float() / 255
    shown = spread_evenly(len(held_out), SHOWN)
    figure = Figure(figsize=(SHOWN + 3, len(CORRUPTIONS)), layout="constrained")
    for axes, (name, corruption) in zip(
        figure.subplots(len(CORRUPTIONS), 1), CORRUPTIONS.items(), strict=True
    ):
        corrupted = to_uint8(corruption(held_out, np.random.default_rng(SEED)))
        distance, _ = frechet_estimate(features(corrupted), reference)
        value = f"{distance.value:.3g} +- {distance.standard_error:.2g}"
        print(f"{name:24} {value}", flush=True)
        pictures = to_uint8(as_colours(corrupted[shown] / 255))
        row = np.concatenate(list(pictures.permute(0, 2, 3, 1).numpy()), axis=1)
        axes.imshow(row, cmap="gray", vmin=0, vmax=255)
        axes.set_ylabel(f"{name}\n{value}", rotation=0, ha="right", va="center")
        axes.set(xticks=[], yticks=[])
    save_figure(figure, flags.out / f"planted_{flags.feature_extractor}.png")
    return 0


if __name__ == "__main__":
    run("planted", main)
