"""What a reader reads is what the file says, or one line names the place."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from retain.errors import RetainError
from retain.experiment.config import TaskConfig
from retain.experiment.read_tasks import read_task
from retain.tasks import Example, Task
from retain.tasks.conversation import known_role, one_text
from retain.tasks.csv_text import LONGEST
from retain.tasks.readers import read_hub, read_long_sequence, read_rows, read_superni, read_trace
from retain.tasks.tables import read_dataset


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: Path, message: str) -> None:
    """Reading has to fail with one line that begins with the file and says this."""
    with pytest.raises(RetainError) as refusal:
        read_rows(path)
    text = str(refusal.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text


def answers(path: Path) -> list[str]:
    return [example.references[0] for example in read_rows(path)]


# -- CSV


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prompt,answer\nMy parcel, which I paid, is late,shipping\n", "line 2: has 4 cells, and "),
        ("prompt,answer\np,a\np,a,\n", "line 3: has 3 cells, and the header has 2; put a cell "),
        ("prompt,answer,note\np,a,n\np,a\n", "line 3: has 2 cells, and the header has 3"),
        ("prompt,answer\np\n", "line 2: no field 'answer'"),
        ('prompt,answer\np, "b, c"\n', "line 2: a quote stands after a space; remove the space"),
        ('prompt,answer\np,\t"b"\n', "line 2: a quote stands after a space"),
        ('prompt, "answer"\np,a\n', "line 1: a quote stands after a space"),
        ('prompt,answer\np,a\n"q,a\nr,a\n', "line 3: not CSV (a quote opens here and is never"),
        ('prompt,answer\np,"a\nq,"b"\n', "line 2: not CSV (a quote opens here and closes in the n"),
        ('prompt,answer\np,"a"b\n', "line 2: not CSV (a quote opens here and closes before 'b')"),
        ('prompt,answer\np,"a" \n', "line 2: not CSV (a quote opens here and closes before ' ')"),
        ("prompt,answer,answer\np,a,b\n", "line 1: two columns are named 'answer'; rename one"),
        ("x,prompt,answer,x\n1,p,a,2\n", "line 1: two columns are named 'x'"),
        ("prompt;answer\np;a\n", "line 1: its cells are separated by ';'; save it with commas"),
        ("sep=;\nprompt;answer\np;a\n", "line 1: its cells are separated by ';'"),
        ("prompt\tanswer\np\ta, b\n", "line 1: its cells are separated by tabs"),
        ("prompt|answer\np|a\n", "line 1: its cells are separated by '|'"),
        (f"prompt,answer\np,{'a' * (LONGEST + 1)}\n", "line 2: a cell has over 131,072 characters"),
        ('prompt,answer\n"p\n\nq",a\nr,a,b\n', "line 5: has 3 cells"),
        ("prompt,answer\r\np,a\r\n\r\nq\r\n", "line 4: no field 'answer'"),
        ("prompt,answer,\np,a,\nMy parcel, which I paid,b\n", "line 3: the cell 'b' stands in a "),
        ("prompt,answer, \np,a,b\n", "line 2: the cell 'b' stands in a column without a name"),
        (",prompt,answer,\n0,p,a,1\n", "line 2: the cell '1' stands in a column without a name"),
        ("prompt,answer\np,a\nprompt,answer\nq,b\n", "line 3: repeats the header; remove the"),
        ("prompt,answer,n\np,a,1\n\ufeffprompt,answer ,m\n", "line 3: repeats the header"),
        ('prompt,answer\np,a\nanswer,"prompt"\n', "line 3: repeats the header"),
        ("", "the task is empty"),
        ("\n \n", "the task is empty"),
    ],
)
def test_a_csv_that_may_be_read_in_two_ways(tmp_path: Path, content: str, message: str) -> None:
    refused(written(tmp_path / "t.csv", content), message)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("prompt,answer\np, billing\n", [" billing"]),
        ("prompt,answer\np,billing \n", ["billing "]),
        ("\ufeffprompt,answer\np,a\n", ["a"]),
        ("\ufeff\ufeffprompt,answer\np,a\n", ["a"]),
        (",prompt,answer,\n0,p,a,\n1,q,b,\n", ["a", "b"]),
        ("prompt,answer\n\n  \np,a\n\n", ["a"]),
        ("prompt,answer\nprompt,a\np,answer\n", ["a", "answer"]),
        ("prompt,answer,\np,a, \n", ["a"]),
        ('prompt,answer\np,"b, c"\n', ["b, c"]),
        ('prompt,answer\np," ""b"""\n', [' "b"']),
        ('prompt,answer\na 5" pipe,the 5" one\n', ['the 5" one']),
        ('prompt,answer\n"p\nq","a\n\nb"', ["a\n\nb"]),
        ("prompt,answer\rp,a\rq,b", ["a", "b"]),
        ("prompt,answer\np,0.10\nq,007\nr,1e5\ns,NaN\n", ["0.10", "007", "1e5", "NaN"]),
        (f"prompt,answer\np,{'a' * LONGEST}\n", ["a" * LONGEST]),
        ("prompt,answer\np,=1+1\n", ["=1+1"]),
    ],
)
def test_a_csv_is_read_as_it_stands(tmp_path: Path, content: str, expected: list[str]) -> None:
    assert answers(written(tmp_path / "t.csv", content)) == expected


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(st.text(alphabet='a", \t\n;=é', min_size=1, max_size=5), min_size=1, max_size=4))
def test_quoted_cells_read_back(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    quoted = "".join('p,"x{}"\n'.format(text.replace('"', '""')) for text in texts)
    path = written(tmp_path_factory.getbasetemp() / "t.csv", f"prompt,answer\n{quoted}")
    assert answers(path) == [f"x{text}" for text in texts]


# -- JSON


def jsonl(*answers: str) -> str:
    return "".join(f'{{"prompt": "p", "answer": {answer}}}\n' for answer in answers)


NUMBERS = [
    "9" * 400,
    "1" + "0" * 5000,
    "12345678901234567890",
    "0.10",
    "0.1000000000000000055511151231257827",
    "1e5",
    "1E+05",
    "-0",
    "-0.0",
    "1.0",
    "1",
    "1e-400",
    "1e400",
]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_read_as_it_is_spelled(tmp_path: Path, number: str) -> None:
    path = written(tmp_path / "t.jsonl", jsonl(number, f'["{number}", {number}]'))
    examples = read_rows(path)
    assert examples == [Example("p", (number,)), Example("p", (number, number))]
    rows = f'[{{"prompt": "p", "answer": {number}}}]'
    written(tmp_path / "train.json", rows)
    assert read_trace(tmp_path, "train")[0].references == (number,)
    instance = f'{{"Definition": "d", "Instances": [{{"input": {number}, "output": {number}}}]}}'
    written(tmp_path / "train.json", instance)
    assert read_superni(tmp_path, "train") == [Example(f"d\n\nInput: {number}\nOutput:", (number,))]


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "true", "false", "{}", "[]", "[null]"]
)
def test_what_is_no_text_and_no_number(tmp_path: Path, value: str) -> None:
    refused(written(tmp_path / "t.jsonl", jsonl("1", value)), "line 2: field 'answer' must be a te")
    refused(written(tmp_path / "u.jsonl", jsonl("1", "null")), "line 2: no field 'answer'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "p", "answer": "a", "answer": "b"}', "the key 'answer' is there twice; remo"),
        ('{"prompt": "p", "answer": "a", "prompt": "p"}', "the key 'prompt' is there twice"),
        ('{"prompt": "p", "answer": "a", "x": {"y": 1, "y": 1}}', "the key 'y' is there twice"),
        ('{"messages": [{"role": "user", "role": "x"}]}', "the key 'role' is there twice"),
        ('{"prompt": "p", "\\u0061nswer": 1, "answer": 2}', "the key 'answer' is there twice"),
        ("[" * 100_000, "not valid JSON"),
        ('{"prompt": "p", "answer": ' + "[" * 100_000, "not valid JSON"),
        ('{"prompt": "p", "answer": 1}}', "not valid JSON"),
        ('\ufeff{"prompt": "p", "answer": 1}', "not valid JSON"),
        ('{"prompt": "p", "answer": 01}', "not valid JSON"),
    ],
)
def test_a_line_that_says_two_things(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path / "t.jsonl", f'{{"prompt": "p", "answer": "a"}}\n\n{line}\n')
    refused(path, f"line 3: {message}")


