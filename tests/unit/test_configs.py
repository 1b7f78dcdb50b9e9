"""Every experiment in configs/ is valid and says how it is run; make.py makes most of them."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.make import STREAMS, files, orders
from retain.experiment.config import check_method, read_experiment

FOLDER = Path(__file__).parents[2] / "configs"
CONFIGS = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_is_valid(name: str) -> None:
    experiment = read_experiment(FOLDER / name)
    check_method(experiment.method, name)
    assert experiment.tasks
    assert f"configs/{name}" in (FOLDER / name).read_text() or name == "demo.yaml"


def test_what_is_made_is_what_is_there() -> None:
    there = {name for name in CONFIGS if name.startswith(("paper/", "smollm2/"))}
    made = files()
    assert there == set(made), "run python configs/make.py, and delete what it does not write"
    for name, text in made.items():
        assert (FOLDER / name).read_text() == text, f"{name}: run python configs/make.py"


PUBLISHED = """
sapt/superni/t5-large-sapt: {method.rank: 4, method.alpha: 32, method.reflection.weight: 0.5,
  training.learning_rate: 3.0e-4, training.num_train_epochs: 100, prompt.max_prompt_tokens: 512,
  prompt.max_answer_tokens: 50, training.lr_scheduler_type: constant,
  training.per_device_train_batch_size: 8, training.gradient_accumulation_steps: 4}
sapt/long-sequence/t5-large-sapt: {method.rank: 8, method.alpha: 32, method.reflection.weight: 0.1,
  training.learning_rate: 3.0e-4, training.num_train_epochs: 10}
sapt/superni/llama-2-7b-sapt: {method.rank: 4, method.alpha: 32, method.reflection.weight: 1,
  training.learning_rate: 5.0e-5, training.num_train_epochs: 50, prompt.max_prompt_tokens: 1024}
sapt/long-sequence/llama-2-7b-sapt: {method.rank: 4, method.reflection.weight: 2,
  training.learning_rate: 5.0e-5, tasks.1.training.max_steps: 100, tasks.5.training.max_steps: 500}
sapt/superni/t5-large-l2p: {method.rate: 1, training.learning_rate: 0.03}
sapt/superni/t5-large-progprompt: {method.length: 10, method.hidden: 800, method.rate: 1,
  training.learning_rate: 0.3, training.weight_decay: 1.0e-5}
sapt/superni/t5-large-lfpt5: {method.length: 300, method.rate: 1, method.distillation: 0.01,
  method.writing.weight: 0.25, method.writing.top_k: 64, training.learning_rate: 0.5,
  training.optim: adafactor}
amlora/long-sequence/t5-large-olora: {training.num_train_epochs: 1, training.learning_rate: 1.0e-3,
  method.weight: 0.5, training.per_device_train_batch_size: 8,
  training.gradient_accumulation_steps: 8, training.lr_scheduler_type: constant,
  prompt.max_prompt_tokens: 512, prompt.max_answer_tokens: 50}
seekr/superni-12/llama-2-7b-chat-seekr: &seekr {method.budget.layers: 24, method.budget.heads: 128,
  method.budget.queries: 100, method.logit_weight: 0.5, method.attention_weight: 1000,
  method.replay.share: 0.01, training.learning_rate: 1.0e-5, seed: 1234,
  training.lr_scheduler_type: constant, prompt.max_prompt_tokens: 1024}
