"""`python -m retain`, for launchers that start a module."""

from retain.cli import main

main()
