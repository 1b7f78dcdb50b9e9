"""A pretrained model and its tokenizer, with one interface for decoder-only and encoder-decoder.

A decoder-only model reads prompt and answer as one sequence. An encoder-decoder reads the prompt
and writes the answer. Batches of both are padded so that one slice has all answers, and the
vocabulary projection is computed at answer positions only.

In shapes, B is the number of examples in a batch, S the sequence length, K the number of answer
positions, V the vocabulary, d the width of the token embeddings.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from retain.backbone.chat import EXCERPT
from retain.backbone.losses import IGNORED, cross_entropy
from retain.backbone.special_tokens import refuse_without_embedding, scored_settings
from retain.backbone.text import PromptConfig, Texts
from retain.backbone.window import longrope_note, window_of
from retain.errors import RetainError
from retain.tasks import Example

Features = dict[str, list[int]]
"""Token ids of one example: `input_ids`, `labels` (−100 outside the answer), `route_ids`.

Some rows also have, each a list of one: `example_id`, the row's place in a memory or among the
task's rows, by which a method finds what it keeps of it; `is_replay`, 1 for a replayed row of an
older task.
"""

Batch = dict[str, Tensor]
"""Padded features, each (B, S), with `attention_mask` and `route_mask` (1 = token, 0 = padding).

