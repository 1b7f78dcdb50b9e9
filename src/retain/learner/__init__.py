"""The sequence: tasks learned one after another, saved and scored."""

from retain.learner.learner import Answer, Learner

__all__ = ["Answer", "Learner"]
