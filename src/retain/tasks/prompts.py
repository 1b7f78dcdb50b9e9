"""The prompt of a benchmark's instance: in retain's words, or exactly as a paper's code writes it.

Sources: circle-hit/SAPT, `src/cl_dataset.py` (`sapt`); cmnfriend/O-LoRA, `src/uie_dataset_lora.py`,
`src/uie_collator.py` and its instructions (`olora`).
"""

from __future__ import annotations

from collections.abc import Sequence

from retain.errors import RetainError

STYLES = {"superni": ("sapt",), "long_sequence": ("sapt", "olora")}
"""The published styles by reader."""

OLORA_NAMES = {
    "yelp": ("SC", "yelp"),
    "amazon": ("SC", "amazon"),
    "imdb": ("SC", "IMDB"),
    "sst2": ("SC", "SST-2"),
    "dbpedia": ("TC", "dbpedia"),
    "agnews": ("TC", "agnews"),
    "yahoo": ("TC", "yahoo"),
    "mnli": ("NLI", "MNLI"),
    "cb": ("NLI", "CB"),
    "rte": ("NLI", "RTE"),
    "qqp": ("QQP", "QQP"),
    "boolq": ("BoolQA", "BoolQA"),
    "copa": ("COPA", "COPA"),
    "multirc": ("MultiRC", "MultiRC"),
    "wic": ("WiC", "WiC"),
}
"""O-LoRA's names of task and data set by the folder of the data."""

OLORA_INSTRUCTIONS = {
    "SC": "What is the sentiment of the following paragraph?",
    "TC": "What is the topic of the following paragraph?",
    "NLI": 'What is the logical relationship between the "sentence 1" and the "sentence 2"?',
    "QQP": 'Whether the "first sentence" and the "second sentence" have the same meaning?',
    "BoolQA": "According to the following passage, is the question true or false?",
    "MultiRC": (
        "According to the following passage and question, is the candidate answer true or false?"
    ),
    "WiC": (
        "Given a word and two sentences, whether the word is used with the same sense in both "
        "sentence?"
    ),
}
"""By task; COPA has none."""


def superni_prompt(definition: str, text: str, style: str | None = None) -> str:
    """Writes the prompt of a Super-NaturalInstructions instance whose input is `text`."""
    if style == "sapt":
        return (
            f"Definition: {definition}\n\nNow complete the following example -\n"
            f"Input: {text}\nOutput: "
        )
    return f"{definition}\n\nInput: {text}\nOutput:".strip()


def long_sequence_prompt(
    definition: str, labels: Sequence[str], text: str, task: str, style: str | None = None
) -> str:
    """Writes the prompt of a Long Sequence instance.

    Args:
        definition: the task's; may be empty.
        labels: the task's answers, which SAPT's prompt does not list.
        text: the instance's input.
        task: the name of its folder, for O-LoRA's names and instruction.
        style: the published one, or None for retain's.

    Raises:
        RetainError: when O-LoRA has no such task.
    """
    if style == "olora":
        return _olora_prompt(labels, text, task)
    if style == "sapt":
        return f"{definition}\n{text}\nOutput: ".removeprefix("\n")
    options = f"Option: {', '.join(labels)}\n" if labels else ""
    return f"{definition}\n{options}{text}\nAnswer:".strip()


def _olora_prompt(labels: Sequence[str], text: str, task: str) -> str:
    if task not in OLORA_NAMES:
        raise RetainError(
            f"task folder '{task}': O-LoRA has no prompt for it; name the folder as one of "
            f"{', '.join(OLORA_NAMES)}, or leave prompt_style out"
        )
    kind, dataset = OLORA_NAMES[task]
    question = ""
    if kind in OLORA_INSTRUCTIONS:
        question = (
            f"{OLORA_INSTRUCTIONS[kind]} Choose one from the option.\n"
            f"Option: {', '.join(labels)} \n"
        )
    return f"Task:{kind}\nDataset:{dataset}\n{question}{text}\nAnswer:"
