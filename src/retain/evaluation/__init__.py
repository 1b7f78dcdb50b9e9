"""Answers to prompts, complete or streamed, and their scores."""
