"""Metrics of single answers, as the scorers of the TRACE benchmark (arXiv 2310.06762) compute them.

SEEKR's code (arXiv 2411.06171) has the same ones. Texts are compared unchanged, white space
included. An empty answer scores 0, except under `sari`, which gives points for correctly deleted
words.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

TASK_METRICS = {
    "C-STANCE": "exact_answer",
    "FOMC": "exact_answer",
    "MeetingBank": "rouge_l_union",
    "Py150": "edit_similarity",
    "ScienceQA": "first_letter",
    "NumGLUE-cm": "exact_answer",
    "NumGLUE-ds": "exact_answer",
    "20Minuten": "sari",
}
"""TRACE's own metric of each task, by the name of the task's folder.

SEEKR scores C-STANCE and FOMC by the first letter; configs/streams/trace.yaml has its scorer. The
files with TRACE's of C-STANCE, FOMC and NumGLUE-cm could not be read: not verified.
"""


def first_letter(prediction: str, references: Sequence[str], prompt: str) -> float:
    """Returns 1 if the prediction begins with the first letter of a reference, else 0."""
    first = prediction[:1]
    return float(first != "" and first in [reference[:1] for reference in references])


def exact_answer(prediction: str, references: Sequence[str], prompt: str) -> float:
    """Returns 1 if the prediction equals one of the references exactly, else 0."""
    return float(prediction != "" and prediction in references)


def rouge_l_union(prediction: str, references: Sequence[str], prompt: str) -> float:
    """ROUGE-L as the package `rouge` (1.0.1) computes it, best over the references, 0 to 1.

    TRACE takes it for MeetingBank, SEEKR also for most of its SuperNI tasks. A sentence ends at a
    dot, and words are what white space separates: case and other punctuation count. The longest
    common subsequence is taken for every pair of a reference sentence and a predicted sentence. The
    score is the F-measure 2PR / (P + R + 10⁻⁸) of the distinct words in the union of these
    subsequences, so a right answer scores 1 − 10⁻⁸ at most, and a repeated word counts once.
    """
    return max(_rouge_l(prediction, reference) for reference in references)


def edit_similarity(prediction: str, references: Sequence[str], prompt: str) -> float:
    """Similarity of two lines of code, best over the references, 0 to 1 in steps of 0.01.

    It is 1 − (insertions + deletions) / (sum of both lengths), after CodeXGLUE's placeholders for
    literals are replaced by their values.
    """
    from rapidfuzz import fuzz

    code = _write_literals(prediction)
    targets = [_write_literals(reference) for reference in references]
    return max(round(fuzz.ratio(code, t)) / 100 if code and t else 0.0 for t in targets)


def sari(prediction: str, references: Sequence[str], prompt: str) -> float:
    """SARI of a simplified text (Xu et al. 2016), against all references together, 0 to 1.

    It is the mean over n = 1 … 4 of (keep F1 + add F1 + delete precision) / 3. The references
    decide which n-grams of the prompt should be kept, added or deleted. Details follow the library
    `evaluate`.
    """
    source, answer = split_words(prompt), split_words(prediction)
    targets = [split_words(reference) for reference in references]
    return sum(_sari(source, answer, targets, n) for n in range(1, 5)) / 4


def _rouge_l(prediction: str, reference: str) -> float:
    if not prediction.strip(".") or not reference.strip("."):  # the package raises without sentence
        return 0.0
    limit = sys.getrecursionlimit()
    # The package recurses once per word of a sentence.
    sys.setrecursionlimit(limit + len(prediction.split()) + len(reference.split()))
    try:
        # The published scorer passes the reference first. Ties make the order matter.
        return float(_rouge().get_scores(reference, prediction)[0]["rouge-l"]["f"])
    finally:
        sys.setrecursionlimit(limit)


@cache
def _rouge() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


def _write_literals(code: str) -> str:
    """Replaces `<STR_LIT:x>` by `x`, `<NUM_LIT>` by `0`, and removes other empty literals."""
    for name, value in (("NUM", "0"), ("STR", ""), ("CHAR", "")):
        code = code.replace(f"<{name}_LIT>", value)
    # All matches are collected before any is replaced. So a literal within a literal gives the same
    # text as in the published scorer.
    for name, value in re.findall("<(STR|NUM|CHAR)_LIT:(.*?)>", code, re.DOTALL):
        code = code.replace(f"<{name}_LIT:{value}>", value)
    return code


MTEVAL_13A = (
    ("<skipped>", ""),
    ("-\n", ""),
    ("&quot;", '"'),
    ("&amp;", "&"),
    ("&lt;", "<"),
    ("&gt;", ">"),
    (r"[!\"#$%&()*+/:;<=>?@[\\\]^_`{|}~]", r" \g<0> "),
    (r"([^0-9])([.,])", r"\1 \2 "),  # a dot or comma stays only between digits
    (r"([.,])([^0-9])", r" \1 \2"),
    (r"([0-9])-", r"\1 - "),
)
"""Patterns and replacements, in order, by which NIST's mteval-v13a separates symbols from words."""


def split_words(text: str) -> list[str]:
    """Splits a text into lower-case words and symbols by the rules of mteval-v13a, for SARI."""
    text = f" {text.lower()} "
    for pattern, replacement in MTEVAL_13A:
        text = re.sub(pattern, replacement, text)
    return text.split()


def _sari(source: list[str], answer: list[str], targets: list[list[str]], n: int) -> float:
    """Returns (keep F1 + add F1 + delete precision) / 3 of n-grams; 0 / 0 counts as 1.

    Counts of the source S and the answer A are multiplied by the number of references, so that they
    compare with R, the counts over all references.
    """
    S, A = (_ngrams([words] * len(targets), n) for words in (source, answer))
    R = _ngrams(targets, n)
    kept, to_keep = S & A, S & R
    correctly_kept = kept & R
    keep = _f1(
        _share(sum(correctly_kept[gram] / kept[gram] for gram in kept), len(kept)),
        _share(correctly_kept.total(), to_keep.total()),
    )
    added, to_add = A.keys() - S.keys(), R.keys() - S.keys()
    correctly_added = len(added & to_add)
    add = _f1(_share(correctly_added, len(added)), _share(correctly_added, len(to_add)))
    deleted = S - A
    correctly_deleted = deleted - R
    delete = _share(sum(correctly_deleted[gram] / deleted[gram] for gram in deleted), len(deleted))
    return (keep + add + delete) / 3


def _ngrams(texts: Sequence[list[str]], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1))


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
