"""Scores of an answer (`text`, `trace`), a stream (`continual`), generated texts."""
