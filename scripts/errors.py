"""The one exception that means "the user can mend this", and text made safe to print.

A UserError is shown as a single line, without a traceback. File names come from elsewhere: printed as they are, they could
contain terminal escape sequences or line breaks.
"""

USAGE_ERROR = 2
"""Exit code for bad input."""


class UserError(ValueError):
    """Bad input. The message names the key, flag or file, the value found, and what would be right."""


def error_line(error: object) -> str:
    """How an error is shown."""
    return f"error: {one_line(error)}"


def printable(text: object) -> str:
    """The same text with unprintable characters escaped: an escape sequence as \\x1b, a line break as \\n."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(text: object) -> str:
    """The same text, `printable`, with every run of white space as one space."""
    return printable(" ".join(str(text).split()))
