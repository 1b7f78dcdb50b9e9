"""Diagnostics of a SAPT run: its attention, what its blocks began as, its pseudo-samples."""

from __future__ import annotations

from retain.methods.sapt.start import start_diagnostics
from retain.methods.sapt.unknown import unknown_diagnostics
from retain.methods.shared.pseudo_diagnostics import pseudo_sample_diagnostics
from retain.methods.shared.routing_diagnostics import SHARES, routing_diagnostics
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import Record
from retain.runs.sections import Section

SHARES_AND_ALONE = (
    "Each number is a block's share of the attention, from 0 to 1; what a row lacks of 1 is the "
    "share of prompts of no learned task."
)
PSEUDO = "pseudo.jsonl"
"""File of the pseudo-samples in a task's folder."""


class _Reflection(Record):
    samples: str


class _Router(Record):
    unknown: str = "nearest"


class _Options(Record):
    reflection: _Reflection
    router: _Router = _Router()


def sapt_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the sections on a run's routing, its blocks' beginnings and its pseudo-samples."""
    options = results.method_options(run, _Options)
    real = options.reflection.samples == "real"
    alone = options.router.unknown == "base"
    return [
        *routing_diagnostics(run, SHARES_AND_ALONE if alone else SHARES),
        *(unknown_diagnostics(run) if alone else []),
        *start_diagnostics(run),
        *pseudo_sample_diagnostics(run, PSEUDO, real),
    ]
