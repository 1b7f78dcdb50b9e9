"""Scores: of an answer (`text`), and of a stream (`continual`)."""
