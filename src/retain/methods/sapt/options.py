"""Options of SAPT: the kind of router, generator and reflection, and the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from retain.backbone import Backbone
from retain.methods.base import MethodConfig, Options, Presets
from retain.methods.sapt.router import AttentionOptions, AttentionRouter
from retain.methods.sapt.whitened import THRESHOLD, WhitenedOptions, WhitenedRouter
from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.pseudo_samples import DrawConfig

START_ABOVE = 0.3
"""Cosine of two tasks' means from which `start: nearest` copies a block, if none is given."""
REFLECTION_WEIGHT = {"attention": 0.5, "whitened": 0.0}
"""λ by the kind of router: what is not trained needs no reflection."""


class RouterConfig(WhitenedOptions, AttentionOptions):
    """Options of the router: one in closed form (`whitened`), or the published one (`attention`).

    `hidden`, `temperature`, `centre`, `key` and `rate` are for `kind: attention` only. That router
    is trained with `rate` times training.learning_rate. `layer`, `scale`, `unknown` and `threshold`
    are for `kind: whitened` only. It reads the token embeddings with `layer: 0`, and with k the
    hidden states after layer k of the backbone without blocks. `scale` multiplies the cosines.
    With `unknown: base` the backbone alone answers a prompt whose likeness to every task is below
    `threshold`: a usual prompt of a task has likeness 1, one that has nothing to do with it 0. With
    `top_k` only the k blocks with the largest attention keep a weight, and other LoRA blocks are
    not computed; this is for streams of hundreds of tasks.
    """

    kind: Literal["attention", "whitened"] = "whitened"
    top_k: Annotated[int, Field(ge=2)] | None = None  # one alone would have no gradient

    @model_validator(mode="after")
    def _of_this_kind(self) -> RouterConfig:
        other = AttentionOptions if self.kind == "whitened" else WhitenedOptions
        for name, field in other.model_fields.items():
            if getattr(self, name) != field.default:
                kinds = {"attention", "whitened"} - {self.kind}
                raise ValueError(
                    f"{name} is no option of kind: {self.kind}; remove it, or set "
                    f"kind: {kinds.pop()}"
                )
        if self.unknown == "nearest" and self.threshold != THRESHOLD:
            raise ValueError("threshold is for unknown: base; set that, or remove threshold")
        return self

    def make(self, backbone: Backbone) -> AttentionRouter | WhitenedRouter:
        """Makes the router of a backbone."""
        make = WhitenedRouter if self.kind == "whitened" else AttentionRouter
        return make(backbone, self, self.top_k)


class GeneratorConfig(DrawConfig):
    """Options of the generator of pseudo-samples.

    `target` is what it learns to write: `prompt`, or `example`, a prompt with its answer, of which
    the prompt is kept and texts without an answer are dropped. `max_steps: null` takes the run's
    number of steps. `rate` is the generator's learning rate as a multiple of the blocks' learning
    rate. `share` is the number of pseudo-samples as a share of the training examples.
    """

    target: Literal["prompt", "example"] = "prompt"
    max_steps: PositiveInt | None = None
    rate: PositiveFloat = 3.0
    share: PositiveFloat = 0.02


class ReflectionConfig(Options):
    """Weight λ of the reflection loss, and the samples that it is computed on.

    `weight: null` is 0.5 with `router.kind: attention` and 0 with `whitened`. The whitened router
    is not trained, so reflection cannot change it; with a weight the loss is only recorded, and
    tells how far the attention of old tasks moved.
    A step reflects on at most `tasks` old tasks, drawn at random to represent all of them, so that
    its cost does not grow with the stream; null stands for all, as published. `samples: real` keeps
    training inputs of old tasks instead of generated ones, for comparison.
    """

    weight: NonNegativeFloat | None = None
    samples: Literal["generated", "real"] = "generated"
    tasks: PositiveInt | None = 16


class RoutedConfig(MethodConfig):
    """Options of SAPT-LoRA and SAPT-Prompt; `preset: paper` has the published router.

    Without a `router.kind`, options that only the trained router uses choose it: `generator`,
    `reflection`, and those of `router` that `attention` alone has.

    With `start: nearest` a new block begins as a copy of the nearest learned task's block if the
    whitened cosine of the two tasks' mean prompts is at least `start_above`, else as a fresh one.
    With `start: lowest_loss` it begins as a copy of the block, of the eight nearest tasks', with
    the lowest loss on the new task's answers (its first 32 training examples), unless a
    fresh block's is lower. Both need `router.kind: whitened`.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "router": {"kind": "attention", "centre": "none", "key": "uniform", "rate": 1.0},
            "generator": {"target": "example", "rate": 1.0},
            "reflection": {"tasks": None},
        },
    }

    router: RouterConfig = Field(default_factory=RouterConfig)
    generator: GeneratorConfig = Field(default_factory=GeneratorConfig)
    reflection: ReflectionConfig = Field(default_factory=ReflectionConfig)
    start: Literal["fresh", "nearest", "lowest_loss"] = "fresh"
    start_above: Annotated[float, Field(ge=-1, le=1)] = START_ABOVE

    @model_validator(mode="before")
    @classmethod
    def _kind_of_options(cls, values: Any) -> Any:
        router = values.get("router", {}) if isinstance(values, Mapping) else None
        if not isinstance(router, Mapping) or "kind" in router:
            return values
        of_attention = [name for name in ("generator", "reflection") if name in values]
        options = AttentionOptions.model_fields
        of_attention += [f"router.{name}" for name in options if name in router]
        if not of_attention:
            return values
        if of_whitened := [name for name in WhitenedOptions.model_fields if name in router]:
            raise ValueError(
                f"{of_attention[0]} chooses router.kind: attention, and router.{of_whitened[0]} is "
                "an option of whitened; remove one of them"
            )
        return {**values, "router": {**router, "kind": "attention"}}

    @model_validator(mode="after")
    def _distances_are_known(self) -> RoutedConfig:
        if self.start != "fresh" and self.router.kind != "whitened":
            raise ValueError(
                f"start: {self.start} compares tasks by the statistics of router.kind: whitened; "
                "set that, or start: fresh"
            )
        if self.start != "nearest" and self.start_above != START_ABOVE:
            raise ValueError("start_above is for start: nearest; set that, or remove start_above")
        return self

    @model_validator(mode="after")
    def _weight_of_reflection(self) -> RoutedConfig:
        if self.reflection.weight is None:
            weight = REFLECTION_WEIGHT[self.router.kind]
            self.reflection = self.reflection.model_copy(update={"weight": weight})
        unused = self.generator != GeneratorConfig() and not self.reflection.weight
        if unused and self.router.kind == "whitened":
            raise ValueError(
                "generator writes pseudo-samples for reflection, which router.kind: whitened needs "
                "none of; remove it, or set reflection.weight above 0 to see the loss"
            )
        return self


class SaptConfig(RoutedConfig, LoraMethodConfig):
    """Options of SAPT-LoRA."""

    old_block_gradient: bool = False


class SaptPromptConfig(RoutedConfig):
    """Options of SAPT-Prompt: `length` vectors per prompt, and their learning rate.

    `rate` is a multiple of training.learning_rate.
    """

    length: PositiveInt = 10
    rate: PositiveFloat = 100.0
