"""The exceptions that the command line reports without a traceback."""


class RetainError(Exception):
    """A user's mistake; the message is one line: what is wrong, where, and what to do.

    The command line prints it as `error: …` and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """Returns the first non-empty line of an exception's message; its repr if there is none."""
    return next((line for line in str(error).splitlines() if line.strip()), repr(error))


class StoppedError(Exception):
    """The user asked to stop; finished work is saved and the run can be resumed.

    The message says where the work stopped, such as `after step 3 of 10`.
    """
