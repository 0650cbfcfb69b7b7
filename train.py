"""Train an inverse heat dissipation model.

python train.py --config configs/mnist/quickstart.py --workdir runs/mnist/quickstart
python train.py --workdir runs/mnist/quickstart      # continues
python train.py --config configs/mnist/quickstart.py --workdir W --config.training.n_iters=2000

--config names a file below configs/ or your own; --config.section.key=value overrides any key of
configs/default.py.
"""

from scripts.config.flags import Values, run


def main(flags: Values) -> int:
    """Wire the flags to `scripts.training.loop`."""
    if flags.plan:
        from scripts.training.plan import plan

        print(plan(flags.config, flags.plan_tflops, flags.plan_utilization))
        return 0
    from scripts.evaluation.page import write_page
    from scripts.runtime import distributed
    from scripts.runtime.progress import optional
    from scripts.training.loop import train  # imports PyTorch, which --help need not wait for

    with distributed.processes(flags.config.distributed_timeout_minutes):
        exit_code = train(flags.config, flags.workdir)
        # Process 0 has saved: launchers end the others when one exits with an error.
        distributed.barrier()
        if exit_code == 0 and distributed.is_main():
            with optional("the page about the run"):
                print(f"report in {write_page(flags.workdir)}")
        return exit_code


if __name__ == "__main__":
    run("train", main)
