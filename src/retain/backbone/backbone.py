"""A pretrained model with its tokenizer, on one interface for decoder-only and encoder-decoder.

A decoder-only model reads prompt and answer as one sequence, an encoder-decoder reads the prompt
and writes the answer; both are padded so that answers can be cut out with one slice, and the
vocabulary projection is computed at answer positions only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from retain.errors import RetainError
from retain.tasks import Example

Features = dict[str, list[int]]
"""Token ids of one example: `input_ids`, `labels` (the answer's, −100 elsewhere), `route_ids`."""

Batch = dict[str, Tensor]
"""Padded features: each (B, S), with `attention_mask` and `route_mask` (1 = a token)."""

IGNORED = -100
PROMPT_KEYS = ("input_ids", "attention_mask")


class PromptConfig(BaseModel):
    """How a prompt becomes tokens. A longer prompt keeps its head and tail and loses its middle."""

    model_config = ConfigDict(extra="forbid")

    chat_template: bool = False
    max_prompt_tokens: PositiveInt = 512
    max_answer_tokens: PositiveInt = 128


class Backbone:
    """Model, tokenizer and prompt format.

    Raises:
        RetainError: when a chat template is wanted and the tokenizer has none.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        prompt: PromptConfig | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.name = name
        self.prompt = prompt or PromptConfig()
        self.is_encoder_decoder: bool = model.config.is_encoder_decoder
        if self.prompt.chat_template and not tokenizer.chat_template:
            raise RetainError(
                f"backbone '{name}': its tokenizer has no chat template; "
                "set prompt.chat_template: false"
            )
        if tokenizer.eos_token_id is None:
            raise RetainError(f"backbone '{name}': its tokenizer has no end token (eos_token)")
        self.pad_id: int = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
        # Not every decoder can leave positions out of its vocabulary projection.
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.embedding.weight.device

    @property
    def embedding(self) -> nn.Embedding:
        """The (frozen) token embedding, (vocabulary, width)."""
        return self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """d, the width of the token embeddings."""
        return self.embedding.embedding_dim

    # -- text → tokens

    def encode(self, example: Example, with_answer: bool = True) -> Features:
        """Tokens of one example; with `with_answer`, of its first reference too.

        `route_ids` are the user's own words, without template and special tokens: what a router
        pools.
        """
        ids, cue = self._prompt_ids(example)
        route_ids = self._shorten(self._ids(example.prompt))
        features = {"input_ids": ids, "route_ids": route_ids or [self.pad_id]}
        if not with_answer:
            return features
        joint = "" if self.is_encoder_decoder or cue[-1:].isspace() else " "
        if self.prompt.chat_template:
            joint = ""
        answer = self._ids(joint + example.references[0].strip())
        answer = [*answer[: self.prompt.max_answer_tokens], self.tokenizer.eos_token_id]
        if self.is_encoder_decoder:
            return {**features, "labels": answer}
        return {
            **features,
            "input_ids": ids + answer,
            "labels": [IGNORED] * len(ids) + answer,
        }

    def collate(self, rows: Sequence[Features]) -> Batch:
        """Pads features into a batch; decoder-only sequences are padded on the left."""
        left = not self.is_encoder_decoder
        batch: Batch = {}
        for key, filler in (
            ("input_ids", self.pad_id),
            ("labels", IGNORED),
            ("route_ids", self.pad_id),
        ):
            if key in rows[0]:
                batch[key] = _pad([row[key] for row in rows], filler, left and key != "route_ids")
        batch["attention_mask"] = _pad([[1] * len(r["input_ids"]) for r in rows], 0, left)
        batch["route_mask"] = _pad([[1] * len(r["route_ids"]) for r in rows], 0, False)
        return {key: value.to(self.device) for key, value in batch.items()}

    def _prompt_ids(self, example: Example) -> tuple[list[int], str]:
        """The prompt's tokens, and its text (whose end decides how the answer is joined)."""
        if self.prompt.chat_template:
            turns = list(example.messages) or [{"role": "user", "content": example.prompt}]
            text = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            return self._shorten(self._ids(text)), text
        text = "\n".join(turn["content"] for turn in example.messages) or example.prompt
        return self._shorten(self._ids(text, special=True)), text

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special)["input_ids"]

    def _shorten(self, ids: list[int]) -> list[int]:
        limit = self.prompt.max_prompt_tokens
        if len(ids) <= limit:
            return ids
        head = limit // 2
        return ids[:head] + ids[len(ids) - (limit - head) :]

    # -- batches → numbers

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, K, V) at the last K positions, and their targets (B, K), −100 = none."""
        inputs = {key: batch[key] for key in PROMPT_KEYS}
        if self.is_encoder_decoder:
            # Passing labels makes the model shift them into the decoder's input.
            return self.model(**inputs, labels=batch["labels"]).logits, batch["labels"]
        labelled = (batch["labels"] != IGNORED).any(0).nonzero()
        k = batch["labels"].shape[1] - int(labelled[0]) if len(labelled) else 1
        if self._takes_positions:
            inputs["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if self._keeps_logits:
            # As indices: a slice leaves the head a strided input, multiplied sample by sample.
            kept = torch.arange(-k - 1, 0, device=self.device) + batch["input_ids"].shape[1]
            logits = self.model(**inputs, logits_to_keep=kept, use_cache=False).logits
        else:
            logits = self.model(**inputs, use_cache=False).logits[:, -k - 1 :]
        return logits[:, :-1], batch["labels"][:, -k:]

    def answer_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch's answer tokens, a scalar."""
        logits, targets = self.answer_logits(batch)
        return F.cross_entropy(
            logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED
        )

    def pooled_embedding(self, batch: Batch) -> Tensor:
        """e (B, d): the maximum over the prompt's frozen token embeddings (SAPT, section 3.2).

        Padding is masked out, so a sample's e does not depend on its batch.
        """
        with torch.no_grad():
            tokens = F.embedding(batch["route_ids"], self.embedding.weight)  # (B, S, d)
            hidden = batch["route_mask"][:, :, None] == 0
            return tokens.float().masked_fill(hidden, float("-inf")).amax(1)

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int, **sampling: Any) -> list[str]:
        """Answers to a batch of prompts; greedy unless `sampling` says otherwise."""
        own = self.model.generation_config
        config = GenerationConfig(
            max_new_tokens=max_new_tokens,
            pad_token_id=self.pad_id,
            eos_token_id=own.eos_token_id or self.tokenizer.eos_token_id,
            decoder_start_token_id=own.decoder_start_token_id,
            **{"do_sample": False, **sampling},
        )
        self.model.eval()
        inputs = {key: batch[key] for key in PROMPT_KEYS}
        output = self.model.generate(**inputs, generation_config=config)
        if not self.is_encoder_decoder:
            output = output[:, batch["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(output, skip_special_tokens=True)
        return [text.strip() for text in texts]


def _pad(rows: list[list[int]], filler: int, left: bool) -> Tensor:
    width = max(map(len, rows))
    pads = [[filler] * (width - len(row)) for row in rows]
    return torch.tensor([p + r if left else r + p for r, p in zip(rows, pads, strict=True)])
