"""A run directory with a checkpoint, without training."""

from pathlib import Path

import numpy as np
import torch
from ml_collections import ConfigDict

from model_code import build_model, build_process
from scripts.config.load import to_json
from scripts.data.datasets import load_images
from scripts.data.images import fingerprint
from scripts.storage import checkpoint
from tests.golden import fill_golden


def make_run(config: ConfigDict, workdir: Path) -> None:
    """The newest checkpoint, of step 7, with golden weights and a prior of 100 training images."""
    model = build_model(config)
    fill_golden(model)
    source = load_images(config.data, "train")
    images = torch.from_numpy(np.stack([source[i] for i in range(100)])) / 255
    workdir.mkdir(parents=True, exist_ok=True)
    contents = {
        "step": 7,
        "ema": {"shadow": dict(model.named_parameters())},
        "prior": build_process(config).build_prior([images]).state_dict(),
        "config": to_json(config),
        "data": fingerprint(source)
        | {
            f"held_out_{key}": value
            for key, value in fingerprint(load_images(config.data, "held_out")).items()
        },
    }
    checkpoint.write_meta(workdir, contents)
