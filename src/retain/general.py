"""General ability, by lm-evaluation-harness: tasks outside the stream, before it and now."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import lm_eval
import torch
import torch.nn.functional as F
import transformers
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.table import Table
from rich.text import Text

from retain.backbone import Backbone, Features, load_backbone
from retain.backbone.backbone import IGNORED
from retain.errors import RetainError, first_line
from retain.evaluation import Route
from retain.learner import Learner
from retain.progress import Progress
from retain.report.tables import new_table
from retain.tasks import Example

MAX_TOKENS = 2048
"""Of a text that is read at once, for models that could read more, or do not say how much."""
LIMITS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True)
class General:
    """One metric of a task of the harness.

    Attributes:
        task: its name, or its group's.
        metric: its name, with the harness' filter of answers where there is one.
        backbone: the plain backbone's, in the metric's own unit.
        run: that of the run's model.
        error: standard error of the difference, from the examples one by one; None where the metric
            is no mean over them.
        higher_is_better: None where the task does not say.
    """

    task: str
    metric: str
    backbone: float
    run: float
    error: float | None
    higher_is_better: bool | None


class RoutedLM(TemplateLM):
    """A backbone as the harness asks it: raw text, without chat template.

    The method's routing reads the context, as it would read a prompt; where there is none, the
    text itself.

    Args:
        backbone: with a method's layers installed, or plain.
        route: sets the weights over blocks for a batch.
        batch_size: texts that are read at once.
        progress: is told of each batch.
        label: of the stretch of work.
    """

    def __init__(
        self, backbone: Backbone, route: Route, batch_size: int, progress: Progress, label: str
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.tokenizer = backbone.tokenizer
        self.backend = "seq2seq" if backbone.is_encoder_decoder else "causal"
        self._route = route
        self._batch_size = batch_size
        self._progress = progress
        self._label = label
        known = [getattr(backbone.model.config, name, None) for name in LIMITS]
        self.max_length = min([MAX_TOKENS, *(limit for limit in known if limit)])
        self.max_length -= backbone.virtual_tokens

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without a context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids, with the tokenizer's special ones unless told otherwise."""
        special = add_special_tokens is not False
        ids: list[int] = self.tokenizer(string, add_special_tokens=special)["input_ids"]
        return ids

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log p of whole texts, in windows where they are long."""
        texts = [str(request.args[0]) for request in requests]
        pieces, owners = [], []
        for number, text in enumerate(texts):
            ids = self.tok_encode(text, add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - 1, 1)
            for context, predicted in map(make_disjoint_window, windows):
                pieces.append((text, context, predicted))
                owners.append(number)
        found = [0.0] * len(texts)
        # One at a time: logits over the vocabulary at every position.
        for number, (log_p, _) in zip(owners, self._scored(pieces, 1), strict=True):
            found[number] += log_p
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers up to a stop text; greedy unless the task samples."""
        found = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        for numbers in groups.values():
            options = normalize_gen_kwargs(requests[numbers[0]].args[1])
            stops, count = [stop for stop in options["until"] if stop], options["max_gen_toks"]
            sampling: dict[str, Any] = {}
            if options["do_sample"]:
                sampling = {"do_sample": True, "temperature": options["temperature"]}
            if stops:
                sampling |= {"stop_strings": stops, "tokenizer": self.tokenizer}
            room = max(1, self.max_length - (0 if self.backbone.is_encoder_decoder else count))
            texts = [str(requests[number].args[0]) for number in numbers]
            rows = [
                self._row(text, (self.tok_encode(text) or [self.prefix_token_id])[-room:])
                for text in texts
            ]
            for chosen in self._batches(rows, self._batch_size):
                batch = self.backbone.collate([rows[i] for i in chosen])
                with torch.no_grad():
                    self._route(batch)
                answers = self.backbone.generate(batch, count, **sampling)
                for i, text in zip(chosen, answers, strict=True):
                    cut = min((text.find(stop) for stop in stops if stop in text), default=None)
                    found[numbers[i]] = text[:cut]
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        pieces = [(texts[0] or texts[1], ids, predicted) for texts, ids, predicted in requests]
        return self._scored(pieces, self._batch_size)

    def _scored(
        self, pieces: Sequence[tuple[str, list[int], list[int]]], batch_size: int
    ) -> list[tuple[float, bool]]:
        """log p of each piece's last ids after its first, and whether greedy decoding writes them.

        Args:
            pieces: what is routed on, ids of the context, ids that are predicted.
            batch_size: pieces that are read at once.
        """
        rows = []
        for text, context, predicted in pieces:
            predicted = predicted[1 - self.max_length :]
            if self.backbone.is_encoder_decoder:
                rows.append({**self._row(text, context[-self.max_length :]), "labels": predicted})
                continue
            row = self._row(text, context[len(predicted) - self.max_length :])
            ids = row["input_ids"]
            labels = [IGNORED] * len(ids) + predicted
            rows.append({**row, "input_ids": ids + predicted, "labels": labels})
        found = [(0.0, True)] * len(rows)
        for chosen in self._batches(rows, batch_size):
            batch = self.backbone.collate([rows[i] for i in chosen])
            with torch.no_grad():
                self._route(batch)
                logits, targets = self.backbone.answer_logits(batch)
            wanted = targets != IGNORED
            losses = F.cross_entropy(
                logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
            )
            greedy = ((logits.argmax(-1) == targets) | ~wanted).all(1)
            for i, loss, is_greedy in zip(chosen, losses.sum(1), greedy, strict=True):
                found[i] = (-float(loss), bool(is_greedy))
        return found

    def _row(self, text: str, ids: list[int]) -> Features:
        """A context's ids with what the router reads of a text."""
        read = self.backbone.encode(Example(text, ("",)), with_answer=False)["route_ids"]
        virtual = [*range(-1, -1 - self.backbone.virtual_tokens, -1)]
        return {"input_ids": [*virtual, *ids], "route_ids": read}

    def _batches(self, rows: Sequence[Features], size: int) -> Iterator[list[int]]:
        """Numbers of rows that are read together, longest first, so that little is padded."""
        self.backbone.model.eval()
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i]["input_ids"]))
        self._progress.start(self._label, len(rows), "texts")
        try:
            for start in range(0, len(order), size):
                yield order[start : start + size]
                self._progress.update(min(len(order), start + size))
        finally:
            self._progress.finish()


