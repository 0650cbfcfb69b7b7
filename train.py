"""Train an inverse heat dissipation model.

python train.py --config configs/mnist/quickstart.py --workdir runs/mnist/quickstart [--config.training.n_iters=2000 ...]
python train.py --workdir runs/mnist/quickstart      # goes on

--config names a file below configs/ or your own; --config.section.key=value overrides any key of configs/default.py.
"""

import subprocess
import sys
import warnings
from pathlib import Path

from absl import flags

from scripts.config.flags import define_config_flag, define_path_flag, run
from scripts.config.paths import ROOT
from scripts.errors import UserError

CONFIG = define_config_flag()
WORKDIR = define_path_flag("workdir", "Run directory; a run that is already there is continued.")
PLAN = flags.DEFINE_bool("plan", False, "Print what training and sampling would cost on 1, 8 and 64 GPUs, and do nothing.")
PLAN_TFLOPS = flags.DEFINE_float("plan_tflops", None, "With --plan: 10^12 operations a second; by default an H100's.", 1e-3)
PLAN_UTILIZATION = flags.DEFINE_float("plan_utilization", 0.4, "With --plan: the part of that which is reached.", 0.01, 1.0)


def main() -> int:
    """Wire the flags to `scripts.training.loop`."""
    if PLAN.value:
        from scripts.training.plan import plan

        print(plan(CONFIG.value, PLAN_TFLOPS.value, PLAN_UTILIZATION.value))
        return 0
    if WORKDIR.value is None:
        raise UserError("--workdir: name a run directory, such as --workdir=runs/mnist/first")
    from scripts.runtime import distributed
    from scripts.training.loop import train  # imports PyTorch, which --help and mistyped flags need not wait for

    with distributed.processes(CONFIG.value.distributed_timeout_minutes):
        exit_code = train(CONFIG.value, WORKDIR.value)
        distributed.barrier()  # process 0 has saved: launchers end the others when one exits with an error
        if exit_code == 0 and distributed.is_main():
            write_page(WORKDIR.value)
        return exit_code


def write_page(workdir: Path) -> None:
    """Write the page about the run and print where it is. A failure is a warning: the training itself is complete."""
    command = [sys.executable, "-m", "scripts.tools.report", f"--workdir={workdir.resolve()}"]
    try:
        print(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip())
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip()[-300:] if isinstance(error, subprocess.CalledProcessError) else error
        warnings.warn(f"the report could not be written: {reason}", stacklevel=1)


if __name__ == "__main__":
    run(main)
