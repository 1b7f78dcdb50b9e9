"""One row, of whatever a task is read from, to an example."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from retain.errors import RetainError
from retain.tasks.conversation import read_messages, user_text
from retain.tasks.example import Example
from retain.tasks.json_text import Number

COLUMNS = {"prompt": "prompt", "answer": "answer"}


def parse_row(row: Any, where: str, columns: Mapping[str, str] = COLUMNS) -> Example:
    """Parses a row of `prompt` and `answer` (a text or a list of references), or of `messages`.

    Args:
        row: the row as read.
        where: file and line, for the error.
        columns: the keys that hold the prompt and the answer.

    Raises:
        RetainError: names the place and the field.
    """
    if not isinstance(row, dict):
        raise RetainError(
            f"{where}: expected an object with 'prompt' and 'answer', and not {shown(row)}; write "
            "each row as one object"
        )
    messages: tuple[dict[str, str], ...] = ()
    if row.get("messages"):
        turns = read_messages(row["messages"], where)
        answer: Any = row.get(columns["answer"])
        if answer is None:
            if len(turns) < 2 or turns[-1]["role"] != "assistant":
                raise RetainError(f"{where}: 'messages' must end with the assistant's answer")
            answer, turns = turns[-1]["content"], turns[:-1]
        prompt = user_text(turns)
        messages = tuple(turns)
    else:
        for role, key in columns.items():
            if row.get(key) is None:
                if key in row:
                    raise RetainError(
                        f"{where}: no field '{key}' for the {role}: it is null; give it a text"
                    )
                present = ", ".join(map(str, row)) or "none"
                raise RetainError(
                    f"{where}: no field '{key}' for the {role} (fields: {present}); add it, or "
                    f"name another ('columns' of the task, {role}= in Task.from_dataset)"
                )
        prompt, answer = row[columns["prompt"]], row[columns["answer"]]
    references = answer if isinstance(answer, list | tuple) else [answer]
    if not isinstance(prompt, str) or not prompt.strip():
        field = "messages" if messages else columns["prompt"]
        raise RetainError(f"{where}: field '{field}' must hold a text that is not empty")
    if not references:
        raise RetainError(
            f"{where}: field '{columns['answer']}' must be a text or a list of texts, and not an "
            "empty list; give it a text"
        )
    known = tuple(as_text(each, f"{where}: field '{columns['answer']}'") for each in references)
    if not known[0].strip():
        raise RetainError(f"{where}: field '{columns['answer']}' is empty; give it a text")
    try:
        "".join((prompt, *known, *(turn["content"] for turn in messages))).encode()
    except UnicodeEncodeError:
        raise RetainError(f"{where}: half a character (a lone surrogate); remove it") from None
    return Example(prompt, known, messages)


def given_row(row: Any, where: str, columns: Mapping[str, str] = COLUMNS) -> Example:
    """Parses a row that a user gives: as `parse_row`, and what it says twice has to be the same.

    An assistant's last turn beside an equal answer is left out of the prompt. No text may look
    empty.

    Raises:
        RetainError: names the place and the field.
    """
    if columns["prompt"] == columns["answer"]:
        raise RetainError(
            f"{where}: field '{columns['prompt']}' is named for the prompt and for the answer; "
            "name another for one of them"
        )
    if isinstance(row, dict) and row.get("messages") and row.get(columns["answer"]) is not None:
        row = _answered_once(row, where, columns["answer"])
    example = parse_row(row, where, columns)
    if example.messages and (prompt := row.get(columns["prompt"])) is not None:
        _refuse_other_prompt(prompt, example, f"{where}: field '{columns['prompt']}'")
    texts = [(columns["answer"], text) for text in example.references]
    for field, text in ((columns["prompt"], example.prompt), *texts):
        if _is_empty(text):
            raise RetainError(f"{where}: field '{field}' has an empty text; give it words")
    return example


def _answered_once(row: dict[str, Any], where: str, field: str) -> dict[str, Any]:
    """The row without the assistant's last turn, where the field `field` has this answer too."""
    turns = read_messages(row["messages"], where)
    if not turns or turns[-1]["role"] != "assistant":
        return row
    answer, said = row[field], turns[-1]["content"]
    references = answer if isinstance(answer, list | tuple) else [answer]
    if _canonical(said) not in map(_canonical, references):
        raise RetainError(
            f"{where}: 'messages' end with another answer ({said[:40]!r}) than the field "
            f"'{field}' has; remove one of them"
        )
    turns = turns[:-1]
    if turns and turns[-1]["role"] == "assistant":
        raise RetainError(
            f"{where}: two turns of the assistant end 'messages'; make one of them, or remove one"
        )
    return {**row, "messages": turns}


def _refuse_other_prompt(prompt: Any, example: Example, place: str) -> None:
    """Raises RetainError for a prompt that is no text of the conversation beside it."""
    turns = [turn["content"] for turn in example.messages]
    texts = [example.prompt, "\n".join(turns)]
    texts += [turn["content"] for turn in example.messages if turn["role"] == "user"]
    if _canonical(prompt) not in map(_canonical, texts):
        raise RetainError(
            f"{place} is another text than the user's in 'messages'; remove one of them"
        )


def _canonical(value: Any) -> str:
    """A text by which two ways to write the same are equal: white space, forms of Unicode."""
    return " ".join(unicodedata.normalize("NFC", _text(value) or "").split())


def as_text(value: Any, place: str) -> str:
    """Returns a text as it is, and a finite number as it is spelled.

    Raises:
        RetainError: for anything else, whose spelling the file does not tell.
    """
    text = _text(value)
    if text is None:
        raise RetainError(
            f"{place} must be a text or a list of texts, and not {shown(value)}; write it as text"
        )
    return text


def shown(value: Any) -> str:
    """Names a value for an error: true, false and null as JSON has them, other values by kind."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return str(value)
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _text(value: Any) -> str | None:
    """The text of a reference, or of a finite number; None for anything else."""
    if isinstance(value, str | Number):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        return str(value) if isinstance(value, int) or math.isfinite(value) else None
    except ValueError:  # more digits than Python turns into text, or a signalling NaN
        return None


def _is_empty(text: str) -> bool:
    """Whether a text shows nothing: white space, and characters without a width."""
    return all(c.isspace() or unicodedata.category(c) == "Cf" for c in text)
