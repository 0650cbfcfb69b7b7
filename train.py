"""Train an inverse heat dissipation model.

python train.py --config configs/mnist/quickstart.py --workdir runs/mnist/quickstart [--config.training.n_iters=2000 ...]

--config names a file below configs/ or your own; --config.section.key=value overrides any key of configs/default.py.
"""

from absl import flags

from scripts.config import define_config_flag, run
from scripts.distributed import processes
from scripts.files import user_path

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; a run that is already there is continued.", required=True)


def main() -> int:
    """Wire the flags to `scripts.training`."""
    from scripts.training import train  # imports PyTorch, which --help and mistyped flags need not wait for

    with processes() as world:
        return train(CONFIG.value, user_path(WORKDIR.value, "--workdir"), world)


if __name__ == "__main__":
    run(main)
