"""One example of a task."""

from __future__ import annotations

from dataclasses import dataclass

from retain.errors import RetainError


@dataclass(frozen=True)
class Example:
    """One prompt and the answers that count as right.

    Attributes:
        prompt: the user's text, without a chat template.
        references: right answers; training uses the first, scoring takes the best over all.
        messages: the conversation before the answer, `{"role", "content"}` each, when the example
            came as a chat; empty otherwise.

    Raises:
        RetainError: when the prompt is no text, or the references are no sequence of texts.
    """

    prompt: str
    references: tuple[str, ...]
    messages: tuple[dict[str, str], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            raise RetainError(f"an example's prompt is {self.prompt!r:.60}; give it a text")
        given = self.references
        is_text = isinstance(given, str)  # whose letters would be the answers
        if is_text or not given or not all(isinstance(right, str) for right in given):
            raise RetainError(
                f"an example's references are {given!r:.60}; give it a tuple of texts, such as "
                "('yes',)"
            )

    def as_row(self) -> dict[str, object]:
        """Returns the JSON object that `rows.parse_row` turns back into this example."""
        row: dict[str, object] = {"prompt": self.prompt, "answer": list(self.references)}
        if self.messages:
            row["messages"] = list(self.messages)
        return row