def test_a_key_twice_in_a_benchmark_names_its_line(tmp_path: Path) -> None:
    path = written(tmp_path / "train.json", '[{"prompt": "{:", "answer": "a"},\n {"prompt": "p",\n')
    with open(path, "a") as file:
        file.write(' "answer": "a", "answer": "b"}]')
    with pytest.raises(RetainError, match=r"train\.json, line 3: the key 'answer' is there twice"):
        read_trace(tmp_path, "train")


def test_a_long_line_is_read(tmp_path: Path) -> None:
    text = "x" * 10_000_000
    path = written(tmp_path / "t.jsonl", json.dumps({"prompt": text, "answer": text}))
    assert read_rows(path) == [Example(text, (text,))]


@pytest.mark.parametrize("number", [10**400, -(10**400), 12345678901234567890, Decimal("0.10")])
def test_python_s_own_numbers(number: Any) -> None:
    row = {"prompt": "p", "answer": number}
    assert read_dataset([row], "t") == [Example("p", (str(number),))]


@pytest.mark.parametrize("number", [None, float("inf"), 1j, Decimal("sNaN")])
def test_numbers_without_a_text_are_refused(number: Any) -> None:
    number = number or 10**5000  # which pytest could not print
    with pytest.raises(RetainError, match="t, row 1: field 'answer' must be a text or a list"):
        read_dataset([{"prompt": "p", "answer": number}], "t")


