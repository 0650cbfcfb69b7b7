"""The 5,000 embedded MNIST digits by heat flow matching (Ma et al., 2026), trained as
quickstart.py.

python train.py --config configs/mnist/flow_matching_quickstart.py \\
    --workdir runs/mnist/flow_matching_quickstart
python sample.py --workdir runs/mnist/flow_matching_quickstart --steps=25 --eta=1 \\
    --sampler=multistep
"""

from ml_collections import ConfigDict

from configs.mnist import quickstart


def by_flow_matching(config: ConfigDict) -> ConfigDict:
    """The same by heat flow matching: K = 100, blur up to 8 pixels."""
    config.data.uniform_dequantization = False  # the bound is one on 8-bit images
    config.model.process = "flow_matching"
    config.model.K = 100
    config.model.sigma = 0.01  # the default: noise has a schedule of its own
    config.model.blur_sigma_max = 8.0
    return config


def get_config() -> ConfigDict:
    """Quickstart's network and training."""
    return by_flow_matching(quickstart.get_config())
