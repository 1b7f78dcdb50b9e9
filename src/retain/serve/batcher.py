"""The one thread that uses the model, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator

from retain.evaluation.streaming import Reply
from retain.learner import Answer, Learner
from retain.tasks import Example

GATHER = 0.01
"""Seconds in which those who were just answered may ask again, before the next batch begins."""


class QueueFullError(Exception):
    """As many requests wait as may."""


class Job:
    """One request, from the event loop to the model's thread and back.

    Args:
        example: its prompt.
        task: the task's name, where the method needs it.
        limit: the most tokens of its answer; None for the run's own limit.
        stream: whether pieces of the answer are wanted before its end.

    Attributes:
        reply: its answer as it grows.
        prompt_tokens: what the model read, once it is answered.
    """

    def __init__(self, example: Example, task: str | None, limit: int | None, stream: bool) -> None:
        self.example = example
        self.task = task
        self.reply = Reply(self.put if stream else None, limit)
        self.prompt_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()

    def put(self, event: str | Answer | Exception) -> None:
        """Tells the event loop a piece of the answer, or how it ended; from any thread."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncGenerator[str | Answer, None]:
        """Pieces of the answer, if they were asked for, and then the whole.

        Whoever leaves early ends the answer too. Raises what went wrong in the model's thread.
        """
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, Exception):
                    raise event
                yield event
                if isinstance(event, Answer):
                    return
        finally:
            self.reply.cancelled = True


class Batcher:
    """Answers what waits, a batch at a time, in the order it came.

    Requests of a batch differ in their routing, since every row has its own weights; only those of
    another task, for a method that needs its name, wait for a batch of their own. A batch has at
    most as many rows as the run's `evaluation.batch_size`.

    Attributes:
        waiting: the requests that wait for a batch.
    """

    def __init__(self, learner: Learner, room: int) -> None:
        self._learner = learner
        self._room = room
        self.waiting: list[Job] = []
        self._running: list[Job] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Takes a request in.

        Raises:
            QueueFullError: when as many wait as may.
        """
        with self._changed:
            self.waiting = self._wanted()
            if len(self.waiting) >= self._room:
                raise QueueFullError
            self.waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Ends the answers under way with their next token, and the thread."""
        with self._changed:
            self._closing = True
            for job in self._running:
                job.reply.cancelled = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.waiting or self._closing)
                if len(self._running) > 1:  # else clients in step take turns in small batches
                    self._changed.wait_for(lambda: self._closing, GATHER)
                if self._closing:
                    return
                self._running = self._next()
            if self._running:
                self._answer(self._running)

    def _wanted(self) -> list[Job]:
        """The waiting requests that somebody still listens to."""
        return [job for job in self.waiting if not job.reply.cancelled]

    def _next(self) -> list[Job]:
        """The longest waiting request, and what may go with it."""
        wanted = self._wanted()
        most = self._learner.experiment.evaluation.batch_size
        chosen = [job for job in wanted if job.task == wanted[0].task][:most]
        self.waiting = [job for job in wanted if job not in chosen]
        return chosen

    def _answer(self, jobs: list[Job]) -> None:
        try:
            examples = [job.example for job in jobs]
            answers = self._learner.answers(examples, jobs[0].task, [job.reply for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                encoded = self._learner.backbone.encode(job.example, with_answer=False)
                job.prompt_tokens = len(encoded["input_ids"])
                job.put(answer)
        except Exception as error:  # out of memory, say: this batch fails, the next may not
            logging.getLogger("uvicorn.error").exception("a batch of %d failed", len(jobs))
            for job in jobs:
                job.put(error)
