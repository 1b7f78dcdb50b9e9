"""Tasks: readers, splits, fingerprints, and how an example becomes tokens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
import torch
from pyarrow import parquet
from pydantic import ValidationError

from retain.backbone import Backbone, PromptConfig
from retain.errors import RetainError
from retain.experiment.config import TaskConfig
from retain.experiment.read_tasks import load_stream, read_task
from retain.tasks import Example, Task
from retain.tasks.prompts import OLORA_INSTRUCTIONS, OLORA_NAMES
from retain.tasks.readers import (
    read_hub,
    read_long_sequence,
    read_rows,
    read_superni,
    read_trace,
)
from retain.tasks.rows import parse_row
from retain.tasks.tables import read_dataset
from retain.testing.tiny import make_backbone

ROWS = [{"prompt": f"p{i}", "answer": f"a{i}"} for i in range(40)]
EXAMPLES = [Example(f"p{i}", (f"a{i}",)) for i in range(40)]


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# -- files


def test_jsonl(tmp_path: Path) -> None:
    assert read_rows(write_jsonl(tmp_path / "a.jsonl", ROWS)) == EXAMPLES
    odd = [
        {"prompt": "one\ntwo 任务 {x}", "answer": ["yes", "YES ", 1], "other": 3},
        {"prompt": "p", "answer": 2.5},
    ]
    assert read_rows(write_jsonl(tmp_path / "b.jsonl", odd)) == [
        Example("one\ntwo 任务 {x}", ("yes", "YES ", "1")),
        Example("p", ("2.5",)),
    ]


def test_csv_cells_are_text_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows = 'prompt,answer,other\n12,None,x\n"a, ""b""\nc",007,\nq,NA,\n任务,true,'
    path.write_text(rows, encoding="utf-8-sig")
    assert read_rows(path) == [
        Example("12", ("None",)),
        Example('a, "b"\nc', ("007",)),
        Example("q", ("NA",)),
        Example("任务", ("true",)),
    ]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"prompt": "p", "answer": ["x", "y"]}, {"prompt": "q", "answer": ["z"]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert read_rows(path) == [Example("p", ("x", "y")), Example("q", ("z",))]


def test_columns_are_mapped(tmp_path: Path) -> None:
    columns = {"prompt": "question", "answer": "label"}
    rows = [{"question": "q", "label": "l", "prompt": "no"}]
    assert read_rows(write_jsonl(tmp_path / "a.jsonl", rows), columns) == [Example("q", ("l",))]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", 'prompt,answer\np,a\n"q', "line 3: not CSV"),
        ("a.csv", "prompt,answer\np,a\nq\n", "line 3: no field 'answer'"),
        ("a.csv", "prompt,answer\np,a\n\n\nq,\n", "line 5: field 'answer' is empty"),
        ("a.csv", "question,answer\np,a\n", r"no field 'prompt' .*\(fields: question, answer\)"),
        ("a.csv", "prompt,answer\n", "the task is empty"),
        ("a.csv", "", "the task is empty"),
        ("a.parquet", "PAR1", "not readable as Parquet"),
        ("a.txt", "p a", "unknown suffix; use .jsonl, .csv or .parquet"),
        ("a.jsonl", '{"prompt": "p", "answer": "a"}\n\n{"prompt": "p"}', "line 3: no field 'ans"),
    ],
)
def test_unreadable_file_is_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(RetainError, match=f"{path}.*{message}"):
        read_rows(path)


def test_parquet_errors_name_the_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"prompt": "p", "answer": "x"}, {"prompt": "q", "answer": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    with pytest.raises(RetainError, match=f"{path}, row 2: no field 'answer'"):
        read_rows(path)


def test_a_parquet_column_that_python_has_no_values_for(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    far = pyarrow.array([10**15], pyarrow.timestamp("s"))
    table = pyarrow.table({"prompt": ["p"], "answer": ["a"], "time": far})
    parquet.write_table(table, path)
    with pytest.raises(RetainError, match=f"{path}: not readable as Parquet"):
        read_rows(path)


def test_hub_rows_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows() -> Iterator[dict[str, str]]:
        yield {"prompt": "p", "answer": "a"}
        raise OSError("no such image")

    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: rows())
    with pytest.raises(RetainError, match=r"'some/set', split 'train': .*\(no such image\)"):
        read_hub("some/set", "train", None)


# -- datasets

COLOURS = ["red", "green"]
LABELLED = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=COLOURS)}
)


def labelled(*labels: int | None) -> datasets.Dataset:
    rows = [{"text": f"p{number}", "label": label} for number, label in enumerate(labels)]
    return datasets.Dataset.from_list(rows, features=LABELLED)


def test_rows_from_python_are_those_of_a_file(tmp_path: Path) -> None:
    expected = Task.from_jsonl(write_jsonl(tmp_path / "a.jsonl", ROWS), "t")
    for data in (ROWS, iter(ROWS), pandas.DataFrame(ROWS), datasets.Dataset.from_list(ROWS)):
        assert Task.from_dataset(data, "t") == expected

    test = pandas.DataFrame({"question": ["q"], "label": [7]})
    train = [{"question": f"p{i}", "label": i} for i in range(3)]
    options = {"metric": "rouge_l", "training": {"max_steps": 2}, "max_new_tokens": 4}
    task = Task.from_dataset(train, "t", prompt="question", answer="label", test=test, **options)
    assert task.test == [Example("q", ("7",))]
    assert {example.references for example in (*task.train, *task.dev)} == {("0",), ("1",), ("2",)}
    assert (task.metric, task.training, task.max_new_tokens) == tuple(options.values())


def test_class_labels_are_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    data = labelled(0, 1, 1)
    columns = {"prompt": "text", "answer": "label"}
    expected = [Example(f"p{i}", (name,)) for i, name in enumerate(("red", "green", "green"))]
    assert read_dataset(data, "t", columns) == expected
    assert read_dataset(data.with_format("numpy"), "t", columns) == expected
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: data)
    assert read_hub("some/set", "train", None, columns) == expected
    several = datasets.Dataset.from_dict(
        {"text": ["p"], "label": [[1, 0]]},
        features=datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.List(LABELLED["label"])}
        ),
    )
    assert read_dataset(several, "t", columns) == [Example("p", ("green", "red"))]
    # What only looks like a class number is the answer itself.
    assert read_dataset(data.to_list(), "t", columns)[1].references == ("1",)


def test_class_labels_hold_for_both_splits() -> None:
    """Otherwise a test row would ask for `1` where the training rows teach `green`."""
    columns = {"prompt": "text", "answer": "label"}
    plain = [{"text": f"q{i}", "label": i % 2} for i in range(4)]
    for train, test in ((labelled(0, 1, 1), plain), (plain, labelled(0, 1, 1))):
        task = Task.from_dataset(train, "t", **columns, test=test)
        answers = {e.references[0] for e in (*task.train, *task.dev, *task.test)}
        assert answers == {"red", "green"}
    texts = [{"text": "q", "label": "green"}]
    assert Task.from_dataset(labelled(0, 1), "t", **columns, test=texts).test[0].references == (
        "green",
    )


@pytest.mark.parametrize("kind", ["pandas", "numpy", "torch", "arrow"])
def test_a_dataset_s_format_changes_nothing(kind: str) -> None:
    data = datasets.Dataset.from_list(ROWS)
    assert read_dataset(data.with_format(kind), "t") == read_dataset(data, "t")


@pytest.mark.parametrize(
    ("answer", "references"),
    [
        (np.int64(1), ("1",)),
        ([np.int64(1), "one"], ("1", "one")),
        (np.float32(0.1), ("0.1",)),
        (np.array([0.1, 2], np.float32), ("0.1", "2.0")),
        (np.array(3), ("3",)),
        (torch.tensor([1, 2]), ("1", "2")),
    ],
)
def test_numbers_keep_their_text(answer: Any, references: tuple[str, ...]) -> None:
    assert read_dataset([{"prompt": "p", "answer": answer}], "t")[0].references == references


def test_arrays_in_a_data_frame_are_lists(tmp_path: Path) -> None:
    rows = [{"messages": [USER, REPLY]}, {"messages": [SYSTEM, USER, REPLY]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    frame = pandas.read_parquet(tmp_path / "a.parquet")
    assert read_dataset(frame, "t") == [parse_row(row, "") for row in rows]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (labelled(0, -1), "task 't', row 2: field 'label' is -1, which is no class"),
        (labelled(0, None), "task 't', row 2: no field 'label' for the answer"),
        (pandas.DataFrame({"text": ["p", None], "label": ["a", "b"]}), "row 2: no field 'text'"),
        (pandas.DataFrame({"text": ["p"], "label": [float("nan")]}), "row 1: no field 'label'"),
        ([{"text": "p", "label": "a"}, {"text": "q"}], "row 2: .* answer= in Task.from_dataset"),
        ([{"text": "p", "label": "a"}, "q"], "task 't', row 2: expected an object"),
        (datasets.DatasetDict(train=labelled(0)), r"not a DatasetDict; .* data\['train'\]"),
        (
            pandas.DataFrame([["p", "a", "b"]], columns=["text", "label", "label"]),
            "task 't': two columns are named 'label'; rename one of them",
        ),
        ("tickets.jsonl", "task 't': expected a datasets.Dataset, .* and not a str"),
        (3, "and not a int"),
        ([], "task 't': no training examples"),
    ],
)
def test_a_data_set_that_is_no_task(data: Any, message: str) -> None:
    with pytest.raises(RetainError, match=message) as refusal:
        Task.from_dataset(data, "t", prompt="text", answer="label")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "training", "message"),
    [
        (5, None, "a task's name is 5; give it a text"),
        (None, None, "a task's name is None; give it a text"),
        ("t", 5, "task 't': training is 5; give it a dict of settings"),
    ],
)
def test_a_task_of_other_types_is_refused(name: Any, training: Any, message: str) -> None:
    with pytest.raises(RetainError, match=message):
        Task.from_dataset(ROWS, name, training=training)


def test_a_bad_test_row_is_named() -> None:
    with pytest.raises(RetainError, match="task 't', test, row 1: no field 'prompt'"):
        Task.from_dataset(ROWS, "t", test=[{}])


# -- chats

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Hi"}
REPLY = {"role": "assistant", "content": "Hello"}
AGAIN = {"role": "user", "content": "Bye"}


def test_chat_messages(tmp_path: Path) -> None:
    rows = [
        {"messages": [SYSTEM, USER, REPLY]},
        {"messages": [USER, REPLY, AGAIN], "answer": ["Ciao", "Bye"]},
        {"messages": [USER, REPLY, AGAIN, REPLY]},
    ]
    assert read_rows(write_jsonl(tmp_path / "a.jsonl", rows)) == [
        Example("Hi", ("Hello",), (SYSTEM, USER)),
        Example("Hi\nBye", ("Ciao", "Bye"), (USER, REPLY, AGAIN)),
        Example("Hi\nBye", ("Hello",), (USER, REPLY, AGAIN)),
    ]


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([USER], "must end with the assistant"),
        ([SYSTEM, REPLY], "'messages' must hold a text"),
        ([{"role": "robot", "content": "x"}, REPLY], "needs a 'role'"),
        ([{"role": "user", "content": 3}, REPLY], "text 'content'"),
        (["Hi", REPLY], "needs a 'role'"),
        ("Hi", "must be a list"),
        ([USER, {"role": "assistant", "content": ""}], "is empty"),
    ],
)
def test_bad_chat_is_refused(messages: Any, problem: str) -> None:
    with pytest.raises(RetainError, match=f"here: .*{problem}"):
        parse_row({"messages": messages}, "here")


@pytest.mark.parametrize(
    "example",
    [
        Example("p", ("a", "b")),
        Example("Hi", ("Hello",), (SYSTEM, USER)),
        Example("Hi\nBye", ("Hello",), (USER, REPLY, AGAIN)),
    ],
)
def test_row_of_an_example_reads_back(example: Example) -> None:
    assert parse_row(json.loads(json.dumps(example.as_row())), "") == example


# -- benchmarks


def write_benchmark(folder: Path, **extra: Any) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        instances = [
            {"input": f"{split} {{i}} {i}", "output": ["yes", "y"] if i % 2 else "no"}
            for i in range(12)
        ]
        content = {"Definition": ["Say yes {or} no. "], "Instances": instances}
        (folder / f"{split}.json").write_text(json.dumps(content))
    for name, value in extra.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    return folder


def test_superni(tmp_path: Path) -> None:
    examples = read_superni(write_benchmark(tmp_path / "task1_yes"), "train")
    assert len(examples) == 12
    assert examples[:2] == [
        Example("Say yes {or} no.\n\nInput: train {i} 0\nOutput:", ("no",)),
        Example("Say yes {or} no.\n\nInput: train {i} 1\nOutput:", ("yes", "y")),
    ]
    task = read_task(TaskConfig(reader="superni", path=str(tmp_path / "task1_yes")))
    assert (task.name, task.metric) == ("task1_yes", "rouge_l")
    assert [example.prompt for example in task.test] == [
        f"Say yes {{or}} no.\n\nInput: test {{i}} {i}\nOutput:" for i in range(12)
    ]
    assert sorted((*task.train, *task.dev), key=str) == sorted(examples, key=str)


def test_superni_leaves_out_what_has_no_answer(tmp_path: Path) -> None:
    outputs = (["yes"], [""], ["no", ""], "")
    instances = [{"input": "i", "output": output} for output in outputs]
    content = {"Definition": ["Say it."], "Instances": instances}
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert [e.references for e in read_superni(tmp_path, "train")] == [("yes",), ("no",)]


def test_long_sequence(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "cb", labels=["yes", "{no}"])
    assert read_long_sequence(folder, "test")[0] == Example(
        "Say yes {or} no.\nOption: yes, {no}\ntest {i} 0\nAnswer:", ("no",)
    )
    task = read_task(TaskConfig(reader="long_sequence", path=str(folder), name="mine"))
    assert (task.name, task.metric) == ("mine", "exact_match")
    (folder / "labels.json").write_text("[]")
    assert read_long_sequence(folder, "test")[0].prompt == ("Say yes {or} no.\ntest {i} 0\nAnswer:")


SENTENCES = "sentence 1: It rains.\nsentence 2: It is {wet}. "


@pytest.mark.parametrize(
    ("reader", "folder", "style", "definition", "prompt"),
    [
        (  # SAPT, src/cl_dataset.py
            "superni",
            "task363_sst2_polarity_classification",
            "sapt",
            [" Classify it as POS or {NEG}. \n"],
            "Definition: Classify it as POS or {NEG}.\n\nNow complete the following example -\n"
            "Input: sentence 1: It rains.\nsentence 2: It is {wet}. \nOutput: ",
        ),
        (
            "long_sequence",
            "cb",
            "sapt",
            ["Identify the relationship between them.\n"],
            "Identify the relationship between them.\n"
            "sentence 1: It rains.\nsentence 2: It is {wet}. \nOutput: ",
        ),
        (
            "long_sequence",
            "copa",
            "sapt",
            [],
            "sentence 1: It rains.\nsentence 2: It is {wet}. \nOutput: ",
        ),
        (  # O-LoRA, src/uie_dataset_lora.py and src/uie_collator.py
            "long_sequence",
            "cb",
            "olora",
            ["Identify the relationship between them."],
            'Task:NLI\nDataset:CB\nWhat is the logical relationship between the "sentence 1" and '
            'the "sentence 2"? Choose one from the option.\nOption: yes, no \n'
            "sentence 1: It rains.\nsentence 2: It is {wet}. \nAnswer:",
        ),
        (
            "long_sequence",
            "sst2",
            "olora",
            ["Make a judgement."],
            "Task:SC\nDataset:SST-2\nWhat is the sentiment of the following paragraph? "
            "Choose one from the option.\nOption: yes, no \n"
            "sentence 1: It rains.\nsentence 2: It is {wet}. \nAnswer:",
        ),
        (
            "long_sequence",
            "copa",
            "olora",
            [],
            "Task:COPA\nDataset:COPA\nsentence 1: It rains.\nsentence 2: It is {wet}. \nAnswer:",
        ),
    ],
)
def test_published_prompts(
    tmp_path: Path, reader: str, folder: str, style: str, definition: list[str], prompt: str
) -> None:
    place = write_benchmark(tmp_path / folder, labels=["yes", "no"])
    content = {
        "Definition": definition,
        "Instances": [{"input": SENTENCES, "output": "yes"}] * 2,
    }
    for split in ("train", "test"):
        (place / f"{split}.json").write_text(json.dumps(content))
    config = {"reader": reader, "path": str(place), "prompt_style": style}
    task = read_task(TaskConfig.model_validate(config))
    assert {e.prompt for e in (*task.train, *task.dev, *task.test)} == {prompt}


def test_olora_has_names_for_the_benchmark_only(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "SST-2", labels=["yes", "no"])
    with pytest.raises(RetainError, match=r"'SST-2': O-LoRA has no prompt.* sst2,"):
        read_long_sequence(folder, "test", "olora")
    assert set(OLORA_INSTRUCTIONS) | {"COPA"} == {kind for kind, _ in OLORA_NAMES.values()}
    assert len(OLORA_NAMES) == 15


def test_one_reference_is_drawn(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "x")
    answers = [list("abcd"), ["", "e"], "f", ["g"]] * 20
    content = {
        "Definition": ["d"],
        "Instances": [{"input": str(i), "output": output} for i, output in enumerate(answers)],
    }
    (folder / "train.json").write_text(json.dumps(content))
    drawn = [e.references for e in read_superni(folder, "train", references="drawn")]
    assert {len(references) for references in drawn} == {1}
    assert {text for (text,) in drawn[::4]} == set("abcd")
    assert drawn[1::4] + drawn[2::4] + drawn[3::4] == [("e",)] * 20 + [("f",)] * 20 + [("g",)] * 20
    assert drawn == [e.references for e in read_superni(folder, "train", references="drawn")]
    task = read_task(TaskConfig(reader="superni", path=str(folder), references="drawn"))
    assert {len(e.references) for e in (*task.train, *task.dev, *task.test)} == {1}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"reader": "trace", "prompt_style": "sapt"}, "does not take 'prompt_style'"),
        ({"reader": "file", "references": "drawn"}, "does not take 'references'"),
        ({"reader": "superni", "prompt_style": "olora"}, "has no prompt_style 'olora'.*of sapt"),
    ],
)
def test_a_style_that_a_reader_has_not(fields: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TaskConfig.model_validate({"path": "x", **fields})


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("train.json", "{}", "not in the benchmark's layout"),
        ("train.json", "[]", "not in the benchmark's layout"),
        ("train.json", '{"Definition": ["d"], "Instances": []}', "no instance with an answer"),
        ("train.json", '{"Definition": ["d"], "Instances": [{"input": "i"}]}', "layout"),
        (
            "train.json",
            '{"Definition": ["d"], "Instances": [{"input": "i", "output": ""}]}',
            "no instance with an answer",
        ),
        ("train.json", "{", "not readable as JSON"),
        ("labels.json", "3", "must be a list"),
        ("labels.json", None, "no such file"),
    ],
)
def test_other_layout_is_named(
    tmp_path: Path, file: str, content: str | None, problem: str
) -> None:
    folder = write_benchmark(tmp_path / "cb", labels=["yes", "no"])
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(RetainError, match=f"{folder / file}.*{problem}"):
        read_task(TaskConfig(reader="long_sequence", path=str(folder)))


def test_a_definition_may_be_one_text(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path / "x")
    content = {"Definition": "Copy.", "Instances": [{"input": "i", "output": "i"}]}
    (folder / "train.json").write_text(json.dumps(content))
    assert read_superni(folder, "train")[0].prompt == "Copy.\n\nInput: i\nOutput:"


def write_trace(folder: Path) -> Path:
    folder.mkdir()
    for split in ("train", "test"):
        rows = [{"prompt": f" {split} {{i}}\n{i}", "answer": f"A{i} "} for i in range(12)]
        (folder / f"{split}.json").write_text(json.dumps(rows))
    (folder / "eval.json").write_text("never read")
    return folder


def test_trace(tmp_path: Path) -> None:
    folder = write_trace(tmp_path / "Py150")
    examples = read_trace(folder, "train")
    assert examples == [Example(f" train {{i}}\n{i}", (f"A{i} ",)) for i in range(12)]
    task = read_task(TaskConfig(reader="trace", path=str(folder)))
    assert (task.name, task.metric) == ("Py150", "edit_similarity")
    assert task.test == read_trace(folder, "test")
    assert sorted((*task.train, *task.dev), key=str) == sorted(examples, key=str)


@pytest.mark.parametrize(
    ("folder", "metric", "expected"),
    [
        ("ScienceQA", None, "first_letter"),
        ("20Minuten", None, "sari"),
        ("mine", None, "exact_answer"),
        ("C-STANCE", "exact_match", "exact_match"),
    ],
)
def test_the_folder_s_name_tells_the_metric_of_trace(
    tmp_path: Path, folder: str, metric: str | None, expected: str
) -> None:
    path = str(write_trace(tmp_path / folder))
    config = TaskConfig(reader="trace", path=path, name="FOMC", metric=metric)
    assert read_task(config).metric == expected


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        ("{", "not readable as JSON"),
        ('{"prompt": "p", "answer": "a"}', "must be a list"),
        ("[]", "the task is empty"),
        ('[{"prompt": "p", "answer": "a"}, {"prompt": "p"}]', "entry 2: no field 'answer'"),
        ('["p"]', "entry 1: expected an object"),
    ],
)
def test_bad_trace_file_is_named(tmp_path: Path, content: str | None, problem: str) -> None:
    folder = write_trace(tmp_path / "FOMC")
    if content is None:
        (folder / "test.json").unlink()
    else:
        (folder / "test.json").write_text(content)
    with pytest.raises(RetainError, match=f"{folder / 'test.json'}.*{problem}"):
        read_task(TaskConfig(reader="trace", path=str(folder)))


# -- splits


@pytest.mark.parametrize(
    ("rows", "with_test", "sizes"),
    [
        (2, True, (1, 1, 2)),
        (40, True, (36, 4, 2)),
        (1000, True, (950, 50, 2)),
        (10, False, (7, 1, 2)),
        (40, False, (29, 3, 8)),
        (5000, False, (4750, 50, 200)),
    ],
)
def test_split_sizes(rows: int, with_test: bool, sizes: tuple[int, int, int]) -> None:
    train = [Example(f"p{i}", ("a",)) for i in range(rows)]
    task = Task.split("t", train, EXAMPLES[:2] if with_test else None)
    assert (len(task.train), len(task.dev), len(task.test)) == sizes
    if with_test:
        assert task.test == EXAMPLES[:2]
    parts = [*task.train, *task.dev, *(() if with_test else task.test)]
    assert sorted(e.prompt for e in parts) == sorted(e.prompt for e in train)


def test_a_carved_test_has_its_prompts_alone() -> None:
    rows = [Example(f"p{i // 3}", (str(i % 2),)) for i in range(90)]
    task = Task.split("t", rows)
    assert not {e.prompt for e in task.test} & {e.prompt for e in (*task.train, *task.dev)}
    assert (len(task.train), len(task.dev), len(task.test)) == (65, 7, 18)
    one = Task.split("t", [Example("p", (str(i),)) for i in range(10)])  # as many answers
    assert (len(one.train), len(one.dev), len(one.test)) == (7, 1, 2)


def test_split_is_the_same_every_time() -> None:
    first, second = Task.split("t", EXAMPLES), Task.split("u", list(EXAMPLES))
    assert (first.train, first.dev, first.test) == (second.train, second.dev, second.test)
    other = Task.split("t", EXAMPLES, seed=1)
    assert other.test != first.test
    assert other.dev != first.dev
    assert first.test != EXAMPLES[:8]  # shuffled first: files are often sorted by answer


def test_train_limit_takes_nothing_from_dev_and_test() -> None:
    full, limited = Task.split("t", EXAMPLES), Task.split("t", EXAMPLES, train_limit=5)
    assert limited.train == full.train[:5]
    assert (limited.dev, limited.test) == (full.dev, full.test)


@pytest.mark.parametrize(
    ("train", "test", "empty"), [([], None, "training"), (4, None, "test"), (1, 1, "training")]
)
def test_too_few_examples_are_refused(train: Any, test: int | None, empty: str) -> None:
    rows = EXAMPLES[: train or 0]
    with pytest.raises(RetainError, match=f"task 't': no {empty} examples; give it more lines"):
        Task.split("t", rows, None if test is None else EXAMPLES[:test])


@pytest.mark.parametrize("test", [None, EXAMPLES[:5]])
@pytest.mark.parametrize("limit", [None, 3])
def test_dev_is_never_trained_on(test: list[Example] | None, limit: int | None) -> None:
    for count in range(5, 40):
        train = [Example(f"p{i}", ("a",)) for i in range(count)]
        task = Task.split("t", train, test, train_limit=limit)
        assert task.dev
        assert not {*task.dev} & {*task.train}


def test_from_jsonl(tmp_path: Path) -> None:
    path, test = write_jsonl(tmp_path / "x.jsonl", ROWS), write_jsonl(tmp_path / "y.jsonl", ROWS)
    task = Task.from_jsonl(path)
    assert (task.name, task.metric, len(task.test)) == ("x", "exact_match", 8)
    task = Task.from_jsonl(str(path), name="n", test=str(test), metric="rouge_l")
    assert (task.name, task.metric, task.test) == ("n", "rouge_l", EXAMPLES)
    config = TaskConfig(path=str(path), test=str(test), metric="rouge_l", name="n")
    assert read_task(config) == task


def test_stream_refuses_two_tasks_of_one_name(tmp_path: Path) -> None:
    path = str(write_jsonl(tmp_path / "x.jsonl", ROWS))
    tasks = load_stream([TaskConfig(path=path), TaskConfig(path=path, name="other")])
    assert [task.name for task in tasks] == ["x", "other"]
    with pytest.raises(RetainError, match="two are named 'x'; give one another 'name'"):
        load_stream([TaskConfig(path=path), TaskConfig(path=path)])


def test_a_file_s_name_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    write_jsonl(path, ROWS)
    with pytest.raises(RetainError, match=r"task 'caf\\udce9': its name is not Unicode text; give"):
        Task.from_jsonl(path)
    assert Task.from_jsonl(path, name="cafe").name == "cafe"


def test_fingerprint_tells_the_data_of_a_split() -> None:
    task = Task.split("t", EXAMPLES)
    same = Task.split("another name", EXAMPLES, metric="rouge_l")
    assert task.fingerprints() == same.fingerprints()
    assert len(set(task.fingerprints().values())) == 3
    first = task.test[0]
    for changed in (
        replace(first, prompt="other"),
        replace(first, references=("other",)),
        replace(first, references=(*first.references, "more")),
        replace(first, messages=(USER,)),
    ):
        other = replace(task, test=[changed, *task.test[1:]])
        assert other.fingerprints()["test"] != task.fingerprints()["test"]
    reordered = replace(task, test=task.test[::-1])
    assert reordered.fingerprints()["test"] != task.fingerprints()["test"]


# -- examples → tokens

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}|{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def with_prompt(kind: str, template: str | None = None, **options: Any) -> Backbone:
    """A tiny backbone, whose tokens are single characters, with another prompt format."""
    made = make_backbone(kind)
    made.tokenizer.chat_template = template
    return Backbone(made.model, made.tokenizer, made.name, PromptConfig(**options))


def text_of(backbone: Backbone, ids: list[int]) -> str:
    return backbone.tokenizer.decode(ids)


@pytest.fixture(scope="module")
def decoder() -> Backbone:
    return make_backbone("llama")


@pytest.fixture(scope="module")
def t5() -> Backbone:
    return make_backbone("t5")


def test_decoder_reads_prompt_and_answer_as_one_and_learns_the_answer(decoder: Backbone) -> None:
    features = decoder.encode(Example("Say:", ("yes", "no")))
    assert text_of(decoder, features["input_ids"]) == "Say: yes</s>"
    assert features["labels"][:4] == [-100] * 4
    assert features["labels"][4:] == features["input_ids"][4:]
    assert features["labels"][-1] == decoder.tokenizer.eos_token_id
    prompt = decoder.encode(Example("Say:", ("yes",)), with_answer=False)
    assert set(prompt) == {"input_ids", "route_ids"}
    assert prompt["input_ids"] == features["input_ids"][:4]  # what is trained is what is asked


@pytest.mark.parametrize(("prompt", "joined"), [("Say:\n", "Say:\nyes"), ("Say: ", "Say: yes")])
def test_a_prompt_that_ends_in_white_space_gets_no_other(
    decoder: Backbone, prompt: str, joined: str
) -> None:
    features = decoder.encode(Example(prompt, ("  yes ",)))
    assert text_of(decoder, features["input_ids"]) == f"{joined}</s>"


def test_t5_reads_the_prompt_and_writes_the_answer(t5: Backbone) -> None:
    features = t5.encode(Example("Say:", ("yes",)))
    assert text_of(t5, features["input_ids"]) == "Say:"
    assert text_of(t5, features["labels"]) == "yes</s>"


def test_chat_template(decoder: Backbone) -> None:
    backbone = with_prompt("llama", TEMPLATE, chat_template=True)
    plain = backbone.encode(Example("Hi", ("yes",)))
    assert text_of(backbone, plain["input_ids"]) == "<user>Hi|<assistant>yes</s>"
    chat = backbone.encode(Example("Hi", ("yes",), (SYSTEM, USER)))
    assert text_of(backbone, chat["input_ids"]) == "<system>Be short.|<user>Hi|<assistant>yes</s>"
    labelled = [i for i in chat["labels"] if i != -100]
    assert (
        text_of(backbone, labelled) == "yes</s>"
    )  # what the template writes after it is no part of an answer
    for features in (plain, chat):
        assert text_of(backbone, features["route_ids"]) == "Hi"
    without = decoder.encode(Example("Hi", ("yes",), (SYSTEM, USER)))
    assert text_of(decoder, without["input_ids"]) == "Be short.\nHi yes</s>"
    assert text_of(decoder, without["route_ids"]) == "Hi"


def test_chat_template_must_exist() -> None:
    with pytest.raises(RetainError, match=r"tiny-llama.*no chat template; set prompt\.chat_templ"):
        with_prompt("llama", chat_template=True)


def test_route_ids_leave_special_tokens_out() -> None:
    from tokenizers.processors import TemplateProcessing

    backbone = make_backbone("llama")
    eos = backbone.tokenizer.eos_token_id
    backbone.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", eos)]
    )
    features = backbone.encode(Example("Say:", ("yes",)))
    assert text_of(backbone, features["input_ids"]) == "</s>Say: yes</s>"
    assert text_of(backbone, features["route_ids"]) == "Say:"


@pytest.mark.parametrize(("limit", "kept"), [(6, "abchij"), (5, "abhij"), (10, "abcdefghij")])
def test_a_long_prompt_loses_its_middle(limit: int, kept: str) -> None:
    backbone = with_prompt("llama", max_prompt_tokens=limit, max_answer_tokens=3)
    features = backbone.encode(Example("abcdefghij", ("12345",)))
    assert text_of(backbone, features["input_ids"]) == f"{kept} 123"
    assert text_of(backbone, features["route_ids"]) == kept
    t5 = with_prompt("t5", max_prompt_tokens=limit, max_answer_tokens=3)
    assert text_of(t5, t5.encode(Example("abcdefghij", ("12345",)))["labels"]) == "1234"
    assert text_of(t5, t5.encode(Example("abcdefghij", ("123",)))["labels"]) == "123</s>"


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_collate_pads_and_masks(kind: str) -> None:
    backbone = make_backbone(kind)
    rows = [backbone.encode(Example(p, (a,))) for p, a in (("Say:", "y"), ("Go:Go:", "no no"))]
    batch = backbone.collate(rows)
    assert set(batch) == {"input_ids", "labels", "route_ids", "attention_mask", "route_mask"}
    for i, row in enumerate(rows):
        for key, mask in (("input_ids", "attention_mask"), ("route_ids", "route_mask")):
            kept = batch[mask][i].bool()
            assert batch[key][i][kept].tolist() == row[key]
            assert (batch[key][i][~kept] == backbone.pad_id).all()
        labels = batch["labels"][i]
        assert labels[labels != -100].tolist() == [x for x in row["labels"] if x != -100]
    left = batch["attention_mask"][0].tolist()
    assert left == sorted(left, reverse=kind == "t5")  # decoders are padded on the left
    assert batch["attention_mask"].shape == batch["input_ids"].shape


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2", "t5"])
def test_padding_changes_no_loss_no_pooling_and_no_answer(kind: str) -> None:
    backbone = make_backbone(kind)
    examples = [Example("Say:", ("yes",)), Example("copy this long word: ", ("no",))]
    rows = [backbone.encode(example) for example in examples]
    both = backbone.collate(rows)
    with torch.no_grad():
        alone = [backbone.answer_loss(backbone.collate([row])) for row in rows]
        joint = backbone.answer_loss(both)
    lengths = torch.tensor([sum(x != -100 for x in row["labels"]) for row in rows])
    assert torch.allclose(joint, (torch.stack(alone) * lengths).sum() / lengths.sum(), atol=1e-5)
    pooled = torch.cat([backbone.pooled_embedding(backbone.collate([row])) for row in rows])
    assert torch.equal(backbone.pooled_embedding(both), pooled)
    asked = [backbone.encode(example, with_answer=False) for example in examples]
    answers = [backbone.generate(backbone.collate([row]), 5)[0] for row in asked]
    assert backbone.generate(backbone.collate(asked), 5) == answers


@pytest.mark.parametrize("references", ["yes", (), (1,), [None]])
def test_references_are_texts(references: Any) -> None:
    """The letters of a text would be answers that are each right."""
    with pytest.raises(RetainError, match="give it a tuple of texts, such as"):
        Example("Is it?", references)


def test_an_index_without_a_name_is_no_cell(tmp_path: Path) -> None:
    """As pandas writes it."""
    path = tmp_path / "t.csv"
    path.write_text(",prompt,answer\n0,a,b\n", encoding="utf-8")
    assert read_rows(path) == [Example("a", ("b",))]


@pytest.mark.parametrize("kind", ["float16", "float32", "Float32", "float64"])
def test_a_data_frame_s_numbers_have_their_own_digits(kind: str) -> None:
    table = pandas.DataFrame({"prompt": ["a", "b"], "answer": [0.1, 1 / 3]})
    (first, second) = read_dataset(table.astype({"answer": kind}), "t")
    digits = {"float16": "0.3333", "float64": str(1 / 3)}.get(kind, "0.33333334")
    assert (first.references, second.references) == (("0.1",), (digits,))


def test_a_row_that_is_there_twice_is_on_one_side() -> None:
    rows = [Example(f"p{i % 10}", (f"a{i % 5}",)) for i in range(40)]
    task = Task.split("t", rows)
    asked = {example.prompt for example in task.test}
    assert len(asked) < 10
    assert not asked & {example.prompt for example in (*task.train, *task.dev)}
    assert len((*task.train, *task.dev, *task.test)) == 40


def test_decimals_and_columns_of_a_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    answers = pyarrow.array([Decimal("1.10"), Decimal("-2.00")])
    parquet.write_table(pyarrow.table({"prompt": ["a", "b"], "answer": answers}), path)
    assert [example.references for example in read_rows(path)] == [("1.10",), ("-2.00",)]
    twice = pyarrow.table([["a"], ["b"], ["c"]], names=["prompt", "answer", "answer"])
    parquet.write_table(twice, path)
    with pytest.raises(RetainError, match="two columns are named 'answer'; rename one of them"):
        read_rows(path)
