"""DER++: dark experience replay (Buzzega et al., arXiv 2004.07211, eq. 6)."""

from __future__ import annotations

from dataclasses import replace

from pydantic import NonNegativeFloat
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.backbone.losses import IGNORED, cross_entropy
from retain.methods.shared.teacher import TaughtConfig, TaughtMethod, squared_error, stacked


class DerPpConfig(TaughtConfig):
    """The paper's α (squared error of logits) and β (cross-entropy on kept examples)."""

    logit_weight: NonNegativeFloat = 0.5
    replay_weight: NonNegativeFloat = 0.5


class DerPp(TaughtMethod):
    """α ‖teacher logits − logits‖² + β cross-entropy on a replay batch.

    The teacher is the model right after the example's task. The paper draws one batch for each of
    the two terms; here both are computed on the same batch.
    """

    Config = DerPpConfig
    traits = replace(
        TaughtMethod.traits,
        idea="replay, and the logits that the model gave when it had just learned the example",
        stores="a share of its examples with their logits; the newest weights of the backbone",
    )
    only_calls = True

    def __init__(self, backbone: Backbone, config: DerPpConfig) -> None:
        super().__init__(backbone, config)
        self.options = config

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy; on a replay batch also the squared error of the logits."""
        if "is_replay" not in batch:
            return super().loss(batch)
        self.route(batch)
        logits, targets = self.backbone.answer_logits(batch)
        teacher = stacked(self.read_teacher_outputs(batch))
        error = squared_error(logits[targets != IGNORED], teacher)
        return {
            "replay": self.options.replay_weight * cross_entropy(logits, targets),
            "logits": self.options.logit_weight * error,
        }
