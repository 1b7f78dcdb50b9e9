"""What a user can cause: a mistake, or an end of the work."""


class RetainError(Exception):
    """Bad input: one line that says what is wrong, where, and what to do.

    The command line prints it as `error: …` and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """What a library's error says, in one line; its name where it says nothing."""
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


class StoppedError(Exception):
    """The user asked for an end: what was done is on disk, and the run can go on from there."""
