"""The experiment: files, checked settings and the tasks that they name."""
