"""The one exception that means "the user can mend this", and text made safe to print.

A UserError is shown as a single line, without a traceback. File names come from elsewhere: printed
as they are, they could contain terminal escape sequences or line breaks.
"""

USAGE_ERROR = 2
"""Exit code for bad input."""


class UserError(ValueError):
    """Bad input. The message names the key, flag or file, the value found, and what is expected."""


def line_for(error: BaseException) -> str | None:
    """Return what to tell a user of an error that needs no traceback, in a line; None for a defect
    of the program.
    """
    # An OSError, of a full disk or missing permissions, names the file.
    if isinstance(error, UserError | OSError):
        return str(error)
    text = str(error)
    # PyTorch says in several ways that memory ran out, of a GPU or a processor.
    of_gpu = type(error).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text
    if isinstance(error, MemoryError) or of_gpu or "can't allocate memory" in text:
        what = one_line(error)[:200] or type(error).__name__
        advice = (
            "for training raise config.training.accumulation_steps or set "
            "config.training.recompute, otherwise lower --batch_size"
        )
        return f"out of memory ({what}): {advice}"
    return None


def error_line(error: object) -> str:
    """Return how an error is shown."""
    return f"error: {one_line(error)}"


def printable(text: object) -> str:
    """Return the same text with unprintable characters escaped: an escape sequence as \\x1b, a line
    break as \\n.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(text: object) -> str:
    """Return the same text, `printable`, with every run of white space as one space."""
    return printable(" ".join(str(text).split()))
