"""Diagnostics of a SAPT run: its attention, what its blocks began as, its pseudo-samples."""

from __future__ import annotations

from retain.methods.sapt.start import start_diagnostics
from retain.methods.shared.pseudo_diagnostics import pseudo_sample_diagnostics
from retain.methods.shared.routing_diagnostics import routing_diagnostics
from retain.runs import results
from retain.runs.directory import RunDirectory
from retain.runs.records import Record
from retain.runs.sections import Section

PSEUDO = "pseudo.jsonl"
"""File of the pseudo-samples in a task's folder."""


class _Reflection(Record):
    samples: str


class _Options(Record):
    reflection: _Reflection


def sapt_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the sections on a run's routing, its blocks' beginnings and its pseudo-samples."""
    real = results.method_options(run, _Options).reflection.samples == "real"
    return [
        *routing_diagnostics(run),
        *start_diagnostics(run),
        *pseudo_sample_diagnostics(run, PSEUDO, real),
    ]
