"""Text from elsewhere, such as names of files, on its way to a terminal or a log."""


def printable(text: object) -> str:
    """The same text with whatever does not print written out: an escape sequence as \\x1b, a line break as \\n.

    Printed as it is, a file name could clear the screen, hide a line, or pass for a line of its own.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def one_line(text: object) -> str:
    """The same text, `printable`, with all white space as single spaces."""
    return printable(" ".join(str(text).split()))


def has_control_characters(text: str) -> bool:
    """Whether there are line breaks, escapes or the like in it; rare letters and bytes that are not text may be."""
    return any(ord(c) < 32 for c in text)
