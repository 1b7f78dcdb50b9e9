"""Tables of methods and settings over seeds: planned, learned, measured, written."""