# -- conversations

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Is it\u00e9?"}
REPLY = {"role": "assistant", "content": "yes it is"}
MORE = {"role": "user", "content": "Sure?"}


def read_one(tmp_path: Path, row: Any) -> Example:
    return read_rows(written(tmp_path / "t.jsonl", json.dumps(row)))[0]


@pytest.mark.parametrize(
    "answer", ["yes it is", [" yes  it is\n"], ["no", "yes it is"], ["yes it is", "no"]]
)
def test_the_answer_is_not_in_what_the_model_reads(tmp_path: Path, answer: Any) -> None:
    example = read_one(tmp_path, {"messages": [SYSTEM, USER, REPLY], "answer": answer})
    assert example.messages == (SYSTEM, USER)
    assert example.references == tuple(answer if isinstance(answer, list) else [answer])
    assert example.prompt == USER["content"]


@pytest.mark.parametrize("answer", ["no", "", ["no"], "Yes it is", 1])
def test_another_answer_than_the_conversation_s_is_refused(tmp_path: Path, answer: Any) -> None:
    row = {"messages": [USER, REPLY], "answer": answer}
    path = written(tmp_path / "t.jsonl", json.dumps(row))
    refused(path, "line 1: 'messages' end with another answer ('yes it is') than the field 'answer")


@pytest.mark.parametrize("answer", ["yes it is", "sure"])
def test_two_answers_at_the_end_of_a_conversation(tmp_path: Path, answer: str) -> None:
    said = [REPLY, {"role": "assistant", "content": answer}]
    path = written(tmp_path / "t.jsonl", json.dumps({"messages": [USER, *said], "answer": answer}))
    refused(path, "line 1: two turns of the assistant end 'messages'; make one of them, or remove")


def test_a_number_that_the_conversation_ends_with(tmp_path: Path) -> None:
    row = '{"messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "1.0"}]'
    path = written(tmp_path / "t.jsonl", row + ', "answer": 1.0}')
    assert read_rows(path) == [Example("p", ("1.0",), ({"role": "user", "content": "p"},))]
    refused(written(path, row + ', "answer": 1}'), "line 1: 'messages' end with another answer")


