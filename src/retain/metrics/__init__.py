"""Scores of an answer (`text`, `trace`), a stream (`continual`, `published`), generated texts."""
