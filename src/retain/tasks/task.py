"""A task: examples to learn from, examples to be tested on, and the metric."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain.errors import RetainError
from retain.metrics.extract import WHOLE, check_extraction_name
from retain.metrics.text import check_metric_name
from retain.tasks.example import Example
from retain.tasks.readers import read_rows
from retain.tasks.tables import read_dataset

DEV_SHARE, DEV_LIMIT = 0.1, 50
TEST_SHARE, TEST_LIMIT = 0.2, 200


@dataclass(frozen=True)
class Task:
    """What is learned at once: training, development and test examples under a name.

    Attributes:
        name: unique in its run.
        train: the examples that are learned.
        dev: held-out examples, for methods that need such inputs.
        test: the examples that evaluation alone reads.
        metric: one of `retain.metrics.text.METRICS`.
        extract: one of `retain.metrics.extract.EXTRACTIONS`: the part of an answer, and of its
            references, that the metric sees.
        training: settings of this task over those of the run, by `TrainingConfig`'s names.
        max_new_tokens: how long its answers may be, in tokens; None is the run's setting.

    Raises:
        RetainError: when the name, the metric, `extract`, the test examples or the length are not
            valid.
    """

    name: str
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    metric: str = "exact_match"
    extract: str = WHOLE
    training: Mapping[str, Any] = field(default_factory=dict)
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise RetainError(f"a task's name is {self.name!r:.60}; give it a text")
        if not self.name.strip():
            raise RetainError("a task has no name; give it one")
        try:
            self.name.encode()
        except UnicodeEncodeError:  # as of a file whose name is not UTF-8
            raise RetainError(
                f"task {self.name!a}: its name is not Unicode text; give it another 'name'"
            ) from None
        if not isinstance(self.training, Mapping):
            raise RetainError(
                f"task '{self.name}': training is {self.training!r:.60}; give it a dict of settings"
            )
        check_metric_name(self.metric, f"task '{self.name}'")
        check_extraction_name(self.extract, f"task '{self.name}'")
        if not self.test:
            raise RetainError(f"task '{self.name}': no test examples; give it some")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise RetainError(
                f"task '{self.name}': max_new_tokens is {self.max_new_tokens}; give it 1 or more"
            )

    @classmethod
    def split(
        cls,
        name: str,
        train: Sequence[Example],
        test: Sequence[Example] | None = None,
        metric: str = "exact_match",
        extract: str = WHOLE,
        train_limit: int | None = None,
        training: Mapping[str, Any] | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> Task:
        """Makes a task, with the splits that are missing taken from the training examples.

        A test split that is taken from them has no prompt that the others have.

        Args:
            name: the task's.
            train: the examples; a tenth of them (at most 50) becomes the development split.
            test: the test examples; without them a fifth of train (at most 200), taken first.
            metric: one of `retain.metrics.text.METRICS`.
            extract: one of `retain.metrics.extract.EXTRACTIONS`: what the metric sees of an answer.
            train_limit: how many training examples are kept after that.
            training: settings of this task over those of the run, by `TrainingConfig`'s names.
            max_new_tokens: how long its answers may be, in tokens; None is the run's setting.
            seed: fixes which examples go into which split.

        Raises:
            RetainError: when train is too small to be split, or test is empty.
        """
        rows = list(train)
        random.Random(seed).shuffle(rows)
        if test is None:
            size = min(int(len(rows) * TEST_SHARE), TEST_LIMIT)
            test, rows = _carve_test(rows, size)
        size = min(max(int(len(rows) * DEV_SHARE), 1), DEV_LIMIT)
        dev, rows = rows[:size], rows[size:]
        if not rows or not test:
            empty = "training" if not rows else "test"
            raise RetainError(f"task '{name}': no {empty} examples; give it more lines")
        kept = rows[:train_limit]
        return cls(name, kept, dev, list(test), metric, extract, training or {}, max_new_tokens)

    @classmethod
    def from_jsonl(
        cls,
        path: str | Path,
        name: str | None = None,
        test: str | Path | None = None,
        metric: str = "exact_match",
        extract: str = WHOLE,
        training: Mapping[str, Any] | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> Task:
        """Reads a file of `prompt` and `answer`, or of chat `messages`; then as `split`.

        Args:
            path: a `.jsonl`, `.csv` or `.parquet` file.
            name: the task's; that of the file by default.
            test: a file of test examples.
            metric, extract, training, max_new_tokens, seed: as in `split`.

        Raises:
            RetainError: names the file and the line.
        """
        return cls.split(
            name or Path(path).stem,
            read_rows(Path(path)),
            None if test is None else read_rows(Path(test), kept_back=True),
            metric,
            extract,
            training=training,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )

    @classmethod
    def from_dataset(
        cls,
        data: Any,
        name: str,
        *,
        prompt: str = "prompt",
        answer: str = "answer",
        test: Any = None,
        metric: str = "exact_match",
        extract: str = WHOLE,
        training: Mapping[str, Any] | None = None,
        max_new_tokens: int | None = None,
        seed: int = 0,
    ) -> Task:
        """Reads a `datasets.Dataset`, a pandas DataFrame or a list of dicts; then as `split`.

        Args:
            data: rows of a prompt and an answer (a text or a list of texts), or of `messages`.
            name: the task's.
            prompt: the column with the prompt.
            answer: the column with the answer. The class numbers of a dataset's `ClassLabel`
                become the names of the classes, also in the other split.
            test: test rows, in any of these forms.
            metric, extract, training, max_new_tokens, seed: as in `split`.

        Raises:
            RetainError: names the row and the column.
        """
        columns = {"prompt": prompt, "answer": answer}
        return cls.split(
            name,
            read_dataset(data, f"task '{name}'", columns, like=test),
            None
            if test is None
            else read_dataset(test, f"task '{name}', test", columns, like=data, kept_back=True),
            metric,
            extract,
            training=training,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )

    @property
    def is_conversations(self) -> bool:
        """Whether its examples are chats of `messages`, as the first one."""
        return bool((*self.train[:1], *self.test[:1])[0].messages)

    def fingerprints(self) -> dict[str, str]:
        """Returns a sha256 of each split's examples, which shows whether two runs saw the same."""
        sums = {}
        for split in ("train", "dev", "test"):
            rows = [example.as_row() for example in getattr(self, split)]
            sums[split] = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
        return sums


def _carve_test(rows: Sequence[Example], size: int) -> tuple[list[Example], list[Example]]:
    """Takes the first prompts that have `size` examples; returns all of theirs, and the others."""
    counts, taken = Counter(row.prompt for row in rows), 0
    prompts: set[str] = set()
    for row in rows:
        if taken >= size:
            break
        if row.prompt not in prompts:
            prompts.add(row.prompt)
            taken += counts[row.prompt]
    others = [row for row in rows if row.prompt not in prompts]
    if not others:  # too few prompts
        return list(rows[:size]), list(rows[size:])
    return [row for row in rows if row.prompt in prompts], others