@pytest.mark.parametrize(
    "prompt", ["Is it\u00e9?\nSure?", "Is ite\u0301?", " Sure? ", "Be short. Is it\u00e9? Sure?"]
)
def test_a_prompt_that_the_conversation_has(tmp_path: Path, prompt: str) -> None:
    row = {"messages": [SYSTEM, USER, MORE], "answer": "a", "prompt": prompt}
    assert read_one(tmp_path, row).prompt == "Is it\u00e9?\nSure?"


@pytest.mark.parametrize("prompt", ["Other", "", "yes it is it", 5, ["Sure?"]])
@pytest.mark.parametrize("answer", [{}, {"answer": "yes it is"}])
def test_a_prompt_that_it_does_not_have(tmp_path: Path, prompt: Any, answer: Any) -> None:
    row = {"messages": [SYSTEM, USER, REPLY], "prompt": prompt, **answer}
    path = written(tmp_path / "t.jsonl", json.dumps(row))
    refused(path, "line 1: field 'prompt' is another text than the user's in 'messages'; remove ")


def test_training_data_take_what_the_server_takes(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Is it"}, {"type": "text", "text": "so?"}]
    turns = [{"role": "developer", "content": "Be short."}, {"role": "user", "content": parts}]
    said = {"role": "assistant", "content": [{"type": "text", "text": "yes"}], "name": "bot"}
    example = read_one(tmp_path, {"messages": [*turns, said]})
    assert example == Example(
        "Is it\nso?", ("yes",), (SYSTEM, {"role": "user", "content": "Is it\nso?"})
    )
    assert known_role("developer") == "system"
    assert one_text(parts) == "Is it\nso?"


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        ({"role": "tool", "content": "x"}, "correct turn 2 (got 'tool')"),
        ({"role": "function", "content": "x"}, "system, developer, user or assistant"),
        ({"role": "User", "content": "x"}, "correct turn 2 (got 'User')"),
        ({"content": "x"}, "each of 'messages' needs a 'role'"),
        ({"role": "user", "content": None}, "correct turn 2"),
        ({"role": "user", "content": {"text": "x"}}, "a text 'content'; correct turn 2"),
        ({"role": "user", "content": ["x"]}, "turn 2 of 'messages': part 0 has type None"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "part 0 has type 'image_url', but only 'text' is supported",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "part 0 has no field 'text'"),
        (
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            "turn 2 of 'messages' calls a tool",
        ),
    ],
)
def test_a_turn_that_is_none(tmp_path: Path, turn: Any, message: str) -> None:
    path = written(tmp_path / "t.jsonl", json.dumps({"messages": [USER, turn, REPLY]}))
    refused(path, message)


# -- classes by number

NAMES = ["World", "Sports"]
TYPES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)}
)
COLUMNS = {"prompt": "text", "answer": "label"}


def labelled(*labels: Any, types: datasets.Features = TYPES) -> datasets.Dataset:
    return datasets.Dataset.from_dict(
        {"text": [f"p{i}" for i in range(len(labels))], "label": list(labels)}, features=types
    )


def test_a_parquet_file_with_class_names_reads_as_names(tmp_path: Path) -> None:
    labelled(0, 1, 1).to_parquet(tmp_path / "t.Parquet")
    assert [e.references for e in read_rows(tmp_path / "t.Parquet", COLUMNS)] == [
        ("World",),
        ("Sports",),
        ("Sports",),
    ]
    lists = datasets.Features(TYPES | {"label": datasets.List(datasets.ClassLabel(names=NAMES))})
    labelled([1, 0], types=lists).to_parquet(tmp_path / "u.parquet")
    assert read_rows(tmp_path / "u.parquet", COLUMNS)[0].references == ("Sports", "World")


