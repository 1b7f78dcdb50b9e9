"""The command line: each command is a few lines over the library."""

from retain.cli.entry import main
from retain.cli.shared import app

__all__ = ["app", "main"]
