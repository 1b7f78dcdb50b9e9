"""Hidden states of the user's words after one of the backbone's first layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retain.backbone.backbone import Backbone, Batch
from retain.errors import RetainError, first_line


class _EnoughError(Exception):
    """Ends a forward once the layer that is asked for has run."""


class HiddenStates:
    """Reads the user's words, `route_ids`, up to a layer of the decoder, or of an encoder.

    The words are read as one text, without template and special tokens, as routers take them. The
    later layers are not computed. What a method installs in the backbone takes part unless it is
    switched off before.

    Args:
        backbone: whose layers are read.
        layer: the number of layers, from 1.

    Attributes:
        width: width of the hidden states.

    Raises:
        RetainError: if the model has fewer layers, or its class does not work this way.
    """

    def __init__(self, backbone: Backbone, layer: int) -> None:
        model = backbone.model
        self._stack: nn.Module = (
            model.get_encoder() if backbone.is_encoder_decoder else model.get_decoder()
        )
        lists = [part for part in self._stack.children() if isinstance(part, nn.ModuleList)]
        layers = max(lists, key=len, default=nn.ModuleList())
        if layer > len(layers):
            raise RetainError(
                f"method.router.layer: {layer}, but {type(model).__name__} has {len(layers)} "
                "layers; lower it, or take 0"
            )
        self._layer = layers[layer - 1]
        ids = torch.zeros(2, 3, dtype=torch.long, device=backbone.device)
        try:
            shape = tuple(self({"route_ids": ids, "route_mask": torch.ones_like(ids)}).shape)
            failure = "" if shape[:2] == (2, 3) and len(shape) == 3 else f"gives {shape}"
        except Exception as error:  # classes call their layers in many ways
            failure = first_line(error)
        if failure:
            raise RetainError(
                f"method.router.layer: {type(model).__name__} cannot be read up to layer {layer} "
                f"({failure}); take 0"
            )
        self.width: int = shape[2]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Returns the hidden states (B, S, d) of `route_ids`, as at inference: without dropout."""
        states: list[Tensor] = []

        def keep(_: nn.Module, __: object, output: Tensor | tuple[Tensor, ...]) -> None:
            states.append(output if isinstance(output, Tensor) else output[0])
            raise _EnoughError

        training = self._stack.training
        self._stack.eval()
        hook = self._layer.register_forward_hook(keep)
        ids, mask = batch["route_ids"], batch["route_mask"]
        try:
            with torch.autocast(ids.device.type, enabled=False):
                self._stack(input_ids=ids, attention_mask=mask, use_cache=False)
        except _EnoughError:
            pass
        finally:
            hook.remove()
            self._stack.train(training)
        return states[0]
