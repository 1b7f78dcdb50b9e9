"""The one exception that a user's input can cause."""


class RetainError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do.

    The command line prints it as `error: …` and exits with status 2.
    """
