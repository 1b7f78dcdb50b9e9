"""Tasks in a file of examples that names none: groups of look-alikes, as a proposal."""
