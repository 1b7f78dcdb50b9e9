"""The command line's entry point: errors of one line, exit statuses, Ctrl-C."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress

import typer

# Importing a module adds its commands, in the order of `retain --help`.
# isort: off
from retain.cli import learning, answering, reading, changing  # noqa: F401

# isort: on
from retain.cli.shared import app
from retain.errors import RetainError, StoppedError
from retain.system.printing import (
    OUTPUT,
    escaped,
    flush_or_discard,
    open_standard_streams,
    to_output,
)

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells; typer returns it for a KeyboardInterrupt."""


def _report(text: str) -> None:
    """Prints one line on standard error, if that takes any."""
    with suppress(OSError):
        print(escaped(text), file=sys.stderr, flush=True)


def main() -> None:
    """Runs the command. A user's mistake ends with status 2 and one `error:` line.

    Ctrl-C finishes the current step and saves it; a second one stops at once. Both end with status
    130.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    open_standard_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal may lack characters
    try:
        status = app(standalone_mode=False, prog_name="retain")
        with to_output():
            sys.stdout.flush()
        if status == INTERRUPTED:
            raise typer.Abort
    except RetainError as error:
        text = " ".join(str(error).split())
    except BrokenPipeError:  # the reader closed the pipe
        flush_or_discard(sys.stdout, sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = error.filename or "reading or writing failed"
        advice = "check the path and the free disk space"
        if where == OUTPUT:
            advice = "files that the command wrote before are complete"
        text = f"{where}: {error.strerror or error}; {advice}"
    except MemoryError:
        text = "not enough memory; lower the batch sizes, or close other programs"
    except UnicodeError as error:
        text = f"not UTF-8 text ({error}); correct it"
    except (StoppedError, typer.Abort) as stop:  # the first Ctrl-C, or the second
        when = str(stop) or "at once"
        _report(f"stopped {when}; to continue, give the same command (retain run with --resume)")
        flush_or_discard(sys.stdout, sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's: a wrong or missing option
        if usage is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "retain")
        text = f"{usage().rstrip('.')}; see {command} --help"
    else:
        flush_or_discard(sys.stderr)
        sys.exit(status or 0)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _report(f"error: {text}")
    flush_or_discard(sys.stdout, sys.stderr)
    sys.exit(2)
