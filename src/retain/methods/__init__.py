"""The methods by name. A new one is a file and a line here; the contract tests then cover it."""

from retain.methods.base import Method, MethodConfig, ParamGroup, Phase
from retain.methods.pertask import PerTask
from retain.methods.sapt import Sapt
from retain.methods.seqlora import SeqLora

METHODS: dict[str, type[Method]] = {
    "sapt": Sapt,
    "seqlora": SeqLora,
    "pertask": PerTask,
}


def list_methods() -> list[str]:
    """Names that `method.name` takes."""
    return sorted(METHODS)


__all__ = ["METHODS", "Method", "MethodConfig", "ParamGroup", "Phase", "list_methods"]