`example_id` and `is_replay` are (B, 1), in batches of rows that have them: a batch is all replayed
rows or all of the task.
"""

MOST_ROOM = 10**6
"""Tokens that can be generated where a model has no window."""
PROMPT_KEYS = ("input_ids", "attention_mask")


class BackboneConfig(BaseModel):
    """Which pretrained model to load, and how. Remote code runs only if it is enabled here.

    `dtype: auto` is bfloat16 for a frozen backbone on a GPU that computes in it, float32 elsewhere;
    the run stores which of them it was. `quantization` stores the linear layers in 4 or 8 bits; the
    other weights are stored in `dtype`, and all layers compute in it.
    `device: null` is the first GPU, or the CPU if there is none. `attention` is
    transformers' `attn_implementation`, such as flash_attention_2; null leaves the choice to
    transformers.
    """

    model_config = ConfigDict(extra="forbid")

    name: str  # empty for a loaded model that has none
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["nf4", "int8"] | None = None
    attention: str | None = None
    device: str | None = None
    trust_remote_code: bool = False


class Backbone:
    """A frozen model, its tokenizer and the prompt format.

    Args:
        model: is frozen and set to evaluation mode.
        tokenizer: of the model.
        source: how the model was loaded, or its name.
        prompt: how prompts become tokens.

    Attributes:
        loaded: the parameters that the model came with, as against those that methods add.
        window: number of positions of the model; None if there is no limit (T5).
        answer_window: that of an encoder-decoder's decoder, else the same.
        generation_settings: the model's own generation_config.json, which exports carry on.
        sees_padding: whether what a row gives depends on the padding before it, as in RWKV.
        virtual_tokens: number of soft-prompt tokens, with ids −1, −2, …, before each prompt.
        keeps_logits: whether the class computes logits at some positions only, if asked.
        autocasts: whether `precision` computes in bfloat16, as the run's training does.

    Raises:
        RetainError: if a chat template is wanted and the tokenizer has none, or the tokenizer does
            not fit the model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        source: BackboneConfig | str,
        prompt: PromptConfig | None = None,
    ) -> None:
        self.model = model.requires_grad_(False).eval()
        self.loaded = tuple(model.parameters())
        for part in model.modules():
            # NLLB leaves out layers at random: in a step, all that carry blocks.
            if hasattr(part, "layerdrop"):
                part.layerdrop = 0.0
            # Its experts take so many tokens of a batch, and leave out those of later rows.
            if hasattr(part, "moe_eval_capacity_token_fraction"):
                part.moe_eval_capacity_token_fraction, part.expert_capacity = 0.0, sys.maxsize
        self.tokenizer = tokenizer
        if isinstance(source, str):
            dtype = str(model.dtype).removeprefix("torch.")
            source = BackboneConfig.model_validate({"name": source, "dtype": dtype})
        self.source = source
        self.name = name = self.source.name
        self.prompt = prompt or PromptConfig()
        self.is_encoder_decoder: bool = model.config.is_encoder_decoder
        self.window, self.answer_window = window_of(model)
        self.sees_padding = False  # until it is tried
        self.virtual_tokens = 0
        self.autocasts = False
        if self.prompt.chat_template is True and not tokenizer.chat_template:
            raise RetainError(
                f"backbone '{name}': its tokenizer has no chat template; "
                "set prompt.chat_template: false"
            )
        settings = scored_settings(model, tokenizer, name)
        self.generation_settings = model.generation_config.to_json_string()
        model.generation_config = settings
        self.pad_id: int = settings.pad_token_id
        forced = settings.forced_bos_token_id
        self.texts = Texts(tokenizer, name, not self.is_encoder_decoder, self.end_ids, forced)
        # Not every decoder can compute the vocabulary projection at some positions only.
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        # A strided input, such as a slice of the last position, would be multiplied example by
        # example, with a copy of the head for each. That took half of a prompt's time.
        if (head := model.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self._takes_positions = "position_ids" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.embedding.weight.device

    def precision(self) -> torch.autocast:
        """Returns a context in which answers are computed as the run's training computes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocasts)

    @property
    def end_ids(self) -> list[int]:
        """Ids of the tokens that end an answer."""
        return self.model.generation_config.eos_token_id

    @property
    def embedding(self) -> nn.Embedding:
        """The frozen token embedding, with weights (V, d)."""
        return self.model.get_input_embeddings()

    @property
    def width(self) -> int:
        """d, the width of the token embeddings."""
        return self.embedding.embedding_dim

    # -- text → tokens

    def is_templated(self, example: Example) -> bool:
        """Whether an example is written with the chat template, by the settings of the prompt."""
        setting = self.prompt.chat_template
        if setting == "auto":
            return bool(example.messages and self.tokenizer.chat_template)
        return setting

    def encode(
        self,
        example: Example,
        with_answer: bool = True,
        answer_limit: int | None = None,
        templated: bool | None = None,
    ) -> Features:
        """Tokenizes one example's prompt and, if `with_answer`, its first reference.

        `route_ids` are the tokens of the user's text, without template and special tokens. Routers
        pool them. An answer longer than `answer_limit` (default: `prompt.max_answer_tokens`) is cut
        and gets no end token, so that the model does not learn to stop there. `templated` says
        whether the chat template is used (default: by the settings of the prompt).

        Raises:
            RetainError: if prompt and answer do not fit in the window, or the chat template refuses
                the conversation.
        """
        templated = self.is_templated(example) if templated is None else templated
        ids, answer = self._tokens(example, templated, with_answer)
        ids = [*range(-1, -1 - self.virtual_tokens, -1), *self._shorten(ids)]
        route_ids = self._shorten(self.texts.plain_ids(example.prompt))
        features = {"input_ids": ids, "route_ids": route_ids or [self.pad_id]}
        if not with_answer:
            return features
        answer = answer[: 1 + (answer_limit or self.prompt.max_answer_tokens)]
        self.refuse_longer(len(ids), len(answer), f"prompt {example.prompt[:EXCERPT]!r}")
        if self.is_encoder_decoder:
            return {**features, "labels": answer}
        labels = [IGNORED] * len(ids) + answer
        return {**features, "input_ids": ids + answer, "labels": labels}

    def for_another_thread(self) -> Backbone:
        """Returns this backbone with a tokenizer of its own, to encode beside another thread.

        A tokenizer keeps settings of a call, so that two threads cannot share it.
        """
        other = copy.copy(self)
        other.tokenizer = copy.deepcopy(self.tokenizer)
        other.texts = self.texts.with_tokenizer(other.tokenizer)
        return other

    def uncut(self, example: Example) -> tuple[list[int], list[int]]:
        """Tokenizes an example's prompt, and its first reference with end token; cuts neither."""
        return self._tokens(example, self.is_templated(example))

    def _tokens(
        self, example: Example, templated: bool, with_answer: bool = True
    ) -> tuple[list[int], list[int]]:
        """Tokenizes an example; refuses what the model has no embedding for."""
        ids, answer = self.texts.prompt_and_answer(example, templated, with_answer)
        where, rows = f"prompt {example.prompt[:EXCERPT]!r}", self.embedding.weight.shape[0]
        refuse_without_embedding([*ids, *answer], self.tokenizer, rows, where)
        return ids, answer

    def fits(self, prompt: int, answer: int) -> bool:
        """Returns whether so many tokens of a prompt and of its answer fit in the window."""
        read = self._read(prompt, answer)
        return (self.window is None or read <= self.window) and (
            self.answer_window is None or answer <= self.answer_window
        )

    def _read(self, prompt: int, answer: int) -> int:
        """Counts the positions that a prompt and its answer take where the prompt is read."""
        # An encoder and its decoder have a window each.
        return prompt if self.is_encoder_decoder else prompt + answer

    def refuse_longer(
        self,
        prompt: int,
        answer: int,
        where: str,
        limit: str = "prompt.max_answer_tokens",
        begun: bool = False,
    ) -> None:
        """Raises RetainError if a prompt and its answer do not fit in the model's window.

        Args:
            prompt: number of the prompt's tokens, including virtual ones.
            answer: number of the answer's tokens, including the end token.
            where: start of the error message.
            limit: the setting that limits the answer's length, for the error message.
            begun: whether the settings of prompts are those of a run, and fixed.
        """
        if self.fits(prompt, answer):
            return
        window, advice = self.answer_window, f"lower {limit}"
        if begun and limit.startswith("prompt."):
            advice = "shorten its answers"
        if self.window is not None and (read := self._read(prompt, answer)) > self.window:
            window, left = self.window, self.window - read + prompt - self.virtual_tokens
            if left > 0:
                advice = f"lower prompt.max_prompt_tokens to {left}"
                if begun:
                    advice = f"shorten its prompts to {left} tokens"
            elif self.virtual_tokens:
                advice = f"lower the length of the method's prompts, {self.virtual_tokens} in all"
        raise RetainError(
            f"{where}: {prompt} prompt tokens and {answer} answer tokens do not fit in the "
            f"{window} positions of the backbone{longrope_note(self.model, window)}; {advice}"
        )

    def room_after(self, prompt: int) -> int:
        """Returns how many tokens can be generated after a prompt of so many; at least 1."""
        window = self.answer_window if self.is_encoder_decoder else self.window
        if window is None:
            return MOST_ROOM
        return max(1, window - (0 if self.is_encoder_decoder else prompt))

    def batches(self, rows: Sequence[Features], size: int) -> list[list[int]]:
        """Shares rows out into batches of similar length, so that there is little padding.

        Batches of a model that sees padding have rows of one length, and no padding.

        Returns:
            The numbers of each batch's rows, longest first.
        """
        lengths = [len(row["input_ids"]) for row in rows]
        order = sorted(range(len(rows)), key=lambda i: -lengths[i])
        batches: list[list[int]] = []
        for i in order:
            full = not batches or len(batches[-1]) == size
            if full or (self.sees_padding and lengths[i] != lengths[batches[-1][0]]):
                batches.append([])
            batches[-1].append(i)
        return batches

    def collate(self, rows: Sequence[Features]) -> Batch:
        """Pads examples to a batch on the model's device; decoder-only sequences on the left."""
        left = not self.is_encoder_decoder
        batch: Batch = {}
        for key, filler in (
            ("input_ids", self.pad_id),
            ("labels", IGNORED),
            ("route_ids", self.pad_id),
        ):
            if key in rows[0]:
                batch[key] = _pad([row[key] for row in rows], filler, left and key != "route_ids")
        for key in ("example_id", "is_replay"):
            if key in rows[0]:
                batch[key] = torch.tensor([row[key] for row in rows])
        batch["attention_mask"] = _pad([[1] * len(r["input_ids"]) for r in rows], 0, left)
        batch["route_mask"] = _pad([[1] * len(r["route_ids"]) for r in rows], 0, False)
        return {key: value.to(self.device) for key, value in batch.items()}

    def prompts(self, batch: Batch) -> list[str]:
        """Decodes the user's text of each example."""
        rows = zip(batch["route_ids"], batch["route_mask"], strict=True)
        return [self.tokenizer.decode(ids[mask.bool()]).strip() for ids, mask in rows]

    def _shorten(self, ids: list[int]) -> list[int]:
        limit = self.prompt.max_prompt_tokens
        if len(ids) <= limit:
            return ids
        head = limit // 2
        return ids[:head] + ids[len(ids) - (limit - head) :]

    # -- batches → logits, losses, answers

    def answer_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes logits (B, K, V) and their targets (B, K), −100 where there is none.

        K covers all answers of the batch. These are the last K positions of a decoder-only model,
        and all positions of an encoder-decoder's decoder.
        """
        logits, targets = self.logits_and_targets(batch)
        return logits[:, : targets.shape[1]], targets

    def logits_and_targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes logits as `answer_logits`, and those at a decoder-only model's last position.

        Logits of a decoder-only model are (B, K + 1, V). The first K predict the targets; the last
        K are at the targets' positions. Logits of an encoder-decoder are (B, K, V) and are both.
        """
        if self.is_encoder_decoder:
            inputs = {key: batch[key] for key in PROMPT_KEYS}
            # As `generate` does: the decoder reads its start token, then the answer so far.
            labels = batch["labels"]
            start = torch.full_like(
                labels[:, :1], self.model.generation_config.decoder_start_token_id
            )
            shifted = torch.cat([start, labels[:, :-1]], 1)
            shifted = shifted.masked_fill(shifted == IGNORED, self.pad_id)
            logits = self.model(**inputs, decoder_input_ids=shifted, use_cache=False).logits
            return logits, labels
        answer_columns = (batch["labels"] != IGNORED).any(0).nonzero()  # (·, 1)
        k = batch["labels"].shape[1] - int(answer_columns[0]) if len(answer_columns) else 1
        return self._last_logits(batch, k + 1), batch["labels"][:, -k:]

    def _last_logits(self, batch: Batch, count: int) -> Tensor:
        """Computes a decoder-only model's logits at the last positions, (B, count, V)."""
        inputs: dict[str, Any] = {key: batch[key] for key in PROMPT_KEYS}
        keep = count
        if self.sees_padding:
            # Padding after a row is not seen: what a position gives depends on earlier ones only.
            padding = (batch["attention_mask"] == 0).sum(1)  # (B,)
            inputs = {key: _moved(tensor, padding) for key, tensor in inputs.items()}
            keep = min(count + int(padding.max()), batch["input_ids"].shape[1])
        if self._takes_positions:
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        if self.keeps_logits:
            inputs["logits_to_keep"] = keep
        logits: Tensor = self.model(**inputs, use_cache=False).logits[:, -keep:]
        if self.sees_padding:
            logits = _moved(logits, -padding)
        return logits[:, -count:]

    def read(self, batch: Batch) -> None:
        """Runs the model over `input_ids`, for layers that record what they see."""
        if self.is_encoder_decoder:
            self.model.get_encoder()(**{key: batch[key] for key in PROMPT_KEYS})
        else:
            self._last_logits(batch, 1)

    def answer_loss(self, batch: Batch) -> Tensor:
        """Computes the mean cross-entropy over the batch's answer tokens, a scalar."""
        return cross_entropy(*self.answer_logits(batch))

    def pooled_embedding(self, batch: Batch) -> Tensor:
        """Computes e (B, d), the maximum over the frozen token embeddings of the user's text.

        This is SAPT's section 3.2 (arXiv 2401.08295). Padding is masked, so the e of an example
        does not depend on its batch.
        """
        with torch.no_grad():
            tokens = F.embedding(batch["route_ids"], self.embedding.weight)  # (B, S, d)
            padding = batch["route_mask"][:, :, None] == 0  # (B, S, 1)
            return tokens.float().masked_fill(padding, float("-inf")).amax(1)

    @torch.no_grad()
    def generate(self, batch: Batch, max_new_tokens: int, **options: Any) -> list[str]:
        """Generates an answer to each prompt, greedily unless `options` for `generate` differ."""
        self.model.eval()
        inputs = {key: batch[key] for key in PROMPT_KEYS}
        options = {"do_sample": False, "max_new_tokens": max_new_tokens, **options}
        prompt_tokens = batch["input_ids"].shape[1]
        self.refuse_longer(prompt_tokens, max_new_tokens, "generation", "max_new_tokens")
        output = self.model.generate(**inputs, **options)
        # An encoder-decoder's output begins with the decoder's start token.
        output = output[:, 1 if self.is_encoder_decoder else prompt_tokens :]
        return [self.decode(ids) for ids in output.tolist()]

    def decode(self, ids: list[int]) -> str:
        """Decodes an answer's token ids, without special tokens and surrounding white space."""
        return self.texts.decode(ids)


def _moved(tensor: Tensor, by: Tensor) -> Tensor:
    """Moves each row's columns to the left by its own number; those that fall off come last.

    Args:
        tensor: (B, S) or (B, S, V).
        by: (B,).
    """
    width = tensor.shape[1]
    index = (torch.arange(width, device=tensor.device) + by[:, None]) % width  # (B, S)
    return tensor[torch.arange(len(tensor), device=tensor.device)[:, None], index]


def _pad(rows: list[list[int]], filler: int, left: bool) -> Tensor:
    """Pads lists of ids to (number of lists, longest length)."""
    width = max(map(len, rows))
    pads = [[filler] * (width - len(row)) for row in rows]
    return torch.tensor([p + r if left else r + p for r, p in zip(rows, pads, strict=True)])
