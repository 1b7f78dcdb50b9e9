"""Learning a stream: tasks are trained one after another, saved and scored."""

from retain.learner.learned_model import Answer
from retain.learner.learner import Learner

__all__ = ["Answer", "Learner"]
