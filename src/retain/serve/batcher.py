"""The thread that uses the model, and the queue of requests."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress

from retain.backbone import Features
from retain.errors import RetainError
from retain.evaluation.streaming import Reply
from retain.learner.learned_model import Answer, LearnedModel
from retain.tasks import Example

GATHER = 0.01
"""Seconds to wait after a batch, so that its clients can join the next batch."""
LAST_TOKEN = 1.5
"""Seconds that the model's thread has, when the server ends, to end its answers."""
logger = logging.getLogger("uvicorn.error")


class QueueFullError(Exception):
    """The queue has its maximum number of requests."""


class StoppingError(Exception):
    """The server ends, and this request is not answered to its end."""


class FailedError(Exception):
    """The model failed on this request; the log has the reason."""


class Job:
    """One request, passed from the event loop to the model's thread and back.

    Args:
        example: the prompt.
        encoded: the prompt's tokens.
        task: the task's name, if the method needs it.
        limit: maximum number of answer tokens.
        stream: whether pieces of the answer are wanted before its end.

    Attributes:
        reply: the answer so far.
        prompt_tokens: number of prompt tokens.
        left: whether nobody reads the answer any more.
    """

    def __init__(
        self, example: Example, encoded: Features, task: str | None, limit: int, stream: bool
    ) -> None:
        self.example = example
        self.encoded = encoded
        self.task = task
        self.limit = limit
        self.reply = Reply(self.put if stream else None, limit)
        self.prompt_tokens = len(encoded["input_ids"])
        self.left = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Answer | Exception] = asyncio.Queue()

    def put(self, event: str | Answer | Exception) -> None:
        """Passes a piece of the answer, the full answer or an error to the event loop.

        It may be called from any thread.
        """
        with suppress(RuntimeError):  # the server has ended, and its event loop with it
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
            self.left = self.reply.cancelled = True


class Batcher:
    """Answers waiting requests in batches, in the order of their arrival.

    Each request of a batch has its own weights over blocks. So a batch mixes tasks, except under a
    method that needs the task's name: then it has one task. A batch has at most the run's
    `evaluation.batch_size` requests, and its longest prompt fits in the window together with its
    longest answer.

    Args:
        learned: a loaded run.
        queue_size: maximum number of waiting requests.

    Attributes:
        waiting: the requests that wait for a batch.
    """

    def __init__(self, learned: LearnedModel, queue_size: int) -> None:
        self._learned = learned
        self._queue_size = queue_size
        self.waiting: list[Job] = []
        self._running: list[Job] = []
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the model's thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the model's thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Adds a request to the queue.

        Raises:
            QueueFullError: if the queue is full.
            StoppingError: if the server ends.
        """
        with self._changed:
            if self._closing:
                raise StoppingError
            self.waiting = self._not_cancelled()
            if len(self.waiting) >= self._queue_size:
                raise QueueFullError
            self.waiting.append(job)
            self._changed.notify()

    def stop(self) -> None:
        """Ends all requests with a StoppingError, running answers after their next token."""
        with self._changed:
            self._closing = True
            for job in (*self.waiting, *self._running):
                job.put(StoppingError())
                job.reply.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """Ends all requests, and the model's thread."""
        self.stop()
        self._thread.join(LAST_TOKEN)

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
            self._answer(self._running)

    def _not_cancelled(self) -> list[Job]:
        """Returns the waiting requests whose clients are still connected."""
        return [job for job in self.waiting if not job.left]

    def _next(self) -> list[Job]:
        """Takes the next batch from the queue: the oldest request and others that go with it."""
        jobs = self._not_cancelled()
        size = self._learned.experiment.evaluation.batch_size
        chosen: list[Job] = []
        for job in jobs:
            if len(chosen) < size and job.task == jobs[0].task and self._fit([*chosen, job]):
                chosen.append(job)
        self.waiting = [job for job in jobs if job not in chosen]
        return chosen

    def _fit(self, jobs: list[Job]) -> bool:
        """Returns whether a batch, padded to its longest prompt and answer, fits in the window."""
        return self._learned.backbone.fits(
            max(job.prompt_tokens for job in jobs), max(job.limit for job in jobs)
        )

    def _answer(self, jobs: list[Job]) -> None:
        """Answers one batch and passes the answers to its jobs.

        If it fails, its halves are answered alone: the error of one request is only its own, and
        half a batch may have enough memory.
        """
        if self._closing or not jobs or self._try(jobs):
            return
        for job in jobs:
            job.reply.begin_again()
        jobs = [job for job in jobs if not job.left]
        half = -(-len(jobs) // 2)
        self._answer(jobs[:half])
        self._answer(jobs[half:])

    def _try(self, jobs: list[Job]) -> bool:
        """Answers one batch; returns whether it was answered, or was a single request's failure."""
        try:
            answers = self._learned.answers(
                [job.example for job in jobs],
                jobs[0].task,
                [job.reply for job in jobs],
                [job.encoded for job in jobs],
            )
        except BaseException as error:  # a panic of a library in Rust is no Exception
            if len(jobs) > 1:
                logger.warning("a batch of %d failed (%r); answers its halves", len(jobs), error)
                return False
            if isinstance(error, RetainError):
                logger.error("a request failed: %s", error)
            else:
                logger.exception("a request failed")
            jobs[0].put(FailedError())
            return True
        for job, answer in zip(jobs, answers, strict=True):
            job.put(answer)
        return True
