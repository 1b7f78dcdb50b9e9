"""Diagnostics of a SAPT run: its attention, what its blocks began as, its pseudo-samples."""

from __future__ import annotations

from retain.methods.sapt.start import start_diagnostics
from retain.methods.sapt.unknown import unknown_diagnostics
from retain.methods.shared.pseudo_diagnostics import pseudo_sample_diagnostics
from retain.methods.shared.routing_diagnostics import SHARES, routing_diagnostics
from retain.runs import results
from retain.runs.compacted import newest_compacted
from retain.runs.directory import RunDirectory
from retain.runs.labels import short
from retain.runs.records import Record
from retain.runs.sections import Grid, Section

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


def compaction_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the section on the run's newest compaction; no section without one."""
    compacted = newest_compacted(run)
    if compacted is None:
        return []
    scores = zip(compacted.sharing, compacted.before, compacted.after, strict=True)
    rows = [
        (short(results.task_record(run, folder).name), [str(b + 1), f"{old:.1f}", f"{new:.1f}"])
        for folder, (b, old, new) in zip(run.learned(), scores, strict=False)
    ]
    grid = Grid("Blocks that tasks share", ["block", "score before", "score after"], rows)
    caption = "retain compact has merged blocks of look-alike tasks; scores are of that moment."
    return [Section("Blocks that tasks share", [grid], caption=caption)]


def sapt_diagnostics(run: RunDirectory) -> list[Section]:
    """Returns the sections on a run's routing, its blocks' beginnings and its pseudo-samples."""
    options = results.method_options(run, _Options)
    real = options.reflection.samples == "real"
    alone = options.router.unknown == "base"
    return [
        *routing_diagnostics(run, SHARES_AND_ALONE if alone else SHARES),
        *(unknown_diagnostics(run) if alone else []),
        *start_diagnostics(run),
        *compaction_diagnostics(run),
        *pseudo_sample_diagnostics(run, PSEUDO, real),
    ]
