"""The one exception that means "the user can mend this": shown as a single line, without a traceback."""


class UserError(ValueError):
    """Bad input. The message names the key, flag or file, the value found, and what would be right."""
