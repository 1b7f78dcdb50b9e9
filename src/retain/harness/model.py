"""A backbone behind lm-evaluation-harness's model interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from retain.backbone import Backbone, Batch, Features
from retain.backbone.losses import IGNORED
from retain.system.progress import Progress
from retain.tasks import Example

Route = Callable[[Batch], None]
"""Sets the weights over blocks for a batch."""

MAX_TOKENS = 2048
"""Longest text read at once, for models with a longer window or without a stated one."""


class RoutedLM(TemplateLM):
    """A backbone that answers the harness's requests, on raw text without a chat template.

    The method's routing reads the context like a prompt; if there is no context, it reads the text
    itself.

    Args:
        backbone: plain, or with a method's layers installed.
        route: sets the weights over blocks for a batch.
        batch_size: number of texts per batch.
        progress: receives each batch.
        label: what the progress shows.
    """

    def __init__(
        self, backbone: Backbone, route: Route, batch_size: int, progress: Progress, label: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = backbone.tokenizer
        self.backend = "seq2seq" if backbone.is_encoder_decoder else "causal"
        self._route = route
        self._batch_size = batch_size
        self._progress = progress
        self._label = label
        known = (backbone.window, backbone.answer_window)
        self.max_length = min([MAX_TOKENS, *(limit for limit in known if limit)])
        self.max_length -= backbone.virtual_tokens

    @property
    def eot_token_id(self) -> int:
        """The id of the end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The id of the token that precedes a text without context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Tokenizes a text, with special tokens unless `add_special_tokens` is False."""
        special = add_special_tokens is not False
        return self.backbone.texts.plain_ids(string, special)

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Computes log p of full texts; a long text is split into windows."""
        texts = [str(request.args[0]) for request in requests]
        pieces, text_of_piece = [], []
        for number, text in enumerate(texts):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            for context, predicted in map(make_disjoint_window, windows):
                pieces.append((text, context, predicted))
                text_of_piece.append(number)
        totals = [0.0] * len(texts)
        # Batch size 1, since every position has logits over the vocabulary.
        for number, (log_p, _) in zip(text_of_piece, self._scored(pieces, 1), strict=True):
            totals[number] += log_p
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generates answers up to a stop text, greedily unless the task asks for sampling."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1])
            stops, count = [stop for stop in options["until"] if stop], options["max_gen_toks"]
            sampling: dict[str, Any] = {}
            if options["do_sample"]:
                sampling = {"do_sample": True, "temperature": options["temperature"]}
            if stops:
                sampling |= {"stop_strings": stops, "tokenizer": self.tokenizer}
            answer_length = 0 if self.backbone.is_encoder_decoder else count
            context_length = max(1, self.max_length - answer_length)
            texts = [str(requests[number].args[0]) for number in numbers]
            rows = [
                self._row(text, (self.tok_encode(text) or [self.prefix_token_id])[-context_length:])
                for text in texts
            ]
            for chosen in self._batches(rows, self._batch_size):
                batch = self.backbone.collate([rows[i] for i in chosen])
                with torch.no_grad(), self.backbone.precision():
                    self._route(batch)
                    generated = self.backbone.generate(batch, count, **sampling)
                for i, text in zip(chosen, generated, strict=True):
                    cut = min((text.find(stop) for stop in stops if stop in text), default=None)
                    answers[numbers[i]] = text[:cut]
        return answers

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pieces = [(texts[0] or texts[1], ids, predicted) for texts, ids, predicted in requests]
        return self._scored(pieces, self._batch_size)

    def _scored(
        self, pieces: Sequence[tuple[str, list[int], list[int]]], batch_size: int
    ) -> list[tuple[float, bool]]:
        """Computes log p of ids that follow a context, and whether greedy decoding gives them.

        Args:
            pieces: each the text that routing reads, the context's ids and the ids to predict.
            batch_size: number of pieces per batch.
        """
        rows = []
        first = self.backbone.texts.first_ids if self.backbone.is_encoder_decoder else []
        for text, context, predicted in pieces:
            predicted = predicted[1 - self.max_length :]
            if self.backbone.is_encoder_decoder:
                labels = [*first, *predicted]
                rows.append({**self._row(text, context[-self.max_length :]), "labels": labels})
                continue
            row = self._row(text, context[len(predicted) - self.max_length :])
            ids = row["input_ids"]
            labels = [IGNORED] * len(ids) + predicted
            rows.append({**row, "input_ids": ids + predicted, "labels": labels})
        scores = [(0.0, True)] * len(rows)
        for chosen in self._batches(rows, batch_size):
            batch = self.backbone.collate([rows[i] for i in chosen])
            with torch.no_grad(), self.backbone.precision():
                self._route(batch)
                logits, targets = self.backbone.answer_logits(batch)  # (B, K, V), (B, K)
            # A token that is forced before every answer is read, and is not asked for.
            targets = targets.clone()
            targets[:, : len(first)] = IGNORED
            losses = F.cross_entropy(  # (B, K)
                logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
            )
            greedy = ((logits.argmax(-1) == targets) | (targets == IGNORED)).all(1)  # (B,)
            for i, loss, is_greedy in zip(chosen, losses.sum(1), greedy, strict=True):
                scores[i] = (-float(loss), bool(is_greedy))
        return scores

    def _row(self, text: str, ids: list[int]) -> Features:
        """Returns features with a context's ids and the ids that routing reads of a text."""
        example = Example(text, ("",))
        route_ids = self.backbone.encode(example, False, templated=False)["route_ids"]
        virtual = [*range(-1, -1 - self.backbone.virtual_tokens, -1)]
        return {"input_ids": [*virtual, *ids], "route_ids": route_ids}

    def _batches(self, rows: Sequence[Features], size: int) -> Iterator[list[int]]:
        """Yields the indices of each batch's rows, longest first, so that there is little padding.

        Progress is updated after each batch.
        """
        self.backbone.model.eval()
        self._progress.start(self._label, len(rows), "texts")
        try:
            done = 0
            for chosen in self.backbone.batches(rows, size):
                yield chosen
                done += len(chosen)
                self._progress.update(done)
        finally:
            self._progress.finish()
