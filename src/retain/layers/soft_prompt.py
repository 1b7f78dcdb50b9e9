"""A pool of soft prompts, mixed per instance and put before the prompt's own tokens.

A soft prompt is n rows of embeddings (Lester et al., arXiv 2104.08691). A sequence carries it as n
virtual tokens with the ids −1 … −n; the embedding layer looks these up in the mixture Σ_i a_i P_i
(SAPT, section 3.2) and all other ids in the backbone's table. So padding, masks, caches and
generation need to know nothing of prompts.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType
from torch import Tensor, nn

from retain.backbone import Backbone
from retain.errors import RetainError
from retain.layers.pooled_linear import Mixture, plain
from retain.store import read_json, read_tensors, write_json, write_tensors

KEY = "prompt_embeddings"


class PromptedEmbedding(nn.Module):
    """The token embedding, with the pool's prompts for virtual tokens.

    Attributes:
        old: the frozen prompts, oldest first, (T, n, d).
        prompt: the one that learns, (n, d), or None.
    """

    old: Tensor

    def __init__(self, base: nn.Embedding, length: int, mixture: Mixture) -> None:
        super().__init__()
        self.base, self.length, self.mixture = base, length, mixture
        self.embedding_dim = base.embedding_dim
        self.prompt: nn.Parameter | None = None
        self.register_buffer("old", None, persistent=False)
        self.clear()

    @property
    def weight(self) -> Tensor:
        """The backbone's table (vocabulary, d)."""
        return self.base.weight

    def clear(self) -> None:
        """Forgets all prompts."""
        self.old = torch.zeros(0, self.length, self.embedding_dim, device=self.weight.device)
        self.prompt = None

    def restart(self) -> None:
        """Replaces the learning prompt by the embeddings of n random tokens."""
        generator = torch.Generator().manual_seed(torch.initial_seed())
        ids = torch.randint(len(self.weight), (self.length,), generator=generator)
        with torch.no_grad():  # through the layer: some scale what they look up
            words = self.base(ids.to(self.weight.device))
        self.prompt = nn.Parameter(words.detach().float())

    def freeze(self) -> None:
        """Moves the learning prompt onto the stack."""
        if self.prompt is not None:
            self.push(self.prompt.detach())
            self.prompt = None

    def push(self, prompt: Tensor) -> None:
        """Adds one frozen prompt, (n, d)."""
        self.old = torch.cat([self.old, prompt[None].to(self.old)])

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, S) → (B, S, d); B may be a multiple of the weights' (beams)."""
        y: Tensor = self.base(ids.clamp(min=0))
        weights = self.mixture.weights
        if ids.shape[1] == 1 or not (ids < 0).any():  # a step of decoding has no virtual token
            return y
        if weights is None:
            raise RuntimeError("virtual tokens without weights; route the batch before the forward")
        new = () if self.prompt is None else (self.prompt[None],)
        prompts = torch.cat([self.old, *new])  # (T, n, d)
        if ids.shape[0] % weights.shape[0] or weights.shape[1] != len(prompts):
            raise RuntimeError(
                f"weights {tuple(weights.shape)} are not of these ids {tuple(ids.shape)} "
                f"and {len(prompts)} prompts; route the batch before the forward"
            )
        weights = weights.repeat_interleave(ids.shape[0] // weights.shape[0], 0)
        mixed = torch.einsum("bt,tnd->bnd", weights, prompts)
        place = (-1 - ids).clamp(min=0)[:, :, None].expand(-1, -1, mixed.shape[2])  # (B, S, d)
        return torch.where((ids < 0)[:, :, None], mixed.gather(1, place).to(y.dtype), y)


class PromptPool:
    """The soft prompts of a backbone; the counterpart of `LoraPool`.

    Args:
        backbone: its embedding is replaced by `PromptedEmbedding`; its sequences carry virtual
            tokens from the first block on.
        length: n, rows of a prompt.
    """

    def __init__(self, backbone: Backbone, length: int) -> None:
        self.mixture = Mixture()
        self.blocks: list[str] = []
        self._backbone = backbone
        self.layer = PromptedEmbedding(backbone.embedding, length, self.mixture)
        backbone.model.set_input_embeddings(self.layer)

    def grow(self, name: str) -> None:
        """Freezes the prompt that learnt and adds a fresh one."""
        self.layer.freeze()
        self._add(name)
        self.restart()

    def restart(self) -> None:
        """Replaces the learning prompt by a fresh one, which the last seed that was set fixes."""
        self.layer.restart()

    def parameters(self) -> list[nn.Parameter]:
        """The learning prompt."""
        return [] if self.layer.prompt is None else [self.layer.prompt]

    def use(self, weights: Tensor | None) -> Tensor | None:
        """Sets the weights (B, T) for the coming forward."""
        self.mixture.weights = weights
        return weights

    def use_block(self, batch_size: int, index: int) -> Tensor | None:
        """Sets one-hot weights on the block `index` for every sample."""
        one_hot = torch.zeros(batch_size, len(self.blocks), device=self.layer.weight.device)
        one_hot[:, index] = 1.0
        return self.use(one_hot)

    def save_block(self, folder: Path, base_name: str) -> None:
        """Writes the learning prompt in peft's layout, and stacks it."""
        if self.layer.prompt is None:
            raise RuntimeError("no prompt is learning, so there is none to save")
        encoder_decoder = self._backbone.is_encoder_decoder
        config = PromptTuningConfig(
            num_virtual_tokens=self.layer.length,
            token_dim=self.layer.embedding_dim,
            num_transformer_submodules=1,  # peft too puts prompts before the encoder's input only
            prompt_tuning_init=PromptTuningInit.RANDOM,
            task_type=TaskType.SEQ_2_SEQ_LM if encoder_decoder else TaskType.CAUSAL_LM,
            base_model_name_or_path=base_name,
            inference_mode=True,
        ).to_dict()
        write_tensors(folder / "adapter_model.safetensors", {KEY: self.layer.prompt})
        write_json(folder / "adapter_config.json", plain(config))
        self.layer.freeze()

    def load_block(self, folder: Path, name: str) -> None:
        """Adds a saved prompt, frozen.

        Raises:
            RetainError: when the file does not hold a prompt of this length and width.
        """
        path = folder / "adapter_model.safetensors"
        prompt = read_tensors(path).get(KEY)
        kind = read_json(folder / "adapter_config.json").get("peft_type")
        wanted = (self.layer.length, self.layer.embedding_dim)
        if kind != "PROMPT_TUNING" or prompt is None or prompt.shape != wanted:
            raise RetainError(
                f"{path}: no soft prompt of {wanted[0]} rows of width {wanted[1]}; "
                "is it from another backbone?"
            )
        self.layer.freeze()
        self._add(name)
        self.layer.push(prompt)

    def _add(self, name: str) -> None:
        self.blocks.append(name)
        self._backbone.virtual_tokens = self.layer.length
