"""Train an inverse heat dissipation model.

python train.py --config configs/mnist/quickstart.py --workdir runs/mnist/quickstart
python train.py --workdir runs/mnist/quickstart      # continues
python train.py --config configs/mnist/quickstart.py --workdir W --config.training.n_iters=2000

--config names a file below configs/ or your own; --config.section.key=value overrides any key of
configs/default.py.
"""

import subprocess
import sys
import warnings
from pathlib import Path

from scripts.config.flags import Values, run
from scripts.config.paths import ROOT


def main(flags: Values) -> int:
    """Wire the flags to `scripts.training.loop`."""
    if flags.plan:
        from scripts.training.plan import plan

        print(plan(flags.config, flags.plan_tflops, flags.plan_utilization))
        return 0
    from scripts.runtime import distributed
    from scripts.training.loop import train  # imports PyTorch, which --help need not wait for

    with distributed.processes(flags.config.distributed_timeout_minutes):
        exit_code = train(flags.config, flags.workdir)
        # Process 0 has saved: launchers end the others when one exits with an error.
        distributed.barrier()
        if exit_code == 0 and distributed.is_main():
            write_page(flags.workdir)
        return exit_code


def write_page(workdir: Path) -> None:
    """Write the page about the run and print where it is.

    A failure is a warning: the training itself is complete.
    """
    command = [sys.executable, "-m", "scripts.tools.report", f"--workdir={workdir.resolve()}"]
    try:
        print(
            subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout.strip()
        )
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (
            error.stderr.strip()[-300:]
            if isinstance(error, subprocess.CalledProcessError)
            else error
        )
        warnings.warn(f"the report could not be written: {reason}", stacklevel=1)


if __name__ == "__main__":
    run("train", main)