seekr/trace/llama-2-7b-chat-seekr: *seekr
seekr/trace/vicuna-7b-v1.5-seekr: *seekr
"""
"""What the papers and their code have: copied from there, not from what makes the files."""


@pytest.mark.parametrize(("name", "numbers"), yaml.safe_load(PUBLISHED).items())
def test_published_numbers_are_in_the_files(name: str, numbers: dict[str, Any]) -> None:
    values = yaml.safe_load((FOLDER / f"paper/{name}.yaml").read_text())
    assert {field: value_of(values, field) for field in numbers} == numbers


def test_ten_percent_of_replay_has_a_smaller_weight() -> None:
    text = (FOLDER / "paper/seekr/trace/vicuna-7b-v1.5-seekr.yaml").read_text()
    (line,) = (line for line in text.splitlines() if "method.replay.share=0.1" in line)
    assert "method.attention_weight=100 " in line


def value_of(values: Any, field: str) -> Any:
    """Of a.b.c; a KeyError where the file leaves it to a default."""
    for key in field.split("."):
        values = values[int(key) if key.isdigit() else key]
    return values


SAPT_METHODS = "seqlora replay l2p lfpt5 progprompt olora sapt-prompt sapt pertask"
AMLORA_METHODS = (
    "seqft seqlora inclora replay ewc lwf l2p lfpt5 progprompt olora pertask multitask amlora"
)
SEEKR_METHODS = "seqft lwf lfpt5 l2p progprompt olora replay derpp seekr"
REPORTED = {
    "sapt/superni/t5-large": SAPT_METHODS,
    "sapt/superni/llama-2-7b": SAPT_METHODS,
    "sapt/long-sequence/t5-large": SAPT_METHODS,
    "sapt/long-sequence/llama-2-7b": SAPT_METHODS,
    "amlora/cl-standard/t5-large": AMLORA_METHODS,
    "amlora/cl-standard/llama-2-7b": AMLORA_METHODS,
    "amlora/long-sequence/t5-large": AMLORA_METHODS,
    "amlora/long-sequence/llama-2-7b": AMLORA_METHODS,
    "seekr/superni-12/llama-2-7b-chat": SEEKR_METHODS,
    "seekr/trace/llama-2-7b-chat": f"{SEEKR_METHODS} ewc multitask",
    "seekr/trace/vicuna-7b-v1.5": f"{SEEKR_METHODS} ewc multitask",
}
TITLES = {"sapt": "in SAPT (", "amlora": "in AM-LoRA (", "seekr": "in SEEKR ("}


def test_every_reported_method_has_its_files_each_of_one_paper() -> None:
    papers, small = {}, set()
    for place, methods in REPORTED.items():
        paper, stream, _ = place.split("/")
        for method in methods.split():
            papers[f"paper/{place}-{method}.yaml"] = paper
            small.add(f"smollm2/{stream}-{method}.yaml")
    assert {name for name in CONFIGS if name.startswith(("paper/", "smollm2/"))} == {
        *papers,
        *small,
    }
    for name, paper in papers.items():
        title = (FOLDER / name).read_text().split("#   retain run")[0].replace("\n# ", " ")
        assert [key for key, words in TITLES.items() if words in title] == [paper], name


def test_every_file_writes_its_rate_and_prompts_of_7b_models_learn_slowly() -> None:
    for name in files():
        values = yaml.safe_load((FOLDER / name).read_text())
        rate = value_of(values, "training.learning_rate")
        method = values["method"]
        if "7b" in name and method["name"] in ("l2p", "lfpt5", "progprompt", "sapt-prompt"):
            assert rate * method["rate"] <= 0.01, name


def test_no_two_files_write_to_one_folder() -> None:
    outputs = [read_experiment(FOLDER / name).output for name in files()]
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("name", sorted(files()))
def test_a_head_has_the_command_and_changes_that_work(name: str) -> None:
    path = FOLDER / name
    comments = [line[1:] for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"   retain run configs/{name}" in comments
    folder, rest = name.split("/", 1)
    stream = rest.split("/")[1] if folder == "paper" else longest(rest)
    written = [read_experiment(path).output]
    for line in (line for line in comments if "--set" in line):
        words = shlex.split(line)
        changes = [word for before, word in pairwise(words) if before == "--set"]
        tasks = read_experiment(path, changes).tasks
        written += [word for before, word in pairwise(words) if before == "--output"]
        if words[0] == "order":
            order = orders(stream)[words[1].strip(":")]
            assert [Path(task.path).name for task in tasks] == list(order)
            apart = name.startswith("paper/") and "multitask" not in name  # learned together
            longer = [star and apart for star in order.values()]
            own = [task.training.model_fields_set if task.training else () for task in tasks]
            assert ["num_train_epochs" in fields for fields in own] == longer
    # A change is an experiment of its own: in the folder of another it is refused.
    assert len(set(written)) == 1 + sum("--set" in line for line in comments)


def longest(name: str) -> str:
    """The stream that a file of smollm2 begins with."""
    return max((stream for stream in STREAMS if name.startswith(f"{stream}-")), key=len)
