"""Options of SEEKR, and budgets as counts or shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat

from retain.methods.base import Options, Presets, Weighting
from retain.methods.seekr.heads import Measure
from retain.methods.shared.teacher import TaughtConfig


def _count_or_share(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if whole or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError("Input should be a whole number, 1 or more, or a share over 0, at most 1.0")


Budget = Annotated[int | float, BeforeValidator(_count_or_share)]
"""A count (an integer) or a share (a fraction; 1.0 is all)."""


class BudgetConfig(Options):
    """How much attention is distilled: attention modules, heads in total, queries per sample.

    Each is a count, or a share of what the model or the sample has.
    """

    layers: Budget = 0.75
    heads: Budget = 0.125
    queries: Budget = 100


ATTENTION_WEIGHTS: Mapping[Weighting, float] = {"relative": 1.0, "published": 1000.0}
"""λ2 where none is given. The published one is for full fine-tuning of 7B parameters."""


class SeekrConfig(TaughtConfig):
    """Options of SEEKR. `preset: paper` has the settings of the published code.

    `logit_weight` is 1 − λ1 and `attention_weight` is λ2. With `weighting: relative` the attention
    term of an example is divided by what it was for the model before the example's task, so that
    λ2 means the same for every backbone, with a LoRA or all weights. `gradient` and `change` set
    whether a sample counts with its mean square or the root of it. `logit_positions` compares
    logits at the positions that predict the answer's tokens, or at those of the tokens. `score` is
    what heads are chosen by; values other than importance are for ablations. Sensitivity sums to 1
    in every layer, so with it all layers are taken.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "weighting": "published",
            "gradient": "squares",
            "change": "squares",
            "accumulate": "sum_of_products",
            "logit_positions": "standing",
            "teacher": {"top_k": None, "dtype": "float32"},
        },
    }

    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    logit_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    weighting: Weighting = "published"
    attention_weight: NonNegativeFloat | None = None
    score: Literal["importance", "sensitivity", "forgettability", "random"] = "importance"
    gradient: Measure = "norms"
    change: Measure = "norms"
    accumulate: Literal["sum_of_products", "product_of_sums"] = "product_of_sums"
    logit_positions: Literal["predicting", "standing"] = "predicting"


def budget(value: float, total: int) -> int:
    """Converts a budget to a count of at most `total`; a fraction is a share of `total`."""
    return min(total, value if isinstance(value, int) else max(1, round(value * total)))
