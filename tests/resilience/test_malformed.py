"""A corpus of malformed input: whatever it is, status 2, one `error:` line, nothing touched.

tests/cli/test_bad_input.py has the mistakes that users make, and what is said of each; here is what
nobody means to give: values of other kinds in every field, in every format that is read, in model
folders, and in runs whose checksums are in order.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import safetensors.torch
import torch
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from pyarrow import parquet
from pydantic import BaseModel

from retain.experiment.config import ExperimentConfig, TaskConfig
from retain.methods import METHODS
from retain.runs.results import open_run
from tests.command import call, check, put, refused, settings, write_settings

pytestmark = pytest.mark.usefixtures("place")

Backbones = Callable[[str], Path]
GENERATED = 25
"""Examples that hypothesis generates of a kind."""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
generated = limits(
    max_examples=GENERATED,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# -- the experiment file: in every field, of every method, a value of another kind


def fields(kind: type[BaseModel], prefix: str) -> Iterator[str]:
    """The fields of a config model and of those in it, such as `method.router.hidden`."""
    for name, field in kind.model_fields.items():
        inner = field.annotation
        yield f"{prefix}{name}"
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from fields(inner, f"{prefix}{name}.")


FIELDS = [
    *(("seqlora", name) for name in fields(ExperimentConfig, "")),
    *(("seqlora", name) for name in fields(TaskConfig, "tasks.0.")),
    *((m, name) for m in METHODS for name in fields(METHODS[m].Config, "method.")),
]


@pytest.mark.parametrize(("method", "field"), FIELDS)
def test_value_of_another_kind(
    place: Path, backbone_folder: Backbones, method: str, field: str
) -> None:
    values = settings(backbone_folder("llama"), "copy")
    values["method"] = {"name": method}
    *parents, _ = field.split(".")
    for depth in range(1, len(parents)):
        values.setdefault(parents[0], {})
        if parents[0] == "method":
            put(values, ".".join(parents[: depth + 1]), {})
    values.setdefault(parents[0] if parents else field, {})
    put(values, field, {"surprise": [{}]})
    refused(
        "run", write_settings(place / "bad.yaml", values), says=["bad.yaml: ", f"field '{field}"]
    )


YAMLS = [
    b"\xff\xfe\x00",
    b"\x00\x01\x02",
    b"[" * 5000,
    b"{" * 5000,
    b"a: &a [*a]",
    b"&a {backbone: *a, method: *a}",
    b"<<: 1",
    b"? [a]\n: b",
    b"1: 2",
    b"null: null",
    b"backbone: x\nbackbone: y",
    b"--- {}\n--- {}",
    b"!!python/object/apply:os.system ['false']",
    b"!!binary x",
    b"!!timestamp x",
    b"!!set {backbone, method}",
    b"%YAML 9.9\n---\na: b",
    b"seed: 0x",
    b"backbone: 'unclosed",
    b"backbone: *nothing",
    b"'",
    b"~",
    b"...",
    b"\xef\xbb\xbf",
]


@pytest.mark.parametrize("content", YAMLS)
def test_yaml(place: Path, content: bytes) -> None:
    (place / "bad.yaml").write_bytes(content)
    refused("run", "bad.yaml", says=["bad.yaml"])


@generated
@given(st.text(alphabet="&*!?|>%@`-:,[]{}#'\"a1\n ", max_size=20))
def test_text_that_is_no_experiment(place: Path, text: str) -> None:
    (place / "bad.yaml").write_text(text, encoding="utf-8")
    refused("run", "bad.yaml", says=["bad.yaml"])


# -- data, in the format of every reader

ROW = {"prompt": "p", "answer": "a"}
TEXTS = {
    "nothing": b"",
    "no text": bytes(range(256)),
    "two bytes a letter": "prompt,answer\n".encode("utf-16"),
    "deep": b"[" * 20000,
    "a number": b"1",
    "null": b"null",
    "an empty list": b"[]",
    "an empty object": b"{}",
    "a huge number": b"1e999",
    "too many digits": b"9" * 5000,
    "another format": b"<html></html>",
    "cut off": b'{"prompt": "p", "ans',
}
ROWS: dict[str, Any] = {
    "null": None,
    "example_id": 1,
    "text": "p",
    "list": ["p", "a"],
    "no prompt": {"answer": "a"},
    "no answer": {"prompt": "p"},
    "prompt of null": {**ROW, "prompt": None},
    "prompt in a list": {**ROW, "prompt": ["p"]},
    "prompt an object": {**ROW, "prompt": {"text": "p"}},
    "prompt of spaces": {**ROW, "prompt": "\u3000\n"},
    "answer of null": {**ROW, "answer": None},
    "answers of null": {**ROW, "answer": [None]},
    "answers in lists": {**ROW, "answer": [["a"]]},
    "answer an object": {**ROW, "answer": {"text": "a"}},
    "answer of spaces": {**ROW, "answer": ["\t"]},
    "answer of half a letter": {**ROW, "answer": "\udc00"},
    "no turns": {"messages": [1]},
    "turns in an object": {"messages": {"role": "user", "content": "p"}},
    "turns of text": {"messages": "hello"},
    "turn of no role": {"messages": [{"content": "p"}, {"role": "assistant", "content": "a"}]},
    "turn of another role": {"messages": [{"role": "robot", "content": "p"}]},
    "turn of parts": {"messages": [{"role": "user", "content": [{"text": "p"}]}]},
    "turns without an answer": {"messages": [{"role": "user", "content": "p"}]},
    "only an answer": {"messages": [{"role": "assistant", "content": "a"}]},
    "turn of half a letter": {
        "messages": [{"role": "user", "content": "\ud800"}, {"role": "assistant", "content": "a"}]
    },
}
CSVS = {
    "no header": b"p,a\nq,b\n",
    "only a header": b"prompt,answer\n",
    "a cell short": b"prompt,answer\np\n",
    "an open quote": b'prompt,answer\n"p,a\n',
    "text after a quote": b'prompt,answer\n"p"x,a\n',
    "an empty prompt": b"prompt,answer\n,a\n",
    "an empty answer": b"prompt,answer\np,\n",
    "a cell too large": b"prompt,answer\np," + b"a" * 200_000 + b"\n",
    "only line ends": b"\n\n\n",
    "latin 1": b"prompt,answer\ncaf\xe9,a\n",
}
TABLES: dict[str, dict[str, list[Any]]] = {
    "no columns": {},
    "no rows": {"prompt": [], "answer": []},
    "no answers": {"prompt": ["p"]},
    "an empty cell": {"prompt": ["p", None], "answer": ["a", "a"]},
    "numbers for prompts": {"prompt": [1.5], "answer": ["a"]},
    "bytes for prompts": {"prompt": [b"\xff"], "answer": ["a"]},
    "bytes for answers": {"prompt": ["p"], "answer": [b"\xff"]},
    "structs": {"prompt": ["p"], "answer": [{"text": "a"}]},
}
INSTANCE = {"input": "i", "output": ["o"]}
FOLDERS: dict[str, dict[str, Any]] = {
    "superni": {"train": {"Definition": ["d"], "Instances": [INSTANCE] * 9}},
    "long_sequence": {
        "train": {"Definition": ["d"], "Instances": [INSTANCE] * 9},
        "labels": ["o"],
    },
    "trace": {"train": [ROW] * 9},
}
"""By reader the files of a folder that is in order; its test split is the same as train."""
INSTANCES: dict[str, Any] = {
    "no definition": {"Instances": [{"input": "i", "output": "o"}]},
    "no instances": {"Definition": ["d"]},
    "instances of null": {"Definition": ["d"], "Instances": None},
    "instances an object": {"Definition": ["d"], "Instances": {"input": "i", "output": "o"}},
    "instances of text": {"Definition": ["d"], "Instances": "io"},
    "instances of numbers": {"Definition": ["d"], "Instances": [1, 2]},
    "empty instances": {"Definition": ["d"], "Instances": []},
    "instance without input": {"Definition": ["d"], "Instances": [{"output": "o"}]},
    "instance without output": {"Definition": ["d"], "Instances": [{"input": "i"}]},
    "answers of null": {"Definition": ["d"], "Instances": [{"input": "i", "output": None}]},
    "no answers": {"Definition": ["d"], "Instances": [{"input": "i", "output": []}]},
    "a definition of numbers": {"Definition": [1], "Instances": [{"input": "i", "output": "o"}]},
    "a definition of null": {"Definition": None, "Instances": [{"input": "i", "output": "o"}]},
    "a definition in an object": {"Definition": {"a": 1}, "Instances": [{"output": "o"}]},
    "half a letter": {"Definition": "\ud800", "Instances": [{"input": "i", "output": "o"}]},
}
FILES: list[tuple[str, str, bytes]] = [
    *((f"t{end}", name, c) for end in (".jsonl", ".csv", ".parquet") for name, c in TEXTS.items()),
    *(("t.jsonl", name, json.dumps(row).encode()) for name, row in ROWS.items()),
    *(("t.csv", name, text) for name, text in CSVS.items()),
    *((f"{reader}/train.json", name, c) for reader in FOLDERS for name, c in TEXTS.items()),
    *(
        (f"{reader}/train.json", name, json.dumps(content).encode())
        for reader in ("superni", "long_sequence")
        for name, content in INSTANCES.items()
    ),
    *(("trace/test.json", name, json.dumps([ROW, row]).encode()) for name, row in ROWS.items()),
    *(
        ("long_sequence/labels.json", name, text)
        for name, text in TEXTS.items()
        if name != "an empty list"
    ),
]
"""File, what is wrong with it, content."""


def read(place: Path, name: str, content: bytes) -> list[str]:
    """Writes a file where all others are in order; returns the command that reads it."""
    folder, _, _ = name.rpartition("/")
    for part, value in FOLDERS.get(folder, {}).items():
        (place / folder).mkdir(exist_ok=True)
        for split in ("train", "test") if part == "train" else (part,):
            (place / folder / f"{split}.json").write_text(json.dumps(value))
    (place / name).write_bytes(content)
    task = f"{{path: {folder}, reader: {folder}}}" if folder else f"{{path: {name}}}"
    return ["run", "exp.yaml", "--output", "new", "--set", f"tasks=[{task}]"]


@pytest.mark.parametrize(("name", "what", "content"), FILES)
def test_data_file(place: Path, name: str, what: str, content: bytes) -> None:
    refused(*read(place, name, content), says=[name])


@pytest.mark.parametrize("what", TABLES)
def test_parquet_table(place: Path, what: str) -> None:
    parquet.write_table(pyarrow.table(TABLES[what]), place / "t.parquet")
    command = read(place, "t.parquet", (place / "t.parquet").read_bytes())
    refused(*command, says=["t.parquet"])


@pytest.mark.parametrize("what", ROWS)
def test_row_of_a_hub_dataset(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: [ROW, ROWS[what]])
    refused(*HUB, says=["some/set/train, row 2: "])


@pytest.mark.parametrize("error", [OSError(), ValueError("a\nb"), KeyError("x"), Exception("\n")])
def test_hub_that_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("datasets.load_dataset", fails)
    refused(*HUB, says=["dataset 'some/set', split 'train': cannot be loaded"])


HUB = ["run", "exp.yaml", "--output", "new", "--set", "tasks=[{path: some/set, reader: hub}]"]


@generated
@given(st.sampled_from(["t.jsonl", "t.csv", "t.parquet"]), st.binary(max_size=40))
def test_bytes_that_are_no_data(place: Path, name: str, content: bytes) -> None:
    refused(*read(place, name, content), says=[])


@generated
@given(st.sampled_from(sorted(FOLDERS)), JSON)
def test_json_that_is_no_benchmark(place: Path, reader: str, value: Any) -> None:
    refused(*read(place, f"{reader}/train.json", json.dumps(value).encode()), says=[])


@generated
@given(JSON)
def test_json_that_is_no_row(place: Path, value: Any) -> None:
    refused(*read(place, "t.jsonl", json.dumps(value).encode()), says=["t.jsonl"])


@generated
@given(st.dictionaries(st.sampled_from(list(ExperimentConfig.model_fields)), JSON, max_size=3))
def test_values_that_are_no_experiment(place: Path, values: dict[str, Any]) -> None:
    refused("run", write_settings(place / "bad.yaml", values), says=["bad.yaml"])


@generated
@given(st.text(max_size=30))
def test_change_that_is_none(change: str) -> None:
    done = call("run", "exp.yaml", "--output", "run", "--set", change)
    check(done, ["error: "])


# -- model folders


def header(value: Any) -> bytes:
    """A safetensors file of this header and no data."""
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text)) + text


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
SAFETENSORS = {
    "nothing": b"",
    "half a length": b"\x01\x00",
    "a header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "a header longer than memory": struct.pack("<Q", 2**63) + b"{}",
    "a header that is no JSON": header(b"{"),
    "a header that is a list": header([]),
    "a tensor without data": header({"x": TENSOR}),
    "an absurd shape": header({"x": {**TENSOR, "shape": [2**40, 2**40]}}),
    "a shape over the end": header({"x": {**TENSOR, "shape": [2**62, 4]}}),
    "offsets that go back": header({"x": {**TENSOR, "data_offsets": [4, 0]}}),
    "an unknown type": header({"x": {**TENSOR, "dtype": "F33"}}),
    "a negative shape": header({"x": {**TENSOR, "shape": [-1]}}),
    "a pickle": b"\x80\x04cos\nsystem\n\x85R.",
    "a zip": b"PK\x03\x04",
}
MODEL_CONFIGS: dict[str, Any] = {
    "no type": {"model_type": None},
    "an unknown type": {"model_type": "nonsense"},
    "a type that is a number": {"model_type": 5},
    "a type in a list": {"model_type": ["llama"]},
    "a width in words": {"hidden_size": "wide"},
    "a width of nothing": {"hidden_size": 0},
    "a negative width": {"hidden_size": -32},
    "another width": {"hidden_size": 64},
    "half a layer": {"num_hidden_layers": 0.5},
    "layers in words": {"num_hidden_layers": "two"},
    "no heads": {"num_attention_heads": 0},
    "heads of null": {"num_attention_heads": None},
    "another vocabulary": {"vocab_size": 7},
    "a negative vocabulary": {"vocab_size": -1},
    "an unknown activation": {"hidden_act": "nonsense"},
    "code from elsewhere": {"model_type": "other", "auto_map": {"AutoConfig": "evil.Config"}},
    "a padding token out of range": {"pad_token_id": 10**6},
    "an image model": {"model_type": "vit"},
}
MODEL_FILES: list[tuple[str, str, bytes]] = [
    *(("model.safetensors", name, content) for name, content in SAFETENSORS.items()),
    *(
        (file, name, TEXTS[name])
        for file in ("config.json", "tokenizer.json")
        for name in ("nothing", "no text", "deep", "a number", "null", "an empty list", "cut off")
    ),
    ("tokenizer.json", "an empty object", b"{}"),
    ("tokenizer_config.json", "nothing", b""),
    ("tokenizer_config.json", "a list", b"[]"),
    ("tokenizer_config.json", "no end token", b'{"tokenizer_class": "PreTrainedTokenizerFast"}'),
]


def model_refused(place: Path, backbone_folder: Backbones, name: str, content: bytes) -> None:
    shutil.copytree(backbone_folder("llama"), place / "model")
    (place / "model" / name).write_bytes(content)
    refused("run", "exp.yaml", "--output", "new", "--set", "backbone=model", says=["'model': "])


@pytest.mark.parametrize(("name", "what", "content"), MODEL_FILES)
def test_model_file(
    place: Path, backbone_folder: Backbones, name: str, what: str, content: bytes
) -> None:
    model_refused(place, backbone_folder, name, content)


@pytest.mark.parametrize("what", MODEL_CONFIGS)
def test_model_config(place: Path, backbone_folder: Backbones, what: str) -> None:
    values = json.loads((backbone_folder("llama") / "config.json").read_bytes())
    content = json.dumps({**values, **MODEL_CONFIGS[what]}).encode()
    model_refused(place, backbone_folder, "config.json", content)


@pytest.mark.parametrize("target", ["../copy.jsonl", "/etc/hostname", "gone.safetensors", "", 5])
def test_index_of_weights(place: Path, backbone_folder: Backbones, target: Any) -> None:
    shutil.copytree(backbone_folder("llama"), place / "model")
    path = place / "model" / "model.safetensors"
    names = safetensors.torch.load_file(path)
    path.unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
    (place / "model" / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("run", "exp.yaml", "--output", "new", "--set", "backbone=model", says=["'model': "])


GGUFS = {
    "nothing": b"",
    "another format": b"\x00" * 64,
    "another version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "no content": b"GGUF" + struct.pack("<IQQ", 3, 0, 0),
    "counts over the end": b"GGUF" + struct.pack("<IQQ", 3, 2**40, 2**40),
    "a key over the end": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60),
}


@pytest.mark.parametrize("what", GGUFS)
def test_gguf_file(place: Path, what: str) -> None:
    (place / "m.gguf").write_bytes(GGUFS[what])
    refused("run", "exp.yaml", "--output", "new", "--set", "backbone=m.gguf", says=["'m.gguf'"])


# -- runs from elsewhere: their checksums are in order

TASK = "tasks/01-copy"
VALUES: dict[str, bytes] = {
    "null": b"null",
    "example_id": b"1",
    "text": b'"x"',
    "list": b"[1]",
    "empty": b"{}",
    "other": b'{"name": [1], "metric": {}, "scores": 1, "routing": 1, "r": "x", "fingerprints": 1}',
}
READ_BY: dict[str, tuple[str, ...]] = {
    "config.yaml": ("eval", "report", "learn", "rollback", "compare", "inspect", "resume"),
    f"{TASK}/task.json": ("eval", "report", "learn", "rollback", "compare", "resume"),
    f"{TASK}/evaluation.json": ("learn", "report", "compare", "check", "resume"),
    f"{TASK}/predictions/01.jsonl": ("compare",),
    f"{TASK}/training.jsonl": ("report",),
    f"{TASK}/adapter_config.json": ("eval", "export"),
    "environment.json": ("eval",),
}
"""Files that are read, and by which commands."""
ARGUMENTS = {
    "learn": ["learn", "run", "letter.jsonl"],
    "rollback": ["rollback", "run", "--to", "copy"],
    "check": ["check", "run", "--max-forgetting", "1"],
    "export": ["export", "run", "exported"],
    "resume": ["run", "exp.yaml", "--output", "run", "--resume"],
}
STORED = [
    (name, what, command)
    for name, commands in READ_BY.items()
    for what in VALUES
    for command in commands
]


def resealed(run: Path, name: str, content: bytes) -> None:
    """Replaces a file of a run, and its checksum."""
    open_run(run).write({run / name: content})


@pytest.mark.parametrize(("name", "what", "command"), STORED)
def test_stored_value(place: Path, name: str, what: str, command: str) -> None:
    resealed(place / "run", name, VALUES[what])
    refused(*ARGUMENTS.get(command, [command, "run"]), says=["run/", Path(name).name])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("name: seqlora", "name: sapd"),
        ("rank: 2", "rank: two"),
        ("dtype: float32", "dtype: [float32]"),
        ("max_steps: 2", "max_steps: 2\n  surprise: 1"),
        ("seed: 0", "seed: -1"),
    ],
)
@pytest.mark.parametrize("command", ["eval", "learn", "resume"])
def test_stored_settings(place: Path, old: str, new: str, command: str) -> None:
    text = (place / "run" / "config.yaml").read_text()
    assert old in text
    resealed(place / "run", "config.yaml", text.replace(old, new).encode())
    refused(*ARGUMENTS.get(command, [command, "run"]), says=["run/config.yaml", "field"])


@pytest.mark.parametrize(
    "field", ["training", "seed", "prompt", "evaluation.limit", "evaluation.max_new_tokens"]
)
def test_stored_settings_that_lack_one(place: Path, field: str) -> None:
    values = yaml.safe_load((place / "run" / "config.yaml").read_text())
    put(values, field, ...)
    resealed(place / "run", "config.yaml", yaml.safe_dump(values).encode())
    refused("compare", "run", says=["run/config.yaml", f"field '{field}'"])


@pytest.mark.parametrize("what", SAFETENSORS)
def test_stored_tensors(place: Path, what: str) -> None:
    resealed(place / "run", f"{TASK}/adapter_model.safetensors", SAFETENSORS[what])
    refused("generate", "run", "p", says=["adapter_model.safetensors"])


@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor * float("nan"),
        lambda tensor: tensor[:1, :1],
        lambda tensor: tensor.flatten(),
        lambda tensor: torch.zeros(0),
    ],
)
def test_stored_tensors_of_another_kind(
    place: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    name = f"{TASK}/adapter_model.safetensors"
    tensors = safetensors.torch.load_file(place / "run" / name)
    changed = {key: change(tensor).contiguous() for key, tensor in tensors.items()}
    resealed(place / "run", name, safetensors.torch.save(changed))
    refused("generate", "run", "p", says=["adapter_model.safetensors"])


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"prompt": 1}', b"\xff", b"null"])
def test_stored_examples(place: Path, content: bytes) -> None:
    resealed(place / "run", f"{TASK}/test.jsonl", content)
    refused("eval", "run", says=["test.jsonl"])


MANIFESTS: dict[str, dict[str, Any]] = {
    "no format": {"files": {}},
    "a format in words": {"format": "one", "files": {}},
    "a newer format": {"format": 2, "files": {}},
    "no files": {"format": 1},
    "files of null": {"format": 1, "files": None},
    "files in a list": {"format": 1, "files": ["config.yaml"]},
    "files in words": {"format": 1, "files": "config.yaml"},
    "a checksum that is a number": {"format": 1, "files": {"config.yaml": 1}},
    "a checksum of null": {"format": 1, "files": {"config.yaml": None}},
    "a file without a name": {"format": 1, "files": {"": "x"}},
    "a folder": {"format": 1, "files": {"tasks": "x"}},
    "a path out of it": {"format": 1, "files": {"../exp.yaml": "x"}},
    "an absolute path": {"format": 1, "files": {"/etc/hostname": "x"}},
    "a name with a zero": {"format": 1, "files": {"a\0b": "x"}},
    "a name too long": {"format": 1, "files": {"n" * 5000: "x"}},
    "half a letter": {"format": 1, "files": {"\ud800": "x"}},
    "a task without a number": {"format": 1, "files": {"tasks/copy/task.json": "x"}},
    "no settings": {"format": 1, "files": {}},
}


@pytest.mark.parametrize("what", MANIFESTS)
@pytest.mark.parametrize("command", ["eval", "report", "verify", "learn"])
def test_manifest(place: Path, what: str, command: str) -> None:
    manifest = MANIFESTS[what]
    text = json.dumps(manifest, sort_keys=True).encode()
    sealed = {**manifest, "sha256": hashlib.sha256(text).hexdigest()}
    (place / "run" / "manifest.json").write_text(json.dumps(sealed))
    if what == "no settings" and command == "verify":
        return
    if what == "a folder" and command == "verify":
        assert call("verify", "run").out.startswith("run/tasks: missing; ")
        return
    refused(*ARGUMENTS.get(command, [command, "run"]), says=["run/"])
