"""Answers that are told while they are written, and may be ended early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from retain.backbone import Backbone


class Reply:
    """One answer as it grows. What is told of it is, put together, the answer itself.

    A piece of text is told when one more token has left it as it was: bytes of a character that is
    not whole yet, spaces that may be the last, and what a tokenizer cleans up all wait.

    Args:
        tell: receives each piece of text, in the thread that generates; None tells nothing.
        limit: the most tokens, if fewer than the others of its batch may have.

    Attributes:
        tokens: the answer's ids so far, with its end token.
        ended: whether the end token came; if not, the answer was cut.
        stopping: set by who does not listen any more; the answer ends with its next token.
    """

    def __init__(self, tell: Callable[[str], None] | None = None, limit: int | None = None) -> None:
        self._tell = tell
        self._limit = limit
        self._text = ""  # as it was one token ago
        self._told = 0
        self.tokens: list[int] = []
        self.ended = False
        self.stopping = False

    @property
    def done(self) -> bool:
        """Whether no further token belongs to it."""
        return self.ended or self.stopping or len(self.tokens) == self._limit

    def add(self, token: int, backbone: Backbone, last: bool) -> None:
        """Takes the next token; `last` when generation ends here."""
        self.tokens.append(token)
        self.ended = token in backbone.end_ids
        if self._tell is None:
            return
        text = backbone.decode(self.tokens)
        if last or self.done:
            sure = text
        else:
            text = text.rstrip("\ufffd").rstrip()
            sure = self._text if text.startswith(self._text) else ""
            self._text = text
        if len(sure) > self._told:
            self._tell(sure[self._told :])
            self._told = len(sure)


class Listener(StoppingCriteria):
    """Hands a batch's tokens to its replies, and ends the rows that are done.

    `generate` asks a stopping criterion after each token, about every row; that is all it needs.
    """

    def __init__(self, backbone: Backbone, replies: Sequence[Reply], max_new_tokens: int) -> None:
        self.backbone = backbone
        self.replies = replies
        self.left = max_new_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Of a batch (B, S) that has got its next token, which rows are done, (B,)."""
        self.left -= 1
        for reply, token in zip(self.replies, input_ids[:, -1].tolist(), strict=True):
            if not reply.done:
                reply.add(token, self.backbone, last=self.left == 0)
        return torch.tensor([reply.done for reply in self.replies], device=input_ids.device)
