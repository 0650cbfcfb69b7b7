"""Paths and names as users type them, and where this program is."""

from pathlib import Path

from scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def user_path(text: str, flag: str) -> Path:
    """Return a path as a user wrote it, with ~ expanded.

    Raises UserError naming `flag` for one that cannot be a path.
    """
    if any(ord(c) < 32 for c in text):
        raise UserError(f"{flag}={text}: not a path, as it has control characters")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # ~somebody who has no home here
        raise UserError(f"{flag}={text}: not a path ({error})") from None


def plain_name(flag: str, name: str) -> str:
    """`name`, if it can be part of a file's name.

    Raises UserError naming `flag` if it would lead elsewhere.
    """
    if not name or name in (".", "..") or "/" in name or not name.isprintable():
        raise UserError(f"{flag}={name}: must be a plain name, such as my_images")
    return name