def test_labels_that_are_kept_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test split of −1 throughout is kept as it is; anywhere else −1 is no class."""
    labelled(*[0, 1] * 4).to_parquet(tmp_path / "train.parquet")
    labelled(-1, -1).to_parquet(tmp_path / "test.parquet")
    labelled(-1, 0).to_parquet(tmp_path / "some.parquet")
    paths = {"path": str(tmp_path / "train.parquet"), "columns": COLUMNS}
    task = read_task(TaskConfig(**paths, test=str(tmp_path / "test.parquet")))
    assert {e.references[0] for e in (*task.train, *task.dev)} == set(NAMES)
    assert {e.references[0] for e in task.test} == {"-1"}
    with pytest.raises(RetainError, match=r"some\.parquet, row 1: field 'label' is -1"):
        read_task(TaskConfig(**paths, test=str(tmp_path / "some.parquet")))
    with pytest.raises(RetainError, match=r"test\.parquet, row 1: field 'label' is -1"):
        read_rows(tmp_path / "test.parquet", COLUMNS)
    given = {"prompt": "text", "answer": "label"}
    task = Task.from_dataset(labelled(0, 1, 1), "t", **given, test=labelled(-1, -1))
    assert {e.references[0] for e in task.test} == {"-1"}

    splits = {"train": labelled(0, 1), "test": labelled(-1)}
    monkeypatch.setattr("datasets.load_dataset", lambda *_, split: splits[split])
    assert read_hub("news", "test", None, COLUMNS, kept_back=True)[0].references == ("-1",)
    with pytest.raises(RetainError, match="news/test, row 1: field 'label' is -1"):
        read_hub("news", "test", None, COLUMNS)
    assert read_hub("news", "train", None, COLUMNS)[1].references == ("Sports",)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_a_number_of_a_table_has_its_own_digits(tmp_path: Path, kind: Any) -> None:
    table = pyarrow.table({"prompt": ["p"], "answer": pyarrow.array(np.array([0.1], kind))})
    parquet.write_table(table, tmp_path / "t.parquet")
    assert read_rows(tmp_path / "t.parquet")[0].references == ("0.1",)
    assert read_dataset(datasets.Dataset(table), "t")[0].references == ("0.1",)


@pytest.mark.parametrize("kind", ["float16", "float32", "Float32"])
def test_a_number_of_a_data_frame_has_its_own_digits(kind: str) -> None:
    frame = pandas.DataFrame({"prompt": ["p", "q"], "answer": pandas.array([0.1, 2], dtype=kind)})
    assert [e.references for e in read_dataset(frame, "t")] == [("0.1",), ("2.0",)]


def test_lists_of_labels_that_are_kept_back(tmp_path: Path) -> None:
    lists = datasets.Features(TYPES | {"label": datasets.List(datasets.ClassLabel(names=NAMES))})
    labelled([-1], [-1, -1], types=lists).to_parquet(tmp_path / "t.parquet")
    assert read_rows(tmp_path / "t.parquet", COLUMNS, kept_back=True)[0].references == ("-1",)
    labelled([-1], [], types=lists).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(RetainError, match="row 1: field 'label' is -1"):
        read_rows(tmp_path / "t.parquet", COLUMNS, kept_back=True)


def test_two_columns_of_a_parquet_file_with_one_name(tmp_path: Path) -> None:
    columns = [pyarrow.array([text]) for text in "pab"]
    table = pyarrow.Table.from_arrays(columns, names=["prompt", "answer", "answer"])
    parquet.write_table(table, tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", "two columns are named 'answer'; rename one of them")


def test_a_tuple_is_a_list() -> None:
    rows = [{"prompt": "p", "answer": ("a", 1)}]
    assert read_dataset(rows, "t") == [Example("p", ("a", "1"))]


def test_one_column_for_prompt_and_answer(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", '{"text": "p", "label": "a"}')
    with pytest.raises(RetainError, match="line 1: field 'text' is named for the prompt and for"):
        read_rows(path, {"prompt": "text", "answer": "text"})


# -- CSV by the hub's reader


def test_a_csv_of_the_hub_is_read_as_it_stands(tmp_path: Path) -> None:
    path = written(tmp_path / "train.csv", "text,label\na,007\nb,0.10\n")
    assert [e.references for e in read_hub(str(tmp_path), "train", None, COLUMNS)] == [
        ("007",),
        ("0.10",),
    ]
    written(path, "text,label\na,True\nb,False\n")
    assert read_hub(str(tmp_path), "train", None, COLUMNS)[0].references == ("True",)
    written(path, "text,label,label\na,x,y\n")
    with pytest.raises(RetainError, match="split 'train': two columns are named 'label'; rename"):
        read_hub(str(tmp_path), "train", None, COLUMNS)
    written(path, "text,label\na, x,yes\nb, y,no\n")
    with pytest.raises(RetainError, match="split 'train': rows have more cells than the header"):
        read_hub(str(tmp_path), "train", None, COLUMNS)


# -- benchmarks


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ('["yes", true]', "labels.json, entry 2: must be .*, and not true; write it as text"),
        ("[null]", "labels.json, entry 1: must be .*, and not null"),
        ('[{"a": 1}]', "labels.json, entry 1: must be .*, and not an object"),
        ("[NaN]", "labels.json, entry 1: must be .*, and not nan"),
        ('["yes", 0.10]', None),
    ],
)
def test_options_are_texts_or_numbers(tmp_path: Path, labels: str, message: str | None) -> None:
    written(tmp_path / "labels.json", labels)
    instances = '{"Definition": "d", "Instances": [{"input": "i", "output": "yes"}]}'
    written(tmp_path / "train.json", instances)
    if message is None:
        assert "yes, 0.10" in read_long_sequence(tmp_path, "train")[0].prompt
    else:
        with pytest.raises(RetainError, match=message):
            read_long_sequence(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "train.json: not in the benchmark's layout (no object); give it 'Definition'"),
        ('{"Definition": "d"}', "layout (no 'Instances'); give it"),
        ('{"Definition": "d", "Instances": null}', "layout (no list 'Instances')"),
        ('{"Definition": "d", "Instances": ["i"]}', "instance 1: not in the benchmark's layout"),
        ('{"Definition": null, "Instances": []}', "field 'Definition' must be a text or a list"),
        ('{"Definition": {"a": 1}, "Instances": []}', "field 'Definition' must be a text or a li"),
        *(
            (
                f'{{"Definition": "d", "Instances": [{{"input": {value}, "output": "a"}}]}}',
                "train.json, instance 1: field 'input' must be a text or a list of texts, and n",
            )
            for value in ("null", "true", "NaN", '["i"]', '{"i": 1}')
        ),
    ],
)
def test_an_instance_that_is_none(tmp_path: Path, content: str, message: str) -> None:
    written(tmp_path / "train.json", content)
    with pytest.raises(RetainError, match=re.escape(message)):
        read_superni(tmp_path, "train")


# -- endings


def test_a_json_file_may_hold_a_list(tmp_path: Path) -> None:
    rows = '\ufeff[\n{"prompt": "p", "answer": 0.10},\n{"prompt": "q", "answer": "b"}]'
    assert answers(written(tmp_path / "t.json", rows)) == ["0.10", "b"]
    refused(written(tmp_path / "t.json", '[{"prompt": "p"}]'), "entry 1: no field 'answer'")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").mkdir()
    refused(tmp_path / "t.jsonl", "is a folder; name a file in it")


@pytest.mark.parametrize("ending", [".JSONL", ".Jsonl", ".JSON"])
def test_endings_in_capitals(tmp_path: Path, ending: str) -> None:
    assert answers(written(tmp_path / f"t{ending}", jsonl('"a"'))) == ["a"]
    assert answers(written(tmp_path / "t.CSV", "prompt,answer\np,a\n")) == ["a"]


@pytest.mark.parametrize("ending", [".gz", ".GZ", ".bz2", ".xz", ".zst", ".zip", ".tar"])
def test_packed_files_are_named(tmp_path: Path, ending: str) -> None:
    refused(
        written(tmp_path / f"t.jsonl{ending}", b"\x1f\x8b"), "is packed, and is not read so; un"
    )
