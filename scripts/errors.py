"""The one exception that means "the user can mend this": shown as a single line, without a traceback."""

from scripts.text import one_line

USAGE_ERROR = 2


class UserError(ValueError):
    """Bad input. The message names the key, flag or file, the value found, and what would be right."""


def error_line(error: object) -> str:
    """How an error is shown."""
    return f"error: {one_line(error)}"
