"""The command line's entry point: errors of one line, exit statuses, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys

import typer

# Importing a module adds its commands, in the order of `retain --help`.
# isort: off
from retain.cli import learning, answering, reading, changing  # noqa: F401

# isort: on
from retain.cli.shared import app
from retain.errors import RetainError, StoppedError

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells; typer returns it for a KeyboardInterrupt."""


def _end_output() -> None:
    """Discards unwritable standard output, so that the interpreter's shutdown does not raise."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """Runs the command. A user's mistake ends with status 2 and one `error:` line.

    Ctrl-C finishes the current step and saves it; a second one stops at once. Both end with status
    130.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack characters
    try:
        status = app(standalone_mode=False, prog_name="retain")
        sys.stdout.flush()
        if status == INTERRUPTED:
            raise typer.Abort
    except RetainError as error:
        text = " ".join(str(error).split())
    except BrokenPipeError:  # the reader closed the pipe
        _end_output()
        sys.exit(1)
    except OSError as error:
        where = error.filename or "reading or writing failed"
        text = f"{where}: {error.strerror or error}; check the path and the free disk space"
    except MemoryError:
        text = "not enough memory; lower the batch sizes, or close other programs"
    except UnicodeError as error:
        text = f"not UTF-8 text ({error}); correct it"
    except (StoppedError, typer.Abort) as stop:  # the first Ctrl-C, or the second
        when = str(stop) or "at once"
        print(
            f"stopped {when}; to continue, give the same command (retain run with --resume)",
            file=sys.stderr,
        )
        sys.exit(INTERRUPTED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's: a wrong or missing option
        if usage is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "retain")
        text = f"{usage().rstrip('.')}; see {command} --help"
    else:
        sys.exit(status or 0)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _end_output()
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)
