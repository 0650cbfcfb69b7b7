"""evaluate.py with its results below the working directory's `runs`, so that tests leave the
program's own alone.
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.config.paths import ROOT
from scripts.evaluation import results

if __name__ == "__main__":
    results.RUNS = Path("runs").resolve()
    runpy.run_path(str(ROOT / "evaluate.py"), run_name="__main__")
