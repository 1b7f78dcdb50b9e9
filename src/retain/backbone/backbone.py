"""A pretrained model with its tokenizer, on one interface for decoder-only and encoder-decoder.

A decoder-only model reads prompt and answer as one sequence, an encoder-decoder reads the prompt
and writes the answer; both are padded so that answers can be cut out with one slice, and the
vocabulary projection is computed at answer positions only.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from retain.errors import RetainError, first_line
from retain.tasks import Example

Features = dict[str, list[int]]
"""Token ids of one example: `input_ids`, `labels` (the answer's, −100 elsewhere), `route_ids`.

A row of a memory, or with signals on disk, also has its `number` there (a list of one). Where rows
of the task have one beside those of a memory (lfpt5), theirs are below zero.
"""

Batch = dict[str, Tensor]
"""Padded features: each (B, S), with `attention_mask` and `route_mask` (1 = a token).

`number` is (B, 1), in batches of numbered rows.
"""

IGNORED = -100
PROMPT_KEYS = ("input_ids", "attention_mask")
SHOWN = 40
"""How many characters of a text an error shows."""


class BackboneConfig(BaseModel):
    """Which pretrained model, and how it is loaded. Remote code runs only when asked for.

    `device: null` is the first GPU, or the CPU where there is none; `attention` is transformers'
    `attn_implementation`, such as flash_attention_2, and null its own choice.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    attention: str | None = None
    device: str | None = None
    trust_remote_code: bool = False


class PromptConfig(BaseModel):
    """How a prompt becomes tokens. A longer prompt keeps its head and tail and loses its middle."""

    model_config = ConfigDict(extra="forbid")

    chat_template: bool = False
    max_prompt_tokens: PositiveInt = 512
    max_answer_tokens: PositiveInt = 128


class Backbone:
    """Model, tokenizer and prompt format.

    Attributes:
        window: how many positions the model has; None where nothing bounds them (T5).

    Raises:
        RetainError: when a chat template is wanted and the tokenizer has none, or the tokenizer is
            not the model's.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: BackboneConfig | str,
        prompt: PromptConfig | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.source = BackboneConfig(name=source) if isinstance(source, str) else source
        self.name = name = self.source.name
        self.prompt = prompt or PromptConfig()
        self.is_encoder_decoder: bool = model.config.is_encoder_decoder
        own_config = model.config.get_text_config()
        self.window: int | None = getattr(own_config, "max_position_embeddings", None)
        self.virtual_tokens = 0  # ids −1, −2, … before each prompt, for a soft prompt
        if self.prompt.chat_template and not tokenizer.chat_template:
            raise RetainError(
                f"backbone '{name}': its tokenizer has no chat template; "
                "set prompt.chat_template: false"
            )
        if tokenizer.eos_token_id is None:
            raise RetainError(f"backbone '{name}': its tokenizer has no end token (eos_token)")
        if (last := max(tokenizer.get_vocab().values())) >= self.embedding.num_embeddings:
            raise RetainError(
                f"backbone '{name}': its tokenizer has the token {last}, and the model "
                f"{self.embedding.num_embeddings} embeddings; give it its own tokenizer"
            )
        self.pad_id: int = (
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )
        own = model.generation_config
        ends = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        # `generate` fills what a call leaves open from here: keep the tokens, and not the penalties
        # and temperatures of a model card, which would shape every score and sample.
        model.generation_config = GenerationConfig(
            pad_token_id=self.pad_id,
            eos_token_id=sorted({*ends, tokenizer.eos_token_id} - {None}),
            decoder_start_token_id=own.decoder_start_token_id,
            forced_bos_token_id=own.forced_bos_token_id,
        )
        # Not every decoder can leave positions out of its vocabulary projection.
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        # A strided input, as a slice of the last position, would be multiplied sample by sample,
        # with a copy of the head for each: half of the time of a prompt.
        if (head := model.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.embedding.weight.device

    @property
    def end_ids(self) -> list[int]:
        """The tokens that end an answer."""
        return self.model.generation_config.eos_token_id

    @property
    def embedding(self) -> nn.Embedding:
        """The (frozen) token embedding, (vocabulary, width)."""
        return self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """d, the width of the token embeddings."""
        return self.embedding.embedding_dim

    # -- text → tokens

    def encode(
        self, example: Example, with_answer: bool = True, answer_limit: int | None = None
    ) -> Features:
        """Tokens of one example; with `with_answer`, of its first reference too.

        `route_ids` are the user's own words, without template and special tokens: what a router
        pools. An answer over `answer_limit` (default: the configured one) is cut, and then has no
        end token, so that nobody learns to stop there.
        """
        prompt = self._prompt_text(example)
        special = not self.prompt.chat_template  # a template writes its own
        ids = self._shorten(self._ids(prompt, special=special))
        ids = [*range(-1, -1 - self.virtual_tokens, -1), *ids]
        route_ids = self._shorten(self._ids(example.prompt))
        features = {"input_ids": ids, "route_ids": route_ids or [self.pad_id]}
        if not with_answer:
            return features
        answer = self._answer_ids(example, prompt)
        answer = answer[: 1 + (answer_limit or self.prompt.max_answer_tokens)]
        self.refuse_longer(len(ids), len(answer), f"prompt {example.prompt[:SHOWN]!r}")
        if self.is_encoder_decoder:
            return {**features, "labels": answer}
        labels = [IGNORED] * len(ids) + answer
        return {**features, "input_ids": ids + answer, "labels": labels}

    def lengths(self, example: Example) -> tuple[int, int]:
        """Tokens of an example's prompt and of its first reference, before anything is cut."""
        prompt = self._prompt_text(example)
        words = self._ids(prompt, special=not self.prompt.chat_template)
        return len(words), len(self._answer_ids(example, prompt)) - 1

    def refuse_longer(
        self, prompt: int, answer: int, where: str, limit: str = "prompt.max_answer_tokens"
    ) -> None:
        """Raises RetainError when a prompt and its answer do not fit in the model's window.

        Args:
            prompt: its tokens, virtual ones included.
            answer: its tokens, with the end.
            where: whose they are, for the error.
            limit: the setting that cuts such an answer, for the error.
        """
        # An encoder and its decoder count on their own.
        together = 0 if self.is_encoder_decoder else answer
        if self.window is None or max(prompt + together, answer) <= self.window:
            return
        left = self.window - together - self.virtual_tokens
        if left <= 0 and self.virtual_tokens:
            limit = f"the length of the method's prompts, {self.virtual_tokens} in all"
        advice = f"prompt.max_prompt_tokens to {left}" if left > 0 else limit
        raise RetainError(
            f"{where}: {prompt} tokens of a prompt and {answer} of its answer do not fit in the "
            f"{self.window} positions of the backbone; lower {advice}"
        )

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
        if "number" in rows[0]:
            batch["number"] = torch.tensor([row["number"] for row in rows])
        batch["attention_mask"] = _pad([[1] * len(r["input_ids"]) for r in rows], 0, left)
        batch["route_mask"] = _pad([[1] * len(r["route_ids"]) for r in rows], 0, False)
        return {key: value.to(self.device) for key, value in batch.items()}

    def prompts(self, batch: Batch) -> list[str]:
        """The user's words of each row."""
        rows = zip(batch["route_ids"], batch["route_mask"], strict=True)
        return [self.tokenizer.decode(ids[mask.bool()]).strip() for ids, mask in rows]

    def _prompt_text(self, example: Example) -> str:
        if self.prompt.chat_template:
            turns = list(example.messages) or [{"role": "user", "content": example.prompt}]
            return self._templated(turns, add_generation_prompt=True)
        return "\n".join(turn["content"] for turn in example.messages) or example.prompt

    def _answer_ids(self, example: Example, prompt: str) -> list[int]:
        """The first reference's tokens with their end, as they follow the prompt."""
        answer = example.references[0].strip()
        if self.prompt.chat_template:
            turns = list(example.messages) or [{"role": "user", "content": example.prompt}]
            whole = self._templated([*turns, {"role": "assistant", "content": answer}])
            if whole.startswith(prompt):  # the template ends a turn in its own way
                ids = self._ids(whole[len(prompt) :].rstrip())
                stops = ids[-1] in self.end_ids
                return ids if stops else [*ids, self.tokenizer.eos_token_id]
        elif not self.is_encoder_decoder and not prompt[-1:].isspace():
            answer = f" {answer}"
        return [*self._ids(answer), self.tokenizer.eos_token_id]

    def _templated(self, turns: list[dict[str, str]], **options: Any) -> str:
        try:
            return self.tokenizer.apply_chat_template(turns, tokenize=False, **options)
        except TemplateError as error:
            begins = turns[0]["content"][:SHOWN]
            raise RetainError(
                f"the chat template of backbone '{self.name}' refuses the conversation that begins "
                f"{begins!r} ({first_line(error)}); change the conversation, or set "
                "prompt.chat_template: false"
            ) from None

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
        """Logits (B, K, V) and their targets (B, K), −100 where there is none.

        K spans the batch's answers: a decoder-only model's last K positions, or all of a decoder's.
        """
        logits, targets = self.logits_and_targets(batch)
        return logits[:, : targets.shape[1]], targets

    def logits_and_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `answer_logits`, with the logits at a decoder-only model's last position too.

        Its logits are (B, K + 1, V): the first K predict the targets, the last K stand where the
        targets stand. An encoder-decoder's are (B, K, V), and do both.
        """
        if self.is_encoder_decoder:
            inputs = {key: batch[key] for key in PROMPT_KEYS}
            # Each architecture shifts answers in its own way (T5 and mBART differ).
            shifted = self.model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
            logits = self.model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
            return logits, batch["labels"]
        labelled = (batch["labels"] != IGNORED).any(0).nonzero()
        k = batch["labels"].shape[1] - int(labelled[0]) if len(labelled) else 1
        return self._last_logits(batch, k + 1), batch["labels"][:, -k:]

    def _last_logits(self, batch: Batch, count: int) -> Tensor:
        """A decoder-only model's logits at the last positions, (B, count, V)."""
        inputs = {key: batch[key] for key in PROMPT_KEYS}
        if self._takes_positions:
            inputs["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if self._keeps_logits:
            logits: Tensor = self.model(**inputs, logits_to_keep=count, use_cache=False).logits
            return logits
        logits = self.model(**inputs, use_cache=False).logits
        return logits[:, -count:]

    def read(self, batch: Batch) -> None:
        """A forward over the batch's `input_ids`, for what layers see on the way."""
        if self.is_encoder_decoder:
            self.model.get_encoder()(**{key: batch[key] for key in PROMPT_KEYS})
        else:
            self._last_logits(batch, 1)

    def answer_loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy over the batch's answer tokens, a scalar."""
        return cross_entropy(*self.answer_logits(batch))

    def pooled_embedding(self, batch: Batch) -> Tensor:
        """e (B, d): the maximum over the prompt's frozen token embeddings (SAPT, section 3.2).

        Padding is masked out, so a sample's e does not depend on its batch.
        """
        with torch.no_grad():
            tokens = F.embedding(batch["route_ids"], self.embedding.weight)  # (B, S, d)
            hidden = batch["route_mask"][:, :, None] == 0
            return tokens.float().masked_fill(hidden, float("-inf")).amax(1)

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int, **options: Any) -> list[str]:
        """Answers to a batch of prompts; greedy unless `options` of `generate` say otherwise."""
        self.model.eval()
        inputs = {key: batch[key] for key in PROMPT_KEYS}
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        longest = batch["input_ids"].shape[1]
        self.refuse_longer(longest, max_new_tokens, "generation", "max_new_tokens")
        output = self.model.generate(**inputs, **options)
        if not self.is_encoder_decoder:
            output = output[:, batch["input_ids"].shape[1] :]
        return [self.decode(ids) for ids in output.tolist()]

    def decode(self, ids: list[int]) -> str:
        """The answer that tokens write: without special ones, and without space around it."""
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Of logits (B, K, V) and targets (B, K), the mean over all that are not −100."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def _pad(rows: list[list[int]], filler: int, left: bool) -> Tensor:
    width = max(map(len, rows))
    pads = [[filler] * (width - len(row)) for row in rows]
    return torch.tensor([p + r if left else r + p for r, p in zip(rows, pads, strict=True)])
