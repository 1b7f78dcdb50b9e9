"""Files, processes and progress, used by every other package."""
