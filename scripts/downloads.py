"""Files from the network, whole or not at all."""

import shutil
import sys
import urllib.request
from pathlib import Path

from scripts.errors import UserError
from scripts.io import atomic_write

TIMEOUT = 30.0
"""Seconds without an answer."""


def fetch(url: str, file: Path, advice: str) -> None:
    """Download `url` to `file`, saying so. Raises UserError with `advice` if that fails."""
    print(f"fetching {url} to {file}", file=sys.stderr, flush=True)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT) as response,
            atomic_write(file) as temporary,
            temporary.open("wb") as target,
        ):
            shutil.copyfileobj(response, target)
    except (OSError, ValueError) as error:  # ValueError: an answer that is not HTTP
        reason = " ".join(str(error).split())
        raise UserError(f"{file} is not there and {url} cannot be fetched ({reason}): {advice}") from None
