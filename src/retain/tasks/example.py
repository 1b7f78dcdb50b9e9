"""One example of a task."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Example:
    """One prompt and the answers that count as right.

    Attributes:
        prompt: the user's text, without a chat template.
        references: right answers; training uses the first, scoring takes the best over all.
        messages: the conversation before the answer, `{"role", "content"}` each, when the example
            came as a chat; empty otherwise.
    """

    prompt: str
    references: tuple[str, ...]
    messages: tuple[dict[str, str], ...] = ()

    def as_row(self) -> dict[str, object]:
        """Returns the JSON object that `rows.parse_row` turns back into this example."""
        row: dict[str, object] = {"prompt": self.prompt, "answer": list(self.references)}
        if self.messages:
            row["messages"] = list(self.messages)
        return row
