"""A page about a run: `index.html` in its directory, a single file that needs no network.

python -m scripts.tools.report WORKDIR [--out=page.html]

train.py and evaluate.py write it when they end. Run it again after sampling to bring the page up
to date.
"""

from scripts.config.flags import Values, run
from scripts.evaluation.page import write_page


def main(flags: Values) -> int:
    """Write the page of the run that the flag names."""
    print(f"report in {write_page(flags.workdir, flags.out)}")
    return 0


if __name__ == "__main__":
    run("report", main, positional="workdir")
