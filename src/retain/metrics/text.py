"""Metrics of single answers: those of the Super-NaturalInstructions scorer, and the full table."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from retain.errors import RetainError
from retain.metrics import trace
from retain.metrics.extract import EXTRACTIONS, WHOLE

Metric = Callable[[str, Sequence[str], str], float]
"""A function of prediction, references and prompt that returns a score from 0 to 1."""


def canonical(text: str) -> str:
    """Returns a text as answers are compared: NFC, line ends `\\n`, no white space around.

    A model reads and writes an answer without the white space around it, and many tokenizers
    compose characters. So both sides are brought into this form before any metric sees them.
    """
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n")).strip()


def scored_part(text: str, extract: str = WHOLE) -> str:
    """Returns what a metric sees of an answer: its extracted part, in `canonical` form."""
    return canonical(EXTRACTIONS[extract](canonical(text)))


def normalise(text: str) -> str:
    """Lower-cases, removes ASCII punctuation, collapses white space; keeps articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(kept.split())


def exact_match(prediction: str, references: Sequence[str], prompt: str) -> float:
    """Returns 1 if the normalised prediction equals a normalised reference, else 0.

    `normalise` removes case and punctuation, so "3.14" equals "314".
    """
    return float(any(normalise(prediction) == normalise(reference) for reference in references))


def rouge_l(prediction: str, references: Sequence[str], prompt: str) -> float:
    """F-measure of the longest common subsequence of stemmed words, best over the references.

    A word is a run of the letters a to z and digits, after lower-casing. Any other letter, such as
    one with an accent, separates words, and an answer in a non-Latin script scores 0; that is the
    published metric. `rouge_l_unicode` reads every script.
    """
    return _best_rouge_l(prediction, references, any_script=False)


def rouge_l_unicode(prediction: str, references: Sequence[str], prompt: str) -> float:
    """`rouge_l` over words of any script, best over the references.

    A word is a run of letters, marks and digits of Unicode, case-folded and not stemmed. Scripts
    that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) count by
    character. A symbol, such as an emoji, is a word, and punctuation is none.
    """
    return _best_rouge_l(prediction, references, any_script=True)


def _best_rouge_l(prediction: str, references: Sequence[str], any_script: bool) -> float:
    """ROUGE-L as `RougeScorer` computes it, with a longest common subsequence by bits.

    The scorer's own takes minutes for two texts of 100,000 characters.
    """
    from rapidfuzz.distance import LCSseq

    words = _tokenizer(any_script).tokenize
    predicted, best = words(prediction), 0.0
    for reference in references:
        target = words(reference)
        if common := LCSseq.similarity(target, predicted):
            precision, recall = common / len(predicted), common / len(target)
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def is_empty_reference(metric: str, reference: str) -> bool:
    """Whether the metric sees an empty reference, under which an empty answer would be correct."""
    return metric == "exact_match" and not normalise(reference)


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "rouge_l": rouge_l,
    "rouge_l_unicode": rouge_l_unicode,
    "first_letter": trace.first_letter,
    "exact_answer": trace.exact_answer,
    "rouge_l_union": trace.rouge_l_union,
    "edit_similarity": trace.edit_similarity,
    "sari": trace.sari,
}


@cache
def _tokenizer(any_script: bool) -> Any:
    from rouge_score.tokenizers import DefaultTokenizer

    return _Words() if any_script else DefaultTokenizer(use_stemmer=True)


FORMS: dict[str, Callable[[str], str]] = {
    "exact_match": normalise,
    "rouge_l": lambda text: " ".join(_tokenizer(False).tokenize(text)),
    "rouge_l_unicode": lambda text: " ".join(_tokenizer(True).tokenize(text)),
    "first_letter": lambda text: text[:1],
    "exact_answer": str,
    "sari": lambda text: " ".join(trace.split_words(text)),
}
"""For some metrics the form of a text; an answer is right for another only if these are equal."""


def check_metric_name(metric: str, where: str) -> None:
    """Raises RetainError for a metric name that is not in METRICS; `where` starts the message."""
    if metric not in METRICS:
        raise RetainError(
            f"{where}: metric '{metric}' is unknown; choose one of {', '.join(METRICS)}"
        )


def score(
    metric: str,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    prompts: Sequence[str],
    extract: str = WHOLE,
) -> float:
    """Returns the mean of a metric over examples, 0 to 100, of the `scored_part` of both sides.

    Args:
        metric: a name of METRICS.
        predictions: N answers.
        references: the right answers of each, (N, any number).
        prompts: N prompts.
        extract: a name of `retain.metrics.extract.EXTRACTIONS`.
    """
    values = [
        METRICS[metric](
            scored_part(prediction, extract), [scored_part(text, extract) for text in right], prompt
        )
        for prediction, right, prompt in zip(predictions, references, prompts, strict=True)
    ]
    return 100.0 * sum(values) / len(values)


UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
"""A letter of a script without spaces between words."""


class _Words:
    """A tokenizer like rouge_score's, for texts in any script."""

    def tokenize(self, text: str) -> list[str]:
        """Splits a text into words."""
        words: list[str] = []
        grows = adjoins = False  # whether the last word takes a letter, or a mark
        for character in unicodedata.normalize("NFKC", text.casefold()):
            kind = unicodedata.category(character)[0]
            if kind == "M":  # such as a vowel sign
                if adjoins:
                    words[-1] += character
            elif kind in "LNS":
                alone = kind == "S" or UNSPACED.match(character) is not None
                if grows and not alone:
                    words[-1] += character
                else:
                    words.append(character)
                grows, adjoins = not alone, True
            else:
                grows = adjoins = False
        return words
