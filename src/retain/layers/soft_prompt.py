"""Soft prompts, trained embeddings before a prompt's tokens, and a pool of them.

A soft prompt is n embeddings (Lester et al., arXiv 2104.08691). In a sequence it is n virtual
tokens with the ids −1 … −n. The embedding layer looks these up in the embeddings set for the next
forward, and all other ids in the backbone's table. So padding, masks, caches and generation need no
code for soft prompts.

In shapes, B is the batch size, S the sequence length, T the number of soft prompts, n the length of
one, d the width of the embeddings.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType
from torch import Tensor, nn

from retain.backbone import Backbone, Batch
from retain.backbone.probe import READ, short_forward
from retain.errors import RetainError, first_line
from retain.layers.lora_pool import ADAPTER, ADAPTER_CONFIG, plain
from retain.runs.records import read_record
from retain.system.files import read_weights, write_json, write_tensors

KEY = "prompt_embeddings"


class PromptedEmbedding(nn.Module):
    """The backbone's token embedding, extended by virtual tokens.

    Attributes:
        rows: embeddings of the virtual tokens in the next forward, (B, n, d), or (1, n, d) for all
            examples. They stay until they are replaced, during all steps of a generation.
    """

    def __init__(self, base: nn.Embedding) -> None:
        super().__init__()
        self.base = base
        self.embedding_dim = base.embedding_dim
        self.rows: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The backbone's embedding table, (vocabulary, d)."""
        return self.base.weight

    def words(self, count: int, seed: int) -> Tensor:
        """Returns embeddings of random tokens, (count, d), determined by `seed`."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(len(self.weight), (count,), generator=generator)
        with torch.no_grad():  # through the layer, since some layers scale their embeddings
            return self.base(ids.to(self.weight.device)).float()

    def forward(self, ids: Tensor) -> Tensor:
        """Maps ids (B, S) to (B, S, d); B may be a multiple of the rows' (beam search)."""
        y: Tensor = self.base(ids.clamp(min=0))
        rows = self.rows
        if ids.shape[1] == 1 or not (ids < 0).any():  # a step of decoding has no virtual token
            return y
        if rows is None or ids.shape[0] % rows.shape[0] or int(-ids.min()) > rows.shape[1]:
            shape = None if rows is None else tuple(rows.shape)
            raise RuntimeError(
                f"soft-prompt rows of shape {shape} do not fit ids of shape {tuple(ids.shape)}; "
                "route the batch before the forward"
            )
        rows = rows.repeat_interleave(ids.shape[0] // rows.shape[0], 0)
        index = (-1 - ids).clamp(min=0)[:, :, None].expand(-1, -1, rows.shape[2])  # (B, S, d)
        return torch.where((ids < 0)[:, :, None], rows.gather(1, index).to(y.dtype), y)


def prompted_embedding(backbone: Backbone) -> PromptedEmbedding:
    """Replaces a backbone's embedding by a `PromptedEmbedding` and returns that.

    Other tables of tokens, such as Gemma 3n's of each layer, have virtual tokens as token 0: what
    Gemma 3n itself takes there for an image.

    Raises:
        RetainError: if virtual tokens do not work in this class of model.
    """
    model, plain = backbone.model, backbone.embedding
    layer = PromptedEmbedding(plain)
    model.set_input_embeddings(layer)
    for part in model.modules():
        if isinstance(part, nn.Embedding) and part is not plain:
            part.register_forward_pre_hook(lambda _, ids: (ids[0].clamp(min=0), *ids[1:]))
    layer.rows = layer.words(READ, seed=0)[None].requires_grad_()
    try:
        with torch.enable_grad():
            logits = short_forward(model, first=-READ)
            (gradient,) = torch.autograd.grad(logits.float().square().mean(), layer.rows)
        failure = "" if gradient.any() else "no gradient reaches it"
    except Exception as error:  # classes that read token ids in other ways fail in as many
        failure = first_line(error)
    layer.rows = None
    if failure:
        raise RetainError(
            f"method: {type(model).__name__} takes no soft prompt ({failure}); take a method with "
            "LoRA blocks"
        )
    return layer


def hide_virtual(backbone: Backbone, batch: Batch, rows: Tensor) -> None:
    """Masks the virtual tokens of some rows in place, so that they are as if they had none.

    An encoder may count masked positions, and has its padding at the end. There the tokens take
    the place of the virtual ones.

    Args:
        backbone: does not see padding.
        batch: collated prompts, with or without answers.
        rows: which ones, bool (B,).
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]  # (B, S)
    virtual = (ids < 0) & rows[:, None]
    if not backbone.is_encoder_decoder:
        batch["attention_mask"] = mask.masked_fill(virtual, 0)
        return
    ids, mask = ids.masked_fill(virtual, backbone.pad_id), mask.masked_fill(virtual, 0)
    place = torch.arange(ids.shape[1], device=ids.device) + virtual.sum(1, keepdim=True)
    place = place % ids.shape[1]  # (B, S)
    batch["input_ids"], batch["attention_mask"] = ids.gather(1, place), mask.gather(1, place)


class Prompts(nn.Module):
    """The soft prompts of a pool, as a child of the model for checkpoints and data parallelism.

    Attributes:
        old: the frozen prompts, oldest first, (·, n, d).
        new: the trainable prompt, (n, d), or None.
    """

    old: Tensor

    def __init__(self, length: int, width: int, device: torch.device) -> None:
        super().__init__()
        self.register_buffer("old", torch.zeros(0, length, width, device=device), persistent=False)
        self.new: nn.Parameter | None = None

    def every(self) -> Tensor:
        """Returns all prompts, (T, n, d)."""
        return self.old if self.new is None else torch.cat([self.old, self.new[None]])

    def mixed(self, weights: Tensor) -> Tensor:
        """Computes Σ_i a_i P_i (B, n, d) from weights a (B, T), without gradient of frozen P_i."""
        frozen = len(self.old)
        count = frozen + (self.new is not None)
        if weights.shape[1] != count:
            raise RuntimeError(
                f"weights of shape {tuple(weights.shape)} do not fit {count} soft prompts"
            )
        rows = torch.einsum("bt,tnd->bnd", weights[:, :frozen], self.old)
        return rows if self.new is None else rows + weights[:, frozen:, None] * self.new

    def freeze(self) -> None:
        """Moves the trainable prompt to the frozen ones."""
        if self.new is not None:
            self.push(self.new.detach())
            self.new = None

    def thaw(self) -> None:
        """Makes the newest frozen prompt trainable again."""
        if self.new is None:
            self.new = nn.Parameter(self.old[-1].clone())
            self.old = self.old[:-1]

    def push(self, prompt: Tensor) -> None:
        """Adds one frozen prompt, (n, d)."""
        self.old = torch.cat([self.old, prompt[None].to(self.old)])

    def clear(self) -> None:
        """Removes all prompts."""
        self.old, self.new = self.old[:0], None


class PromptPool:
    """A pool of soft prompts, mixed per example or concatenated; the counterpart of `LoraPool`.

    Args:
        backbone: its sequences have virtual tokens from the first prompt on.
        length: n, the number of virtual tokens of a prompt.
        concatenated: whether a sequence has the virtual tokens of all prompts, and the caller sets
            `embedding.rows`; otherwise it has those of their mixture.

    Attributes:
        blocks: the prompts' names.
        weights: the weights (B, T) of the next forward, or None.
    """

    def __init__(self, backbone: Backbone, length: int, concatenated: bool = False) -> None:
        self.blocks: list[str] = []
        self.weights: Tensor | None = None
        self.length = length
        self.concatenated = concatenated
        self.embedding = prompted_embedding(backbone)
        self.prompts = Prompts(length, backbone.width, backbone.device)
        backbone.model.add_module("retain_prompts", self.prompts)
        self._backbone = backbone

    def grow(self, name: str, seed: int) -> None:
        """Freezes the trainable prompt and adds a fresh one, determined by `seed`."""
        self.prompts.freeze()
        self._add(name)
        self.restart(seed)

    def restart(self, seed: int) -> None:
        """Replaces the trainable prompt by embeddings of random tokens, determined by `seed`."""
        self.prompts.new = nn.Parameter(self.embedding.words(self.length, seed))

    def copy_block(self, index: int) -> None:
        """Sets the trainable prompt to frozen prompt `index`."""
        if self.prompts.new is None:
            raise RuntimeError("there is no trainable prompt to copy to")
        with torch.no_grad():
            self.prompts.new.copy_(self.prompts.old[index])

    def thaw(self) -> None:
        """Makes the newest prompt trainable again."""
        self.prompts.thaw()

    def clear(self) -> None:
        """Removes all prompts."""
        self.blocks.clear()
        self.prompts.clear()

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """Returns the trainable prompt by name."""
        return dict(self.prompts.named_parameters())

    def parameters(self) -> list[nn.Parameter]:
        """Returns the trainable prompt without its name."""
        return list(self.prompts.parameters())

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Returns the shape of a prompt, named as in `named_parameters`."""
        return {"new": (self.length, self._backbone.width)}

    def block_size(self) -> int:
        """Returns the number of parameters of one prompt."""
        return self.length * self._backbone.width

    def use(self, weights: Tensor | None) -> None:
        """Puts the mixture Σ_i a_i P_i (SAPT, section 3.2) before each prompt; a is (B, T)."""
        self.embedding.rows = None if weights is None else self.prompts.mixed(weights)
        self.weights = weights

    def use_block(self, batch_size: int, index: int) -> None:
        """Gives soft prompt `index` the full weight in every example."""
        one_hot = torch.zeros(batch_size, len(self.blocks), device=self._backbone.device)
        one_hot[:, index] = 1.0
        self.use(one_hot)

    def save_block(self, folder: Path, base_name: str) -> None:
        """Writes the trainable prompt in peft's layout and freezes it."""
        if self.prompts.new is None:
            raise RuntimeError("there is no trainable prompt to save")
        encoder_decoder = self._backbone.is_encoder_decoder
        config = PromptTuningConfig(
            num_virtual_tokens=self.length,
            token_dim=self._backbone.width,
            num_transformer_submodules=1,  # prompts are before the encoder's input only
            prompt_tuning_init=PromptTuningInit.RANDOM,
            task_type=TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
            base_model_name_or_path=base_name,
            inference_mode=True,
        ).to_dict()
        write_tensors(folder / ADAPTER, {KEY: self.prompts.new})
        write_json(folder / ADAPTER_CONFIG, plain(config))
        self.prompts.freeze()

    def load_block(self, folder: Path, name: str) -> None:
        """Adds a saved prompt, frozen.

        Raises:
            RetainError: if the file does not have a prompt of this length and width.
        """
        path = folder / ADAPTER
        kind = read_record(dict, folder / ADAPTER_CONFIG).get("peft_type")
        if kind != "PROMPT_TUNING":
            raise RetainError(
                f"{folder / ADAPTER_CONFIG}: peft_type is {kind!r}, not 'PROMPT_TUNING'; restore "
                "the file from a copy of the run"
            )
        prompt = read_weights(path, {KEY: (self.length, self._backbone.width)})[KEY]
        self.prompts.freeze()
        self._add(name)
        self.prompts.push(prompt)

    def _add(self, name: str) -> None:
        self.blocks.append(name)
        carried = len(self.blocks) if self.concatenated else 1
        self._backbone.virtual_tokens = self.length * carried
