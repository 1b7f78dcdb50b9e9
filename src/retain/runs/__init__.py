"""The run directory: what a run keeps on disk, and how it is read and checked."""
