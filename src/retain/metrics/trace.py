"""Metrics of single answers, as the scorers of the TRACE benchmark (arXiv 2310.06762) compute them.

Texts are compared as they stand, white space included. An empty answer scores 0, but in `sari`,
which gives points for what it rightly leaves out.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

TASK_METRICS = {
    "C-STANCE": "first_letter",
    "FOMC": "exact_answer",
    "MeetingBank": "rouge_l_union",
    "Py150": "edit_similarity",
    "ScienceQA": "first_letter",
    "NumGLUE-cm": "exact_answer",
    "NumGLUE-ds": "exact_answer",
    "20Minuten": "sari",
}
"""The metric of each task, by the name of its folder."""


def first_letter(prediction: str, references: Sequence[str], prompt: str) -> float:
    """1 if the prediction begins with the letter that a reference begins with, else 0."""
    first = prediction[:1]
    return float(first != "" and first in [reference[:1] for reference in references])


def exact_answer(prediction: str, references: Sequence[str], prompt: str) -> float:
    """1 if the prediction is one of the references, to the letter, else 0."""
    return float(prediction != "" and prediction in references)


def rouge_l_union(prediction: str, references: Sequence[str], prompt: str) -> float:
    """ROUGE-L of the package `rouge`, best over the references.

    Sentences end at a dot. F-measure of the different words in the union, over all pairs of a
    sentence of the reference and one of the prediction, of their longest common subsequences.
    """
    return max(_rouge_l(prediction, reference) for reference in references)


def edit_similarity(prediction: str, references: Sequence[str], prompt: str) -> float:
    """Similarity of two lines of code, best over the references, in whole hundredths.

    1 − (insertions + deletions) / (both lengths), after CodeXGLUE's literals are written out.
    """
    from rapidfuzz import fuzz

    code = _write_literals(prediction)
    targets = [_write_literals(reference) for reference in references]
    return max(round(fuzz.ratio(code, t)) / 100 if code and t else 0.0 for t in targets)


def sari(prediction: str, references: Sequence[str], prompt: str) -> float:
    """SARI of a simplification (Xu et al. 2016), against all references together.

    Mean over n-grams of 1 to 4 words of (keep F1 + add F1 + delete precision) / 3, where an n-gram
    of the prompt is to be kept, added or deleted as the references do it. Conventions of the
    library `evaluate`.
    """
    source, answer = _words(prompt), _words(prediction)
    targets = [_words(reference) for reference in references]
    return sum(_sari(source, answer, targets, n) for n in range(1, 5)) / 4


def _rouge_l(prediction: str, reference: str) -> float:
    if not prediction.strip(".") or not reference.strip("."):  # no sentence: the package raises
        return 0.0
    limit = sys.getrecursionlimit()
    # the package goes one call deeper with each word of a sentence
    sys.setrecursionlimit(limit + len(prediction.split()) + len(reference.split()))
    try:
        # the published scorer has the reference first; ties make the order matter
        return float(_rouge().get_scores(reference, prediction)[0]["rouge-l"]["f"])
    finally:
        sys.setrecursionlimit(limit)


@cache
def _rouge() -> Any:
    from rouge import Rouge

    return Rouge(metrics=["rouge-l"])


def _write_literals(code: str) -> str:
    """`<STR_LIT:x>` → `x`; without a value `<NUM_LIT>` → `0`, the others vanish."""
    for name, written in (("NUM", "0"), ("STR", ""), ("CHAR", "")):
        code = code.replace(f"<{name}_LIT>", written)
    # found first, then replaced: a literal within a literal comes out as in the published scorer
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
"""Pattern and replacement, in order: what the tokenizer of NIST's mteval-v13a sets apart."""


def _words(text: str) -> list[str]:
    """Lower-cased words and symbols by mteval-v13a's rules, on which SARI is counted."""
    text = f" {text.lower()} "
    for pattern, replacement in MTEVAL_13A:
        text = re.sub(pattern, replacement, text)
    return text.split()


def _sari(source: list[str], answer: list[str], targets: list[list[str]], n: int) -> float:
    """(keep F1 + add F1 + delete precision) / 3 of n-grams; 0 of 0 counts as 1.

    Source and answer are counted once for each reference, so that counts can be compared.
    """
    S, A = (_ngrams([words] * len(targets), n) for words in (source, answer))
    R = _ngrams(targets, n)
    kept, to_keep = S & A, S & R
    rightly = kept & R
    keep = _f1(
        _share(sum(rightly[gram] / kept[gram] for gram in kept), len(kept)),
        _share(rightly.total(), to_keep.total()),
    )
    added, to_add = A.keys() - S.keys(), R.keys() - S.keys()
    right = len(added & to_add)
    add = _f1(_share(right, len(added)), _share(right, len(to_add)))
    deleted = S - A
    gone = deleted - R
    delete = _share(sum(gone[gram] / deleted[gram] for gram in deleted), len(deleted))
    return (keep + add + delete) / 3


def _ngrams(texts: Sequence[list[str]], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1))


def _share(part: float, whole: int) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
