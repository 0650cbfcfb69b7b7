"""Everything around the model: data, training loop, checkpoints, sampling, pictures."""

import logging

logging.getLogger("matplotlib").setLevel(
    logging.ERROR
)  # its lines about its cache of fonts would appear as ours
