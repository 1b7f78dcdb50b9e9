"""Continual-learning methods. A new one is a file and a line in `BUILT_IN`.

The contract tests of `retain.testing` then cover it.
"""

from retain.methods.amlora import AmLora
from retain.methods.base import Method, MethodConfig, ParamGroup, Phase, TaskContext, Traits
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
from retain.methods.registry import (
    METHODS,
    find,
    is_installed,
    is_loaded,
    list_methods,
    load_plugins,
    register,
    source_of,
)
from retain.methods.replay import Replay
from retain.methods.sapt import Sapt, SaptPrompt
from retain.methods.seekr import Seekr
from retain.methods.seqft import SeqFt
from retain.methods.seqlora import SeqLora

BUILT_IN: dict[str, type[Method]] = {
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
"""The methods that come with retain, by name."""

for _name, _method in BUILT_IN.items():
    register(_name)(_method)

__all__ = [
    "BUILT_IN",
    "METHODS",
    "Method",
    "MethodConfig",
    "ParamGroup",
    "Phase",
    "TaskContext",
    "Traits",
    "find",
    "is_installed",
    "is_loaded",
    "list_methods",
    "load_plugins",
    "register",
    "source_of",
]
