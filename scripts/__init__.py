"""Everything around the model: data, training loop, checkpoints, sampling, pictures."""
