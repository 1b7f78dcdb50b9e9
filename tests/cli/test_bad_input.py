"""Every mistake a user can make: status 2, one `error:` line with its remedy, nothing touched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from tests.command import Called, call, check, put, refused, settings, snapshot, write_settings

Backbones = Callable[[str], Path]

GOOD = b'{"prompt": "p", "answer": "a"}\n'


pytestmark = pytest.mark.usefixtures("place")

# -- the experiment file


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("surprise", 1, ["unknown field 'surprise'; remove it or use one of: backbone, method"]),
        ("method.surprise", 1, ["'method.surprise'", "use one of: preset, rank, alpha"]),
        ("training.surprise", 1, ["'training.surprise'", "use one of: max_steps"]),
        ("evaluation.surprise", 1, ["'evaluation.surprise'", "use one of: max_new_tokens"]),
        ("tasks.0.surprise", 1, ["'tasks.0.surprise'", "use one of: path, name"]),
        ("backbone.surprise", 1, ["'backbone.surprise'", "use one of: name, revision"]),
        ("prompt", {"surprise": 1}, ["'prompt.surprise'", "use one of: chat_template"]),
        ("method", {"name": "sapt", "router": {"x": 1}}, ["'method.router.x'", "use one of"]),
        ("method", "sapd", ["'method.name': no method 'sapd'; choose one of amlora, "]),
        ("method", {}, ["'method.name'", "choose one of"]),
        ("method", {"name": ["sapt"]}, ["'method.name'", "choose one of"]),
        ("method", 5, ["'method'", "should be a valid dictionary"]),
        ("method", ..., ["'method'", "add it"]),
        ("method.rank", 0, ["'method.rank'", "should be greater than 0", "got '0'"]),
        ("method.rank", "big", ["'method.rank'", "should be a valid integer"]),
        ("method.alpha", float("inf"), ["'method.alpha'", "should be a finite number"]),
        ("method.target_modules", ["nose"], ["'nose'", "choose from down_proj, gate_proj"]),
        (
            "method",
            {"name": "replay", "rank": 4},
            ["rank is an option of LoRA", "tune: lora"],
        ),
        (
            "method",
            {"name": "sapt", "reflection": {"weight": -1}},
            ["'method.reflection.weight'", "should be greater than or equal to 0"],
        ),
        ("training.max_steps", -5, ["'training.max_steps'", "at least 1, or -1", "got '-5'"]),
        ("training.max_steps", 0, ["'training.max_steps'", "at least 1, or -1"]),
        ("training.max_steps", "many", ["'training.max_steps'", "valid integer", "got 'many'"]),
        ("training.max_steps", 2.5, ["'training.max_steps'", "valid integer"]),
        ("training.learning_rate", -1, ["'training.learning_rate'", "greater than 0"]),
        ("training.learning_rate", float("nan"), ["'training.learning_rate'", "finite"]),
        ("training.learning_rate", 1e39, ["'training.learning_rate'", "equal to 1000000"]),
        ("training.weight_decay", 1e308, ["'training.weight_decay'", "equal to 1000000"]),
        ("training.num_train_epochs", 1e308, ["'training.num_train_epochs'", "equal to 1000000"]),
        ("training.gradient_accumulation_steps", 10**12, ["ulation_steps'", "equal to 10000 "]),
        (
            "training",
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
            ["field 'training': learning_rate (1e-08) has to be above 1e-07", "use linear"],
        ),
        (
            "tasks.0.training",
            {"save_steps": 0},
            ["'tasks.0.training.save_steps'", "greater"],
        ),
        (
            "tasks.0.training",
            {"learning_rate": 1e308},
            ["learning_rate'", "equal to 1000000"],
        ),
        ("method", {"name": "seqlora", "target_modules": []}, ["'method.target_mod", "an entry"]),
        (
            "method",
            {"name": "sapt", "router": {"rate": 1e308}},
            ["'method.router.rate'", "1000000"],
        ),
        ("method", {"name": "sapt", "router": {"hidden": 10**13}}, ["router.hidden'", "1000000"]),
        ("method", {"name": "sapt", "generator": {"share": 1e308}}, ["share'", "1000000"]),
        ("method", {"name": "amlora", "selector": {"rate": 1e300}}, ["selector.rate'", "1000000"]),
        ("method", {"name": "l2p", "pool_size": 10**13}, ["'method.pool_size'", "1000000"]),
        ("training.lr_scheduler_type", "up", ["'training.lr_scheduler_type'", "'constant'"]),
        ("training", None, ["'training'", "should be a valid dictionary"]),
        ("order", [1, 1], ["'order'", "each number from 1 to 1 once"]),
        ("order", "backwards", ["'order'", "'reversed'"]),
        ("seed", -1, ["'seed'", "greater than or equal to 0"]),
        ("seed", 2**32, ["'seed'", "less than 4294967296"]),
        ("evaluation.limit", 0, ["'evaluation.limit'", "greater than 0"]),
        ("prompt", {"chat_template": True}, ["no chat template; set prompt.chat_template: false"]),
        ("backbone", ..., ["'backbone'", "add it"]),
        (
            "method",
            {"name": "sapt", "router": {"top_k": 1}},
            ["'method.router.top_k'", "greater than or equal to 2"],
        ),
        ("training.bf16", "perhaps", ["'training.bf16'", "should be true, false or auto"]),
        ("backbone.device", "cuda", ["backbone.device 'cuda': "]),
        ("backbone.device", "cuda:1", ["backbone.device 'cuda:1'", "set CUDA_VISIBLE_DEVICES"]),
        (
            "method",
            {"name": "l2p", "pool_size": 3},
            ["field 'method': picked (5) is more than pool_size (3); lower it"],
        ),
        ("backbone.dtype", "int1", ["'backbone.dtype'", "'float32'"]),
        ("backbone.name", "nothing.gguf", ["nothing.gguf: no such file; check the path"]),
        ("backbone.name", "copy.jsonl", ["copy.jsonl: neither a model folder nor a .gguf file"]),
        ("backbone.name", "run", ["run: this folder is not a model", "name a folder saved by"]),
        ("output", ..., ["no field 'output'; add it, or name a folder with --output"]),
        ("output", "", ["'output'", "at least 1 character"]),
        ("output", 5, ["'output'", "valid string"]),
        ("output", "a\0b", ["'output'", "a path, which has no null character"]),
        ("output", "run", ["run: already holds a run; continue it with --resume", "--output"]),
        ("output", "copy.jsonl", ["copy.jsonl: is a file", "name a run's folder"]),
        ("output", "copy.jsonl/x", ["copy.jsonl: is a file", "name a run's folder"]),
        ("output", "/proc/x/y", ["/proc/x/y: cannot be written", "choose another"]),
        ("tasks", ..., ["no field 'tasks'; list at least one"]),
        ("tasks", [], ["no field 'tasks'; list at least one"]),
        ("tasks.0", "copy.jsonl", ["'tasks.0'", "should be a valid dictionary"]),
        ("tasks.0.path", ..., ["'tasks.0.path'", "add it"]),
        ("tasks.0.path", "gone.jsonl", ["gone.jsonl: no such file; check the path"]),
        ("tasks.0.path", "x" * 300, ["xxx: no such file; check the path"]),
        ("tasks.0.name", "", ["'tasks.0.name'", "is empty; give another"]),
        ("tasks.0.name", "\ud800", ["task '\\ud800': its name is not Unicode", "another 'name'"]),
        ("tasks.0.path", "run", ["run: is a folder; name a file in it"]),
        ("tasks.0.path", "exp.yaml", ["exp.yaml: unknown suffix; use .jsonl, .csv or .parquet"]),
        ("tasks.0.test", "gone.jsonl", ["gone.jsonl: no such file; check the path"]),
        ("tasks.0.metric", "bleu", ["'tasks.0.metric': unknown; choose one of exact_match"]),
        ("tasks.0.reader", "xml", ["'tasks.0.reader'", "'superni'"]),
        ("tasks.0.reader", "superni", ["'tasks.0'", "'superni' does not take 'test'; remove it"]),
        ("tasks.0.train_limit", 0, ["'tasks.0.train_limit'", "greater than 0"]),
        ("tasks.0.columns", {"answer": "label"}, ["copy.jsonl, line 1: no field 'label'", "'col"]),
        ("tasks.0.columns", {"reply": "label"}, ["'tasks.0.columns.reply", "'prompt' or 'answer'"]),
        (
            "tasks",
            [{"path": "copy.jsonl"}, {"path": "letter.jsonl", "name": "copy"}],
            ["tasks: two are named 'copy'; give one another 'name'"],
        ),
    ],
)
def test_bad_field(
    place: Path, backbone_folder: Backbones, field: str, value: Any, says: list[str]
) -> None:
    values = settings(backbone_folder("llama"), "copy")
    put(values, field, value)
    refused("run", write_settings(place / "bad.yaml", values), says=says)


def bomb() -> bytes:
    """A value of a few hundred letters that is a billion words when it is written out."""
    layers = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    return f"[&a0 [x], {', '.join(layers)}]".encode()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"seed: 1\ntasks: [\noutput: x", ["line 3: not valid YAML", "correct it"]),
        (b"seed: 1\n\tseed: 2", ["line 2: not valid YAML"]),
        (b"seed: 1\n# \xe9\n", ["line 2: not UTF-8 text; save the file as UTF-8"]),
        (b"seed: \0", ["not valid YAML", "correct it"]),
        (b"seed: 2020-13-45", ["not valid YAML", "correct it"]),
        (b"backbone: " + bomb(), ["'backbone'", "valid dictionary", "[['x'], [['x']"]),
        (b"backbone: x\nmethod: {name: " + bomb() + b"}", ["'method.name': no method [['x']"]),
        (b"seed: !!python/name:os.system", ["line 1: not valid YAML"]),
        (b"", ["no fields; it needs 'backbone', 'method' and 'tasks'"]),
        (b"- a\n- b", ["no fields; it needs"]),
    ],
)
def test_bad_yaml(place: Path, content: bytes, says: list[str]) -> None:
    (place / "bad.yaml").write_bytes(content)
    refused("run", "bad.yaml", says=["bad.yaml", *says])


def test_config_that_is_missing_or_a_folder() -> None:
    refused("run", "gone.yaml", says=["gone.yaml: no such file; check the path"])
    refused("run", "run", says=["run: cannot be read (Is a directory); check the path"])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("seed", ["--set seed: expected FIELD=VALUE, such as training.max_steps=50"]),
        ("training.surprise=1", ["unknown field 'training.surprise'", "use one of: max_steps"]),
        ("training.max_steps=many", ["'training.max_steps'", "valid integer", "got 'many'"]),
        ("tasks.7.metric=x", ["--set tasks.7.metric=x: no such field; check its name"]),
        ("tasks.first.metric=x", ["--set tasks.first.metric=x: no such field"]),
        ("seed=[1", ["--set seed=[1: '[1' is not valid YAML (expected", "quote it"]),
        ("=1", ["unknown field ''", "use one of: backbone"]),
        ("output=run", ["run: already holds a run"]),
    ],
)
def test_bad_change(change: str, says: list[str]) -> None:
    refused("run", "exp.yaml", "--set", change, says=says)


# -- task files


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ["copy.jsonl: the task is empty; give it at least one line"]),
        (b"\n \n", ["copy.jsonl: the task is empty"]),
        (GOOD, ["task 'copy': no training examples; give it more lines"]),
        (GOOD + b"\n{'prompt': 1}\n", ["copy.jsonl, line 3: not valid JSON", "one JSON object"]),
        (GOOD + b'{"prompt": "\xe9"}', ["copy.jsonl, line 2: not UTF-8 text; save the file as"]),
        (GOOD + b'["p", "a"]', ["copy.jsonl, line 2: expected an object with 'prompt' and"]),
        (GOOD + b'{"answer": "a"}', ["line 2: no field 'prompt'", "(fields: answer)", "add it"]),
        (b'{"prompt": "p"}', ["line 1: no field 'answer'", "(fields: prompt)", "add it"]),
        (b'{"prompt": "p", "answer": " "}', ["line 1: field 'answer' is empty; give it a text"]),
        (b'{"prompt": "p", "answer": []}', ["line 1: field 'answer' must be a text or a list"]),
        (b'{"prompt": "p", "answer": {}}', ["line 1: field 'answer' must be a text or a list"]),
        (b'{"prompt": "p", "answer": true}', ["line 1: field 'answer' must be a text or a list"]),
        (b'{"prompt": "p", "answer": NaN}', ["line 1: field 'answer' must be a text or a list"]),
        (b'{"prompt": "p", "answer": ["a", ""]}', ["line 1: field 'answer' has an empty text"]),
        (b'{"prompt": "p", "answer": "\\u200b"}', ["line 1: field 'answer' has an empty text"]),
        (b'{"prompt": "\\u200b ", "answer": "a"}', ["line 1: field 'prompt' has an empty text"]),
        (b'{"prompt": 3, "answer": "a"}', ["line 1: field 'prompt' must hold a text"]),
        (b'{"prompt": "", "answer": "a"}', ["line 1: field 'prompt' must hold a text"]),
        (b'{"prompt": "\\ud800", "answer": "a"}', ["line 1: half a character", "remove it"]),
        (b'{"messages": [{"role": "user"}]}', ["line 1: each of 'messages' needs a 'role'"]),
    ],
)
@pytest.mark.parametrize("command", ["run", "learn"])
def test_bad_task_file(place: Path, command: str, content: bytes, says: list[str]) -> None:
    (place / "copy.jsonl").write_bytes(content)
    arguments = ["run", "exp.yaml"] if command == "run" else ["learn", "run", "copy.jsonl"]
    refused(*arguments, "--output" if command == "run" else "--name", "copy", says=says)


def test_bad_test_file(place: Path) -> None:
    (place / "copy.test.jsonl").write_bytes(GOOD + b"{")
    refused("run", "exp.yaml", says=["copy.test.jsonl, line 2: not valid JSON"])


# -- backbones


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def drop_a_tensor(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    del tensors["model.norm.weight"]
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, ["model/model.safetensors: is damaged (", "restore it"]),
        (drop_a_tensor, ["has no weights for model.norm.weight; restore its files"]),
        (lambda folder: (folder / "model.safetensors").unlink(), ["s: no such file; restore"]),
        (lambda folder: (folder / "config.json").write_text("{"), ["not readable as JSON"]),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), ["cannot be loaded"]),
        (lambda folder: (folder / "tokenizer.json").unlink(), ["cannot be loaded"]),
    ],
)
def test_damaged_model_folder(
    place: Path, backbone_folder: Backbones, damage: Callable[[Path], Any], says: list[str]
) -> None:
    shutil.copytree(backbone_folder("llama"), place / "model")
    damage(place / "model")
    refused("run", "exp.yaml", "--set", "backbone=model", says=["backbone 'model': ", *says])


def test_a_dry_run_refuses_what_a_run_refuses(place: Path, backbone_folder: Backbones) -> None:
    shutil.copytree(backbone_folder("llama"), place / "model")
    asked = ["run", "exp.yaml", "--set", "backbone=model", "--dry-run"]
    assert call(*asked).status == 0
    truncate(place / "model")
    status, _, err = call(*asked)
    assert (status, err.count("\n")) == (2, 1)
    assert "model.safetensors: is damaged" in err


def test_damaged_gguf_file(place: Path) -> None:
    (place / "model.gguf").write_bytes(b"GGUF\x03\0\0\0")
    refused("run", "exp.yaml", "--set", "backbone=model.gguf", says=["'model.gguf': cannot be"])


# -- runs


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("training.max_steps=3", ["training.max_steps: 2 is now 3"]),
        ("method.rank=4", ["method.rank: 2 is now 4"]),
        ("method.alpha=4", ["method.alpha: 16.0 is now 4"]),
        ("seed=1", ["seed: 0 is now 1"]),
        ("evaluation.limit=1", ["evaluation.limit: 3 is now 1"]),
        ("backbone.dtype=bfloat16", ["backbone.dtype: float32 is now bfloat16"]),
        ("tasks.0.path=letter.jsonl", ["task 1 (copy): path: copy.jsonl is now letter.jsonl"]),
    ],
)
def test_resume_with_other_settings(change: str, says: list[str]) -> None:
    says = ["run: was started with other settings", "use the same ones, or another --out", *says]
    refused("run", "exp.yaml", "--output", "run", "--resume", "--set", change, says=says)


def test_resume_with_a_tracker_that_is_missing() -> None:
    """A setting that may change; but the run does not take it over before it is checked."""
    change = "training.report_to=[mlflow]"
    says = ["training.report_to: mlflow is not installed"]
    refused("run", "exp.yaml", "--output", "run", "--resume", "--set", change, says=says)


@pytest.mark.parametrize("command", ["eval", "generate", "report", "verify", "learn"])
@pytest.mark.parametrize(
    ("folder", "says"),
    [
        ("gone", ["gone: no such run folder; check the path"]),
        ("empty", ["empty: not a run (it has no manifest.json); check the path"]),
        ("exp.yaml", ["exp.yaml: is a file, not a folder; name a run's folder"]),
    ],
)
def test_folder_that_is_no_run(place: Path, command: str, folder: str, says: list[str]) -> None:
    (place / "empty").mkdir()
    more = {"generate": ["p"], "learn": ["letter.jsonl"]}.get(command, [])
    refused(command, folder, *more, says=says)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("manifest.json", ["verify", "run"]),
        ("config.yaml", ["eval", "run"]),
        ("tasks/01-copy/adapter_model.safetensors", ["eval", "run"]),
        ("tasks/01-copy/adapter_model.safetensors", ["generate", "run", "p"]),
        ("tasks/01-copy/adapter_model.safetensors", ["learn", "run", "letter.jsonl"]),
        ("tasks/01-copy/adapter_config.json", ["run", "exp.yaml", "--output=run", "--resume"]),
        ("tasks/01-copy/test.jsonl", ["eval", "run"]),
        ("tasks/01-copy/task.json", ["report", "run"]),
        ("tasks/01-copy/evaluation.json", ["report", "run"]),
        ("scores.json", ["report", "run"]),
        ("environment.json", ["eval", "run"]),
    ],
)
def test_damaged_run(place: Path, name: str, arguments: list[str]) -> None:
    path = place / "run" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refused(*arguments, says=[f"run/{name}: ", "damaged (its checksum does not match); "])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["letter.jsonl", "--name", "copy"], ["'copy': already learned; give the new one another"]),
        (["copy.jsonl"], ["task 'copy': already learned"]),
        (["letter.jsonl", "--metric", "nonsense"], ["'metric': unknown; choose one of exact_m"]),
        (["letter.jsonl", "--test", "gone.jsonl"], ["gone.jsonl: no such file; check the path"]),
        (["gone.jsonl"], ["gone.jsonl: no such file; check the path"]),
    ],
)
def test_bad_learn(arguments: list[str], says: list[str]) -> None:
    refused("learn", "run", *arguments, says=says)


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["pertask", "p"], b"", ["needs the task's name (--task); it knows copy"]),
        (["pertask", "p", "--task", "x"], b"", ["task 'x'", "has not learned it; name one of"]),
        (["run", "p", "--task", "x"], b"", ["task 'x'", "has not learned it; name one of"]),
        (["run", ""], b"", ["generate: an empty prompt; give it a text"]),
        (["run", "a", " \n"], b"", ["generate: an empty prompt"]),
        (["run", "-"], b"\n\n", ["generate: an empty prompt"]),
        (["run", "-"], b"caf\xe9\n", ["generate: a prompt is not UTF-8 text; convert it"]),
        (["run", "caf\udce9"], b"", ["generate: a prompt is not UTF-8 text; convert it"]),
    ],
)
def test_bad_generate(arguments: list[str], stdin: bytes, says: list[str]) -> None:
    refused("generate", *arguments, stdin=stdin, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--single", "run"], ["run: its method is seqlora; give a run of pertask"]),
        (["run", "--single", "gone"], ["gone: no such run folder; check the path"]),
        (["run", "pertask"], ["several runs need --output FILE"]),
        (["run", "--output", "pertask"], ["pertask: cannot be written", "choose another"]),
    ],
)
def test_bad_report(arguments: list[str], says: list[str]) -> None:
    refused("report", *arguments, says=says)


# -- the command itself


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["Missing command; see retain --help"]),
        (["frobnicate"], ["No such command 'frobnicate'"]),
        (["run"], ["Missing argument 'FILE…'; see retain run --help"]),
        (["run", "exp.yaml", "--frob"], ["No such option: --frob"]),
        (["run", "exp.yaml", "--output"], ["--output"]),
        (["eval", "run", "--limit", "0"], ["--limit"]),
        (["eval", "run", "--limit", "x"], ["--limit"]),
        (["eval", "run", "more"], ["more"]),
        (["generate", "run"], ["Missing argument 'PROMPT…'"]),
    ],
)
def test_bad_command(arguments: list[str], says: list[str]) -> None:
    refused(*arguments, says=[*says, " --help"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("training.max_steps=3", ["was started with other settings"]),
        ("backbone=no/such-model", ["backbone 'no/such-model': cannot be loaded"]),
    ],
)
def test_real_process(place: Path, change: str, says: list[str]) -> None:
    output = "run" if "steps" in change else "new"
    arguments = ["run", "exp.yaml", "--output", output, "--resume", "--set", change]
    plain = {key: value for key, value in os.environ.items() if key != "TQDM_DISABLE"}
    before = snapshot(place)
    done = subprocess.run(
        [sys.executable, "-c", "from retain.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        env={**plain, "HF_HUB_OFFLINE": "1"},
    )
    check(Called(done.returncode, done.stdout, done.stderr), says)
    assert snapshot(place) == before
