"""A conversation as it is given: in training data, and in the requests that a server gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

from retain.errors import RetainError

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = get_args(Role)


def user_text(messages: Iterable[Mapping[str, str]]) -> str:
    """Joins the user's turns of a conversation: the prompt of an example that comes as a chat."""
    return "\n".join(turn["content"] for turn in messages if turn["role"] == "user")


def known_role(role: Any) -> Any:
    """Returns a turn's role; `developer` is OpenAI's newer name for `system`."""
    return "system" if role == "developer" else role


def one_text(content: Any) -> Any:
    """Returns the content of a turn; a list of text parts is joined with line breaks.

    Raises:
        ValueError: says which part is not a text.
    """
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise ValueError(f"part {i} has type {kind!r}, but only 'text' is supported; remove it")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"part {i} has no field 'text' with a string; add it")
    return "\n".join(part["text"] for part in content)


def read_messages(value: Any, where: str) -> list[dict[str, str]]:
    """Reads the turns of a conversation; fields other than `role` and `content` are ignored.

    Args:
        value: the list of turns.
        where: file and line, for the error.

    Raises:
        RetainError: names the place, and the turn by its number from 1.
    """
    if not isinstance(value, list):
        raise RetainError(f"{where}: field 'messages' must be a list of role and content")
    turns = []
    for number, turn in enumerate(value, 1):
        role = known_role(turn.get("role")) if isinstance(turn, dict) else None
        place = f"{where}: turn {number} of 'messages'"
        if role not in ROLES:
            given = f" (got {role!r:.40})" if role else ""
            raise RetainError(
                f"{where}: each of 'messages' needs a 'role' (system, developer, user or "
                f"assistant) and a text 'content'; correct turn {number}{given}"
            )
        if turn.get("tool_calls") or turn.get("function_call"):
            raise RetainError(f"{place} calls a tool, which is not supported; leave the row out")
        try:
            content = one_text(turn.get("content"))
        except ValueError as error:
            raise RetainError(f"{place}: {error}") from None
        if not isinstance(content, str):
            raise RetainError(
                f"{where}: each of 'messages' needs a 'role' and a text 'content'; "
                f"correct turn {number}"
            )
        turns.append({"role": role, "content": content})
    return turns
