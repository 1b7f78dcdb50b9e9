"""The threads that render, tokenize and measure a request before it waits for the model."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

from retain.backbone import Backbone, Features
from retain.errors import RetainError, first_line
from retain.serve.batcher import QueueFullError
from retain.tasks import Example

SHORT = 4096
"""Number of characters up to which a prompt is short. Long ones wait for long ones only."""
MOST_CHARACTERS = 1 << 16
"""Number of characters that are always read. Their tokens take a tenth of a second."""
CHARACTERS_PER_TOKEN = 16
"""A token of ordinary text has about four characters. So a prompt with more than these for each of
`max_prompt_tokens` would lose most of its middle."""
logger = logging.getLogger("uvicorn.error")


class Encoder:
    """Makes the tokens of requests, or says why a request cannot be answered.

    There are two threads, one for short prompts and one for long ones. So a short prompt does not
    wait while a long one is tokenized.

    Args:
        backbone: of the run.
        queue_size: maximum number of requests that wait for one of the threads.

    Attributes:
        most_characters: maximum number of characters of a request's messages.
    """

    def __init__(self, backbone: Backbone, queue_size: int) -> None:
        self._backbone = backbone
        self._queue_size = queue_size
        self.most_characters = max(
            MOST_CHARACTERS, CHARACTERS_PER_TOKEN * backbone.prompt.max_prompt_tokens
        )
        backbone.texts.try_template()  # before requests come: it limits the process's memory
        self._short, self._long = _Lane(backbone), _Lane(backbone.for_another_thread())

    async def encode(
        self, example: Example, answer_tokens: int, templated: bool | None
    ) -> Features:
        """Encodes a prompt as in training.

        Args:
            example: the prompt.
            answer_tokens: maximum number of tokens of its answer.
            templated: whether the chat template is used; None leaves it to the prompt.

        Raises:
            RetainError: if it has too many characters, its template refuses it, it has no tokens,
                or it does not fit in the model's window together with its answer.
            QueueFullError: if too many requests wait to be encoded.
        """
        characters = sum(len(message["content"]) for message in example.messages)
        if characters > self.most_characters:
            raise RetainError(
                f"request: its messages have {characters} characters, but at most "
                f"{self.most_characters} are read; shorten them"
            )
        lane = self._short if characters <= SHORT else self._long
        if lane.pending >= self._queue_size:
            raise QueueFullError
        features = await lane.encode(example, templated)
        self._measure(len(features["input_ids"]), answer_tokens)
        return features

    def _measure(self, prompt: int, answer: int) -> None:
        """Raises RetainError if prompt and answer have too many tokens for the window."""
        backbone = self._backbone
        if backbone.fits(prompt, answer):
            return
        # An encoder-decoder's answer has a window of its own.
        window = backbone.answer_window if backbone.fits(prompt, 0) else backbone.window
        assert window is not None  # else everything fits
        left = window - (0 if backbone.is_encoder_decoder else prompt)
        fits = left > 0 and backbone.fits(prompt, left)
        lower = f", or set max_tokens to {left} or less" if fits else ""
        raise RetainError(
            f"request: {prompt} prompt tokens and {answer} answer tokens do not fit in the "
            f"{window} positions of the model; shorten the messages{lower}"
        )

    def close(self) -> None:
        """Ends the threads, after what they are doing."""
        self._short.close()
        self._long.close()


class _Lane:
    """One thread that encodes, and the number of requests that it has."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._thread = ThreadPoolExecutor(1, "encode")
        self.pending = 0

    async def encode(self, example: Example, templated: bool | None) -> Features:
        self.pending += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._encode, example, templated)
        finally:
            self.pending -= 1

    def _encode(self, example: Example, templated: bool | None) -> Features:
        try:
            return self._backbone.encode(example, with_answer=False, templated=templated)
        except RetainError:
            raise
        except BaseException as error:  # a panic of a tokenizer in Rust is no Exception
            logger.warning("a prompt could not be encoded: %r", error)
            raise RetainError(
                f"request: its prompt could not be encoded ({first_line(error)}); change the "
                "messages"
            ) from None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
