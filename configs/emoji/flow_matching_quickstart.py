"""The embedded emoji by heat flow matching, the best of docs/processes.md after minutes.

python train.py --config configs/emoji/flow_matching_quickstart.py --workdir runs/emoji/flow
python sample.py --workdir runs/emoji/flow --steps=25 --eta=1 --sampler=multistep
"""

from ml_collections import ConfigDict

from configs.emoji import quickstart
from configs.mnist.flow_matching_quickstart import by_flow_matching


def get_config() -> ConfigDict:
    """Quickstart's network and training, the digits' process."""
    return by_flow_matching(quickstart.get_config())
