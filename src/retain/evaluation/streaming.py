"""Streaming of answers: pieces of text while an answer is generated, and early ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from retain.backbone import Backbone


class Reply:
    """A streaming answer; the concatenated pieces equal the final text.

    A piece of text is sent when one more token has left it unchanged. This holds back incomplete
    UTF-8 characters, white space that may be the answer's end, and text that the tokenizer may
    still clean up.

    Args:
        send: receives each piece of text, in the thread that generates; None if nothing is to be
            sent before the end.
        limit: maximum number of tokens, if lower than that of the batch.

    Attributes:
        limit: as given.
        tokens: ids of the answer so far, including its end token.
        ended: whether the end token was generated; if not, the answer was cut.
        cancelled: set to True by a reader who has left; the answer ends after its next token.
    """

    def __init__(self, send: Callable[[str], None] | None = None, limit: int | None = None) -> None:
        self._send = send
        self.limit = limit
        self._text = ""  # the text before the last token
        self._sent = ""  # the text sent
        self._begun_again = False
        self.tokens: list[int] = []
        self.ended = False
        self.cancelled = False

    @property
    def done(self) -> bool:
        """Whether the answer gets no further token."""
        return self.ended or self.cancelled or len(self.tokens) == self.limit

    def add(self, token: int, backbone: Backbone, last: bool) -> None:
        """Adds the next token and sends the text that is final; `last` if generation ends here."""
        self.tokens.append(token)
        self.ended = token in backbone.end_ids
        if self._send is None:
            return
        text = backbone.decode(self.tokens)
        if last or self.done:
            final = text
        else:
            text = text.rstrip("\ufffd").rstrip()
            final = self._text if text.startswith(self._text) else ""
            self._text = text
        if len(final) > len(self._sent):
            if self._begun_again and not final.startswith(self._sent):
                raise RuntimeError("the second try of an answer differs from what was sent of it")
            self._send(final[len(self._sent) :])
            self._sent = final

    def begin_again(self) -> None:
        """Takes the answer from its first token once more; what was sent is not sent twice."""
        self.tokens, self._text = [], ""
        self.ended = self.cancelled = False
        self._begun_again = True


class Listener(StoppingCriteria):
    """Stopping criterion that passes a batch's tokens to its replies and ends those that are done.

    `generate` calls a stopping criterion after each token, with all sequences of the batch.
    transformers' streamers take one sequence only and cannot end it.

    Args:
        backbone: decodes the tokens.
        replies: one per example of the batch.
        max_new_tokens: of the batch.
    """

    def __init__(self, backbone: Backbone, replies: Sequence[Reply], max_new_tokens: int) -> None:
        self.backbone = backbone
        self.replies = replies
        self.tokens_left = max_new_tokens

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Takes ids (B, S) with one more token; returns which sequences are done, (B,)."""
        self.tokens_left -= 1
        for reply, token in zip(self.replies, input_ids[:, -1].tolist(), strict=True):
            if not reply.done:
                reply.add(token, self.backbone, last=self.tokens_left == 0)
        return torch.tensor([reply.done for reply in self.replies], device=input_ids.device)
