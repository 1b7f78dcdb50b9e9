"""Learning a stream: tasks are trained one after another, saved and scored."""
