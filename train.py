"""Train an inverse heat dissipation model.

python train.py --config configs/mnist/quickstart.py --workdir runs/mnist/quickstart [--config.training.n_iters=2000 ...]

--config names a file below configs/ or your own; --config.section.key=value overrides any key of configs/default.py.
"""

from absl import flags

from scripts.config import define_config_flag, run
from scripts.errors import UserError
from scripts.io import user_path

CONFIG = define_config_flag()
WORKDIR = flags.DEFINE_string("workdir", None, "Run directory; a run that is already there is continued.")
PLAN = flags.DEFINE_bool("plan", False, "Print what training and sampling would cost on 1, 8 and 64 GPUs, and do nothing.")
PLAN_TFLOPS = flags.DEFINE_float("plan_tflops", None, "With --plan: 10^12 operations a second at most; by default an H100's.")
PLAN_UTILIZATION = flags.DEFINE_float("plan_utilization", 0.4, "With --plan: the part of that which is reached.")


def main() -> int:
    """Wire the flags to `scripts.training.loop`."""
    if PLAN.value:
        from scripts.training.plan import plan

        print(plan(CONFIG.value, PLAN_TFLOPS.value, PLAN_UTILIZATION.value))
        return 0
    if WORKDIR.value is None:
        raise UserError("--workdir: name a run directory, such as --workdir=runs/mnist/first")
    from scripts import distributed
    from scripts.training.loop import train  # imports PyTorch, which --help and mistyped flags need not wait for

    with distributed.processes():
        return train(CONFIG.value, user_path(WORKDIR.value, "--workdir"))


if __name__ == "__main__":
    run(main)
