"""Evaluate a trained model: a bound on its likelihood, or the quality of its samples.

python evaluate.py --workdir W [--checkpoint 0] --mode=elbo [--exact] [--delta=0.013]
python evaluate.py --workdir W --mode=fid --dataset_name_cleanfid=cifar10 --num_gen=50000
python evaluate.py --workdir W --mode=elbo --delta=0.010:0.016:0.001 --checkpoint=1,2
python evaluate.py --save_stats --custom_name=N --dataset_path=D

--delta, --steps, --checkpoint and --seed take lists (a,b,... or first:last:step): all combinations
are evaluated, with a table and plots. A list in --steps that ends in 0 is one chain.

Scores are appended to runs/<dataset_name>/evaluation_results/<experiment_name>/, with everything
that they depend on.
"""

from scripts.config.flags import Values, run


def main(flags: Values) -> int:
    """Evaluate, and write the scores down."""
    from scripts.evaluation.command import evaluate, save_statistics
    from scripts.evaluation.page import PAGE, write_page
    from scripts.runtime import distributed  # imports PyTorch, which --help need not wait for
    from scripts.runtime.progress import optional

    with distributed.processes():
        if flags.save_stats:
            if distributed.is_main():
                save_statistics(flags)
            return 0
        exit_code = evaluate(flags)
        has_page = flags.workdir is not None and (flags.workdir / PAGE).exists()
        if distributed.is_main() and has_page:
            with optional("the page about the run"):
                write_page(flags.workdir)
        return exit_code


if __name__ == "__main__":
    run("evaluate", main)
