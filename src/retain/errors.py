"""The exceptions that the command line reports without a traceback."""


class RetainError(Exception):
    """A user's mistake; the message is one line: what is wrong, where, and what to do.

    The command line prints it as `error: …` and exits with status 2.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, and the next after a colon at its end.

    Blank lines do not count. Without a message it is the repr.
    """
    lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
    return " ".join([lines[0], *(line.strip() for line in lines[1:2] if lines[0].endswith(":"))])


class StoppedError(Exception):
    """The user asked to stop; finished work is saved and the run can be resumed.

    The message says where the work stopped, such as `after step 3 of 10`.
    """