def general_ability(
    folder: Path, names: Sequence[str], limit: int | None, progress: Progress
) -> list[General]:
    """Asks tasks of the harness of a run's plain backbone, and of its model.

    Args:
        folder: the run directory.
        names: of tasks, groups or tags of the harness, or YAML files of tasks of its kind.
        limit: takes the first so many examples of each task.
        progress: is told what happens.

    Raises:
        RetainError: when the run cannot answer, needs the task's name, or a task cannot be read.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it speaks of settings of its own command
    manager = _manager(names)
    learner = Learner.load(folder, progress)
    learner.refuse_unready()
    if learner.method.needs_task_id:
        raise RetainError(
            f"{folder}: its method needs the task's name at inference, and none of its tasks is "
            "one of these; take a method that routes by itself"
        )
    tasks = _loaded(manager, names)
    experiment = learner.experiment
    options = experiment.evaluation.batch_size, progress

    def asked(backbone: Backbone, route: Route, label: str) -> Any:
        transformers.set_seed(experiment.seed)
        model = RoutedLM(backbone, route, *options, label)
        return lm_eval.evaluate(model, tasks, limit=limit, bootstrap_iters=0)

    now = asked(learner.backbone, learner.method.route, "general ability of the run")
    del learner  # before the backbone is there once more
    plain = load_backbone(experiment.backbone, experiment.prompt)
    before = asked(plain, lambda batch: None, "general ability of the backbone")
    return list(_compared(before, now))


def general_table(scores: Sequence[General]) -> Table:
    """A row a metric: the plain backbone's, the run's, the change with its standard error."""
    table = new_table("General ability", ["backbone", "run", "change", "±"])
    for own in scores:
        better = {True: " ↑", False: " ↓", None: ""}[own.higher_is_better]
        error = "–" if own.error is None else f"{own.error:.3f}"
        values = f"{own.backbone:.3f}", f"{own.run:.3f}", f"{own.run - own.backbone:+.3f}"
        table.add_row(Text(f"{own.task} {own.metric}{better}"), *values, error)
    return table


def _manager(names: Sequence[str]) -> TaskManager:
    """The harness' index of tasks; RetainError for a name that is not in it."""
    if not names:
        raise RetainError(
            "--general: no task; name one of lm-evaluation-harness, such as hellaswag"
        )
    files = [name for name in names if Path(name).is_file()]
    manager = TaskManager(include_defaults=len(files) < len(names))  # thousands of files
    for name in names:
        if name not in files and name not in manager.all_tasks:
            near = get_close_matches(name, manager.all_tasks) or ["hellaswag"]
            raise RetainError(
                f"--general {name}: no such task; take a file, or a name that lm-eval knows, such "
                f"as {', '.join(near)}"
            )
    return manager


def _loaded(manager: TaskManager, names: Sequence[str]) -> Any:
    """Tasks with their data; RetainError when a file or the data cannot be read."""
    try:
        tasks = manager.load(list(names))
    except Exception as error:  # of every kind: the file, its code, the hub, the network
        raise RetainError(
            f"--general {','.join(names)}: cannot be read ({first_line(error)}); correct it, "
            "or see that its data can be reached"
        ) from None
    for task in tasks["tasks"].values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(0)
    return tasks


def _compared(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[General]:
    for task, values in before["results"].items():
        for key, value in values.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            change = now["results"][task][key] - value
            rows = [each["samples"].get(task, ()) for each in (before, now)]
            error = _error(rows[0], rows[1], key, change)
            better = before["higher_is_better"].get(task, {}).get(metric)
            name = metric if kept == "none" else f"{metric} ({kept})"
            yield General(task, name, value, value + change, error, better)


def _error(
    before: Iterable[Mapping[str, Any]], now: Iterable[Mapping[str, Any]], key: str, change: float
) -> float | None:
    """Of the mean of the examples' differences, if that is what the metric's change is."""
    metric, _, kept = key.partition(",")
    first, last = (
        {
            row["doc_id"]: float(row[metric])
            for row in rows
            if row["filter"] == kept and isinstance(row.get(metric), int | float)
        }
        for rows in (before, now)
    )
    differences = [last[number] - value for number, value in first.items() if number in last]
    if len(differences) < 2 or not math.isclose(fmean(differences), change, abs_tol=1e-9):
        return None
    return stdev(differences) / math.sqrt(len(differences))
