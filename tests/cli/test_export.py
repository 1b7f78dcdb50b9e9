"""What is exported answers as the run does, in plain transformers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from retain import RetainError
from retain.backbone import Backbone
from retain.export import export
from retain.learner.learner import Learner
from retain.tasks import Example
from retain.testing.tiny import make_backbone, make_learner, make_task, read_files, save_backbone
from tests.command import call

FIRST, SECOND = make_task("copy"), make_task("constant")


def learned(method: str, kind: str, folder: Path) -> Learner:
    learner = make_learner(method, make_backbone(kind), folder)
    for task in (FIRST, SECOND):
        learner.learn(task)
    return learner


def logits(backbone: Backbone, *examples: Example) -> Tensor:
    """Of the answers to the examples, or all test examples of the first task."""
    batch = backbone.collate([backbone.encode(e) for e in examples or FIRST.test])
    with torch.no_grad():
        return backbone.answer_logits(batch)[0]


def plain(folder: Path, kind: str) -> Backbone:
    """The exported model as anybody loads it."""
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return Backbone(model, AutoTokenizer.from_pretrained(folder), "plain")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize(
    ("method", "mixture"),
    [
        ("pertask", {"copy": 1.0}),
        ("sapt", {"copy": 0.25, "constant": 0.75}),
        ("seqlora", None),
        ("inclora", None),
        ("seqft", None),
    ],
)
def test_a_merged_model_is_the_mixture(
    method: str, mixture: dict[str, float] | None, kind: str, tmp_path: Path
) -> None:
    learner = learned(method, kind, tmp_path / "run")
    batch = learner.backbone.collate([learner.backbone.encode(e) for e in FIRST.test])
    if mixture is None:
        learner.method.route(batch)
    else:
        weights = [mixture.get(name, 0.0) for name in ("copy", "constant")]
        learner.method.pool.use(torch.tensor(weights).expand(len(FIRST.test), -1))
    expected = logits(learner.backbone)
    said = export(learner, tmp_path / "out", mixture)
    assert said.startswith(f"wrote {tmp_path / 'out'}: one model")
    torch.testing.assert_close(logits(plain(tmp_path / "out", kind)), expected, rtol=0, atol=1e-4)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "after constant" in card
    assert "base_model: " in card
    assert "library_name: transformers" in card
    averages = ["on average" in card, "higher is better" in card]
    assert averages == [mixture is None] * 2  # or they are the routed run's
    assert ("those of the routed run" in card) == (mixture is not None)
    for name, weight in (mixture or {}).items():
        assert f"{name} × {weight:g}" in card


def test_adapters_are_those_of_the_run(tmp_path: Path) -> None:
    learner = learned("sapt", "llama", tmp_path / "run")
    (tmp_path / "out").mkdir()
    said = export(learner, tmp_path / "out", None)
    assert "2 PEFT adapters, one per task. The run weights them for each prompt, so" in said
    assert said.endswith("to merge anyway use --task or --mixture")
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for folder in learner.run.learned():
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            copied = tmp_path / "out" / folder.name / name
            assert copied.read_bytes() == (folder / name).read_bytes()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
def test_soft_prompts_load_with_plain_peft(tmp_path: Path) -> None:
    learner = learned("sapt-prompt", "llama", tmp_path / "run")
    said = export(learner, tmp_path / "out", None)
    assert said.endswith("no single merged model is equivalent")  # and a mixture cannot be merged
    for number, source in enumerate(learner.run.learned()):
        fresh = make_backbone("llama")
        peft = PeftModel.from_pretrained(fresh.model, tmp_path / "out" / source.name)
        for example in FIRST.test:
            learner.method.pool.use_block(1, number)
            expected = logits(learner.backbone, example)
            bare = fresh.collate([fresh.encode(example)])
            inputs = {key: bare[key] for key in ("input_ids", "attention_mask")}
            with torch.no_grad():
                found = peft(**inputs).logits[:, -expected.shape[1] - 1 : -1]
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    ("method", "mixture"),
    [("seqlora", None), ("pertask", {"copy": 1.0}), ("pertask", None), ("sapt-prompt", None)],
)
def test_the_card_loads_it(
    method: str,
    mixture: Mapping[str, float] | None,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_backbone(kind, Path("base"))
    learner = make_learner(method, Path("base"), tmp_path / "run", max_steps=1)
    learner.learn(FIRST)
    export(learner, Path("out"), mixture)
    card = Path("out/README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    assert len(code.splitlines()) == 3
    found: dict[str, Any] = {}
    exec(code, found)
    assert isinstance(found["model"], PeftModel) == ("library_name: peft" in card)


def test_a_weight_is_a_finite_number(tmp_path: Path) -> None:
    learner = learned("sapt", "llama", tmp_path / "run")
    for weight in (float("nan"), float("-inf"), 1e39):
        with pytest.raises(RetainError, match=r"mixture: the weight of 'copy' is .*; give a "):
            export(learner, tmp_path / "out", {"constant": 0.5, "copy": weight})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_task_and_a_mixture_are_not_merged(tmp_path: Path) -> None:
    done = call("export", tmp_path, tmp_path / "out", "--task", "copy", "--mixture", "copy=0.5")
    assert done.status == 2
    assert done.err == "error: export: --task and --mixture exclude each other; give one of them\n"


def test_a_task_has_one_weight(tmp_path: Path) -> None:
    done = call("export", tmp_path, tmp_path / "out", "--mixture", "a=1", "--mixture", "a=0.5")
    assert done.status == 2
    assert done.err == "error: --mixture a=0.5: 'a' has a weight already; give it one\n"


@pytest.mark.parametrize(
    ("method", "mixture", "says"),
    [
        ("sapt", {"nothing": 1.0}, "no task 'nothing'; name one of copy, constant"),
        ("seqlora", {"copy": 1.0}, "one set of weights only; leave out task and mixture"),
        ("l2p", None, "keeps neither blocks that stand alone nor a full model"),
        ("l2p", {"copy": 1.0}, "keeps neither blocks that stand alone nor a full model"),
        ("sapt-prompt", {"copy": 1.0}, "soft prompts cannot be merged into weights"),
    ],
)
def test_what_cannot_be_exported_is_refused(
    method: str, mixture: dict[str, float] | None, says: str, tmp_path: Path
) -> None:
    learner = learned(method, "llama", tmp_path / "run")
    with pytest.raises(RetainError, match=says):
        export(learner, tmp_path / "out", mixture)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_is_written_over(tmp_path: Path) -> None:
    learner = learned("seqlora", "llama", tmp_path / "run")
    with pytest.raises(RetainError, match="is not an empty folder; name another one"):
        export(learner, tmp_path / "run", None)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".out.retain-export.{ended.pid}.tmp"  # of a command that was killed
    others = tmp_path / ".out.tmp"
    for folder in (left, others):
        (folder / "out").mkdir(parents=True)
    export(learner, tmp_path / "out", None)
    assert sorted(path.name for path in tmp_path.glob(".*")) == [others.name]


def test_an_empty_folder_that_cannot_be_replaced_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a link, or a volume of a container, which nobody can delete or rename to."""
    learner = learned("pertask", "llama", tmp_path / "run")
    (tmp_path / "volume").mkdir()
    (tmp_path / "link").symlink_to("volume")
    before = (tmp_path / "volume").stat().st_ino
    monkeypatch.setattr(Path, "rmdir", lambda path: pytest.fail(f"{path} was deleted"))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / "volume" / f".link.retain-export.{ended.pid}.tmp").mkdir()  # of a killed export
    export(learner, tmp_path / "link", None)
    assert (tmp_path / "volume").stat().st_ino == before
    export(learner, tmp_path / "new", None)
    assert read_files(tmp_path / "volume").keys() == read_files(tmp_path / "new").keys()


def test_any_other_empty_folder_is_replaced_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed export leaves all of it or nothing."""
    learner = learned("pertask", "llama", tmp_path / "run")
    (tmp_path / "out").mkdir()
    moved: list[Path] = []
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda a, b: [moved.append(Path(b)), rename(a, b)][1])
    export(learner, tmp_path / "out", None)
    assert [path for path in moved if path.is_relative_to(tmp_path / "out")] == [tmp_path / "out"]


@pytest.mark.parametrize("name", ["", "file", "broken"])
def test_a_target_is_looked_at_before_the_model(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken").symlink_to("nowhere")
    done = call("export", tmp_path / "no run", tmp_path / name)
    assert done.status == 2
    assert done.err == f"error: {tmp_path / name}: is not an empty folder; name another one\n"
