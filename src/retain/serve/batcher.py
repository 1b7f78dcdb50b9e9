"""The thread that uses the model, and the queue of requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator

from retain.evaluation.streaming import Reply
from retain.learner import Answer, Learner
from retain.tasks import Example

GATHER = 0.01
"""Seconds to wait after a batch, so that its clients can join the next batch."""


class QueueFullError(Exception):
    """The queue has its maximum number of requests."""


class Job:
    """One request, passed from the event loop to the model's thread and back.

    Args:
        example: the prompt.
        task: the task's name, if the method needs it.
        limit: maximum number of answer tokens; None for the run's limit.
        stream: whether pieces of the answer are wanted before its end.

    Attributes:
        reply: the answer so far.
        prompt_tokens: number of prompt tokens, set when the job is answered.
    """

    def __init__(self, example: Example, task: str | None, limit: int | None, stream: bool) -> None:
        self.example = example
        self.task = task
        self.reply = Reply(self.put if stream else None, limit)
        self.prompt_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()

    def put(self, event: str | Answer | Exception) -> None:
        """Passes a piece of the answer, the full answer or an error to the event loop.

        It may be called from any thread.
        """
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def events(self) -> AsyncGenerator[str | Answer, None]:
        """Yields pieces of the answer, if they were asked for, and then the full answer.

        A consumer that stops early cancels the answer. Errors of the model's thread are raised.
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
    """Answers waiting requests in batches, in the order of their arrival.

    Each request of a batch has its own weights over blocks. So a batch mixes tasks, except under a
    method that needs the task's name: then it has one task. A batch has at most the run's
    `evaluation.batch_size` requests.

    Args:
        learner: a loaded run.
        queue_size: maximum number of waiting requests.

    Attributes:
        waiting: the requests that wait for a batch.
    """

    def __init__(self, learner: Learner, queue_size: int) -> None:
        self._learner = learner
        self._queue_size = queue_size
        self.waiting: list[Job] = []
        self._running: list[Job] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Starts the model's thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Adds a request to the queue.

        Raises:
            QueueFullError: if the queue is full.
        """
        with self._changed:
            self.waiting = self._not_cancelled()
            if len(self.waiting) >= self._queue_size:
                raise QueueFullError
            self.waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Cancels running answers after their next token and ends the model's thread."""
        with self._changed:
            self._closing = True
            for job in self._running:
                job.reply.cancelled = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        """Answers batches until the batcher is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self.waiting or self._closing)
                # Without this wait, the clients of the last batch miss the next one, and two groups
                # of clients take turns in small batches.
                if len(self._running) > 1:
                    self._changed.wait_for(lambda: self._closing, GATHER)
                if self._closing:
                    return
                self._running = self._next()
            if self._running:
                self._answer(self._running)

    def _not_cancelled(self) -> list[Job]:
        """Returns the waiting requests whose clients are still connected."""
        return [job for job in self.waiting if not job.reply.cancelled]

    def _next(self) -> list[Job]:
        """Takes the next batch from the queue: the oldest request and others of the same task."""
        jobs = self._not_cancelled()
        limit = self._learner.experiment.evaluation.batch_size
        chosen = [job for job in jobs if job.task == jobs[0].task][:limit]
        self.waiting = [job for job in jobs if job not in chosen]
        return chosen

    def _answer(self, jobs: list[Job]) -> None:
        """Answers one batch and passes the answers, or the error, to its jobs."""
        try:
            examples = [job.example for job in jobs]
            answers = self._learner.answers(examples, jobs[0].task, [job.reply for job in jobs])
            for job, answer in zip(jobs, answers, strict=True):
                encoded = self._learner.backbone.encode(job.example, with_answer=False)
                job.prompt_tokens = len(encoded["input_ids"])
                job.put(answer)
        except Exception as error:  # such as out of memory: the next batch may still succeed
            logging.getLogger("uvicorn.error").exception("a batch of %d failed", len(jobs))
            for job in jobs:
                job.put(error)
