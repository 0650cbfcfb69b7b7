"""A page about a run, index.html in its directory: one file that needs no network and nothing beside it.

python -m scripts.tools.report WORKDIR

Training writes it with every set of samples; the command brings it up to date, also after sample.py and evaluate.py.
"""

import base64
import hashlib
import string
import time
from html import escape
from pathlib import Path

from absl import flags

from scripts.config import run
from scripts.errors import UserError
from scripts.io import atomic_write
from scripts.tools import report_sections as sections
from scripts.tools.run_directory import RunDirectory

HERE = Path(__file__).parent


def main() -> int:
    """Write the page that the flags ask for."""
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: python -m scripts.tools.report runs/mnist/quickstart")
    print(f"report in {write_report(Path(flags.FLAGS.workdir))}")
    return 0


def write_report(workdir: Path) -> Path:
    """Write `index.html` about what is in the run directory so far. Returns its path.

    Raises UserError if `workdir` is not a run directory or its config.json cannot be read.
    """
    contents = RunDirectory.read(workdir)
    script = (HERE / "report.js").read_text()
    template = string.Template((HERE / "report.html").read_text())
    page = template.substitute(
        title=escape(workdir.resolve().name),
        header=sections.header(contents),
        body="".join(
            f'<section aria-label="{heading}">\n<h2>{heading}</h2>\n{section}\n</section>\n'
            for heading, section in (
                ("Samples over training", sections.samples(contents)),
                ("Curves", sections.curves(contents)),
                ("Scores", sections.scores(contents)),
                ("More samples", sections.more_samples(contents)),
                ("Events", sections.events(contents)),
                ("Configuration", sections.configuration(contents)),
            )
            if section
        ),
        footer=f"Page written {sections.time_of(time.time())} by <code>python -m scripts.tools.report</code>",
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = workdir / "index.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


if __name__ == "__main__":
    # Not above: training, which has a flag of this name, imports this file.
    flags.DEFINE_string("workdir", None, "Run directory; the flag's name may be left out.")
    run(main, positional="workdir")
