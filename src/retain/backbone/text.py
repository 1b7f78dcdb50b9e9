"""Texts as tokens and back: a prompt, the answer that continues it, and an answer that is read.

What is learned, asked, read back and scored is one text. So a prompt has the same tokens with and
without its answer, a special token that a user's text spells is text, and an answer that is decoded
from its own labels is the reference (`learner.check_texts` checks that before training).
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, PositiveInt
from transformers import PreTrainedTokenizerBase

from retain.backbone.chat import EXCERPT, HALF, ChatTemplate, Rendered, Turn
from retain.errors import RetainError, first_line
from retain.tasks import Example

SPELLED = "\udfe1{}\udfe2"
"""Marks a special token that a user's text spells, through the rendering of a template.

Half a character (a lone surrogate) is in no text, so that no text can be taken for a mark.
"""

ANCHORS = ("\n", "a", ".")
"""Texts before another, to find its tokens where it does not begin a text."""


PROBES = ("a", "1", ".")
"""Texts that are tried first, to see what a tokenizer writes around a text."""


class PromptConfig(BaseModel):
    """How a prompt becomes tokens. A prompt that is too long loses its middle.

    With `chat_template: auto` examples of `messages` are written with the tokenizer's chat template
    if it has one, and examples of a `prompt` as they are. With `true` all examples are written with
    the template, a prompt as a user's turn. With `false` none is, and the messages of a
    conversation are joined by line breaks.
    """

    model_config = ConfigDict(extra="forbid")

    chat_template: bool | Literal["auto"] = "auto"
    max_prompt_tokens: PositiveInt = 512
    max_answer_tokens: PositiveInt = 128


def _user(text: str) -> Turn:
    return {"role": "user", "content": text}


class Texts:
    """Turns examples into token ids and ids into answers.

    Args:
        tokenizer: of the backbone.
        name: the backbone's, for errors.
        continues: whether an answer continues its prompt in one sequence (a decoder-only model), or
            is a sequence of its own (an encoder-decoder).
        end_ids: the ids that end an answer.
        first_id: the id that an answer has to begin with, if there is one.

    Attributes:
        first_ids: that id, or none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        continues: bool,
        end_ids: list[int],
        first_id: int | None,
    ) -> None:
        self.tokenizer = tokenizer
        self._continues = continues
        self._end_ids = end_ids
        self.first_ids = [] if first_id is None else [first_id]
        self._name = name
        self._chat = ChatTemplate(tokenizer, name)
        model: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        if getattr(model, "dropout", None):  # it would write a text with other tokens each time
            model.dropout = None
        # Reading a special token as text changes a setting of the tokenizer for a moment.
        self._lock = threading.RLock()

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> Texts:
        """Returns the same with a copy of the tokenizer, for another thread."""
        first_id = self.first_ids[0] if self.first_ids else None
        copied = Texts(tokenizer, self._name, self._continues, self._end_ids, first_id)
        copied._chat.is_tried = self._chat.is_tried
        return copied

    def prompt_and_answer(
        self, example: Example, templated: bool, with_answer: bool = True
    ) -> tuple[list[int], list[int]]:
        """Tokenizes an example's prompt and, if `with_answer`, its first reference.

        Returns:
            The ids of the prompt, and those of the answer with its end token, which are empty
            without `with_answer`.

        Raises:
            RetainError: when the chat template refuses the conversation, or the tokenizer cannot
                read a text or makes no tokens of the prompt.
        """
        answer = example.references[0].strip() if with_answer else ""
        written = self._rendered(example, self._mark(answer), templated)
        with self._lock:
            # A template writes the special tokens itself.
            prompt = self._ids(written.prompt, special=not templated)
            if not prompt:
                raise RetainError(
                    f"text {example.prompt[:EXCERPT]!r}: the tokenizer of backbone "
                    f"'{self._name}' makes no tokens of it; give it another text"
                )
            if not with_answer:
                return prompt, []
            ids = self._answer(prompt, written, special=not templated)
            return prompt, [*self.first_ids, *ids, self._end(written.end)]

    def plain_ids(self, text: str, special: bool = False) -> list[int]:
        """Tokenizes a text, in which special tokens are text; with those around it if `special`."""
        with self._lock:
            return self._ids(self._mark(text), special)

    def decode(self, ids: list[int]) -> str:
        """Decodes an answer's ids, without special tokens and surrounding white space."""
        if ids[:1] == self.first_ids:
            ids = ids[1:]
        # Not every token that ends an answer is one of the tokenizer's special tokens.
        end = next((place for place, i in enumerate(ids) if i in self._end_ids), len(ids))
        ids = ids[:end]
        with self._lock:
            text = self.tokenizer.decode(
                ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return str(text).strip()

    def try_template(self) -> None:
        """Renders the chat template once, with limited memory; what it refuses does not matter."""
        if self.tokenizer.chat_template:
            with suppress(RetainError):
                self._chat.render([{"role": "user", "content": "a"}])

    def spells(self, text: str) -> str | None:
        """Returns the first special token that a text spells; None without one."""
        match = self._special.search(text)
        return None if match is None else match.group()

    def hides(self, text: str) -> bool:
        """Whether the tokenizer's normalizer makes a special token of a part of a text."""
        return bool(self._normalized) and not self._normalized.isdisjoint(self.plain_ids(text))

    def left_out(self, example: Example) -> list[Turn]:
        """Returns the turns of an example that the chat template does not write."""
        return self._chat.left_out(example.messages or [_user(example.prompt)])

    # -- text

    def _rendered(self, example: Example, answer: str, templated: bool) -> Rendered:
        """Writes an example as the model reads it; `answer` is marked."""
        turns = [{**turn, "content": self._mark(turn["content"])} for turn in example.messages]
        if templated:
            return self._chat.render(turns or [_user(self._mark(example.prompt))], answer)
        prompt = "\n".join(turn["content"] for turn in turns) or self._mark(example.prompt)
        space = " " if self._continues and not prompt[-1:].isspace() else ""
        return Rendered(prompt, space + answer, "")

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """Matches the special tokens of the tokenizer, longer ones first."""
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {t.content for t in added if t.special} | {*self.tokenizer.all_special_tokens}
        longest = sorted(filter(None, tokens), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest)) or "(?!)")

    @cached_property
    def _normalized(self) -> set[int]:
        """Special tokens that are looked for after a text is normalised, so in other spellings."""
        added = self.tokenizer.added_tokens_decoder.items()
        unknown = self.tokenizer.unk_token_id
        return {i for i, token in added if token.special and token.normalized and i != unknown}

    @cached_property
    def _marked(self) -> re.Pattern[str]:
        """Matches a marked special token, also if a template has cut the mark's end off."""
        begin, end = SPELLED.format(" ").split()
        return re.compile(f"{begin}({self._special.pattern}){end}?")

    def _mark(self, text: str) -> str:
        """Marks the special tokens that a user's text spells."""
        if HALF.search(text):
            raise RetainError(
                f"text {text[:EXCERPT]!a}: half a character (a lone surrogate); remove it"
            )
        return self._special.sub(lambda match: SPELLED.format(match.group()), text)

    # -- ids

    def _ids(self, text: str, special: bool = False) -> list[int]:
        """Tokenizes a marked text; with the tokenizer's own special tokens if `special`."""
        # Text, token, text, token, …, text. Of a mark that a template has cut, a half is left.
        pieces = [HALF.sub("", piece) for piece in self._marked.split(text)]
        ids = self._plain(pieces[0])
        for number, piece in enumerate(pieces[1:], start=1):
            ids += self._as_text(piece) if number % 2 else self._inside(piece)
        if not special:
            return ids
        before, after = self._around
        return [*before, *ids, *(() if self._continues else after)]

    def _answer(self, prompt: list[int], written: Rendered, special: bool) -> list[int]:
        """Tokenizes an answer as it continues its prompt."""
        if not self._continues:
            return self._ids(written.answer)
        both = self._ids(written.prompt + written.answer, special)
        if both[: len(prompt)] == prompt:
            return both[len(prompt) :]
        # A token would span both. The prompt comes first, because it is what is asked.
        return self._ids(written.answer)

    def _end(self, text: str) -> int:
        """Returns the token that ends an answer, where a template writes `text` after it."""
        ids = self._plain(HALF.sub("", text).lstrip())[:1]
        return ids[0] if ids and ids[0] in self._end_ids else int(self.tokenizer.eos_token_id)

    def _plain(self, text: str, as_text: bool = False) -> list[int]:
        """Tokenizes a text, in which special tokens are text if `as_text`."""
        options = {"split_special_tokens": True} if as_text else {}
        try:
            encoded = self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
        except Exception as error:  # a vocabulary without this letter, and without an unknown token
            raise RetainError(
                f"text {text[:EXCERPT]!r}: the tokenizer of backbone '{self._name}' cannot read it "
                f"({first_line(error)}); remove what it does not know, or take another backbone"
            ) from None
        ids: list[int] = encoded["input_ids"]
        return ids

    def _inside(self, text: str, as_text: bool = False) -> list[int]:
        """Tokenizes a text from the middle of another: without a space that begins a text."""
        for before in ANCHORS if text else ():
            with suppress(RetainError):  # the vocabulary may lack the anchor
                start, ids = self._plain(before), self._plain(before + text, as_text)
                # Two unknown characters in a row may be one token.
                is_known = start and self.tokenizer.unk_token_id not in start
                if is_known and ids[: len(start)] == start:
                    return ids[len(start) :]
        return self._plain(text, as_text)

    def _as_text(self, token: str) -> list[int]:
        """Tokenizes the letters of a special token."""
        known = self.tokenizer.convert_tokens_to_ids(token)
        ids = self._inside(token, as_text=True)
        if known in ids:  # the vocabulary has it as a piece of text too
            ids = [i for part in (token[:1], token[1:]) for i in self._inside(part, as_text=True)]
        if known in ids and known != self.tokenizer.unk_token_id:  # which stands for any letters
            raise RetainError(
                f"backbone '{self._name}': its tokenizer cannot read {token!r} as text; remove it "
                "from the prompts and answers"
            )
        return ids

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The special tokens that the tokenizer writes before and after a text."""
        for letter in (*PROBES, *sorted(self.tokenizer.get_vocab())):
            try:
                text, ids = self._plain(letter), self.tokenizer(letter)["input_ids"]
            except Exception:  # a vocabulary without this letter, and without an unknown token
                continue
            for start in range(len(ids) - len(text) + 1) if text else ():
                if ids[start : start + len(text)] == text:
                    return ids[:start], ids[start + len(text) :]
        return [], []
