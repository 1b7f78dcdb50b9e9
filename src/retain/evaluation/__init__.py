"""Answers to prompts, whole or streamed, and their scores."""
