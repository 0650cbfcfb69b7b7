"""Everything around the model: data, training loop, checkpoints, sampling, pictures."""

import logging

# Its lines about its cache of fonts would appear as ours.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
