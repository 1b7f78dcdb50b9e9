"""Scores of one answer (`text`, `trace`), of a stream (`continual`), of generated texts."""
