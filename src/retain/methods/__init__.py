"""The methods by name. A new one is a file and a line here; the contract tests then cover it."""

from retain.methods.amlora import AmLora
from retain.methods.base import Method, MethodConfig, ParamGroup, Phase
from retain.methods.derpp import DerPp
from retain.methods.ewc import Ewc
from retain.methods.inclora import IncLora
from retain.methods.l2p import L2p
from retain.methods.lfpt5 import Lfpt5
from retain.methods.lwf import Lwf
from retain.methods.multitask import MultiTask
from retain.methods.olora import OLora
from retain.methods.pertask import PerTask
from retain.methods.progprompt import ProgPrompt
from retain.methods.replay import Replay
from retain.methods.sapt import Sapt, SaptPrompt
from retain.methods.seekr import Seekr
from retain.methods.seqft import SeqFt
from retain.methods.seqlora import SeqLora

METHODS: dict[str, type[Method]] = {
    "sapt": Sapt,
    "sapt-prompt": SaptPrompt,
    "amlora": AmLora,
    "seekr": Seekr,
    "seqft": SeqFt,
    "seqlora": SeqLora,
    "replay": Replay,
    "derpp": DerPp,
    "lwf": Lwf,
    "ewc": Ewc,
    "inclora": IncLora,
    "olora": OLora,
    "l2p": L2p,
    "progprompt": ProgPrompt,
    "lfpt5": Lfpt5,
    "pertask": PerTask,
    "multitask": MultiTask,
}


def list_methods() -> list[str]:
    """Names that `method.name` takes."""
    return sorted(METHODS)


def find(name: str) -> type[Method] | None:
    """The method of a name; None for one that is not installed here."""
    return METHODS.get(name)


__all__ = ["METHODS", "Method", "MethodConfig", "ParamGroup", "Phase", "find", "list_methods"]
