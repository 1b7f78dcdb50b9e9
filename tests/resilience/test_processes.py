"""Two processes that learn together leave what one process with the same batches leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, load_file

from retain.backbone import BackboneConfig, load_backbone
from retain.methods.derpp import DerPp
from retain.methods.seekr import Seekr
from retain.system import processes
from retain.testing.tiny import VARIANTS, make_backbone, make_learner, make_task, read_files
from tests.command import call, settings, write_settings, write_tasks

NAMES = ("copy", "constant")
NUMBERS = ("one", "two")
MAPS = Path("/proc/self/maps")


def learn(variant: str, folder: Path, size: int, accumulation: int = 1) -> None:
    """Learns two tasks without dropout, whose masks would be others in other batches."""
    backbone = make_backbone("llama")
    for module in backbone.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    learner = make_learner(
        variant,
        backbone,
        folder,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        optim="sgd",
    )
    if isinstance(learner.method, Seekr | DerPp):  # half precision makes rounding visible
        teacher = learner.method.teacher
        learner.method.teacher = teacher.model_copy(update={"dtype": "float32", "top_k": None})
    for name in NAMES:
        learner.learn(make_task(name))


def launch(*arguments: str) -> None:
    """Two processes of a module."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*command, "--standalone", "-m", *arguments],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "is deprecated" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "variant",
    [
        *("sapt", "sapt-hidden", "sapt-lowest-loss", "amlora"),
        *("seqft", "ewc", "lwf", "replay", "derpp", "seekr"),
    ],
)
def test_two_processes_learn_what_one_learns(variant: str, tmp_path: Path) -> None:
    learn(variant, tmp_path / "one", 6)
    launch("tests.resilience.test_processes", variant, str(tmp_path / "two"), "3")
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_square_the_gradients_of_one_that_accumulates(tmp_path: Path) -> None:
    """EWC's information on micro-batches: the same ones, in one process or in two."""
    learn("ewc-trace", tmp_path / "one", 3, accumulation=2)
    launch("tests.resilience.test_processes", "ewc-trace", str(tmp_path / "two"), "3")
    assert_same(tmp_path / "one", tmp_path / "two")
    one, two = (load_file(next(tmp_path.glob(f"{n}/tasks/*/fisher.safetensors"))) for n in NUMBERS)
    assert one.keys() == two.keys()
    for name, expected in one.items():  # small numbers, which assert_same would take for 0
        assert expected.max() > 0
        torch.testing.assert_close(
            two[name], expected, rtol=1e-3, atol=1e-3 * expected.max().item()
        )


@pytest.mark.slow
def test_the_launched_command_is_one_process_that_accumulates(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Stopped between two tasks, each of which has a last batch of fewer rows."""
    backbone = tmp_path / "backbone"
    shutil.copytree(backbone_folder("llama"), backbone)
    model = json.loads((backbone / "config.json").read_text())
    (backbone / "config.json").write_text(json.dumps({**model, "attention_dropout": 0.0}))
    write_tasks(tmp_path)
    values = settings(backbone, *NAMES)
    values["tasks"] = [{k: str(tmp_path / v) for k, v in task.items()} for task in values["tasks"]]
    values["method"] = {"name": "sapt", **VARIANTS["sapt"][1]}
    values["training"] |= {"max_steps": 3, "optim": "sgd"}
    whole = write_settings(tmp_path / "whole.yaml", values)
    first = write_settings(tmp_path / "first.yaml", {**values, "tasks": values["tasks"][:1]})
    accumulated = "training.gradient_accumulation_steps=2"
    assert call("run", whole, "--output", tmp_path / "one", "--set", accumulated).status == 0
    for config in (first, whole):
        launch("retain", "run", str(config), "--resume", "--output", str(tmp_path / "two"))
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("command", [("generate", "p"), ("serve",), ("export", "out")])
def test_what_one_process_does_is_not_done_twice(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    name, *more = command
    done = call(name, "run", *more)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(f"error: {name}: is the work of one process; give it without")


@pytest.mark.slow
def test_weights_stay_in_the_pages_of_their_file(
    backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Processes of a node share these pages, and one that loads or learns has no second copy."""
    folder = backbone_folder("llama")
    launch("tests.resilience.test_processes", str(folder), str(tmp_path / "run"))


def learn_and_look(folder: str, run: str) -> None:
    """Learns a task, and asserts that no weight of the backbone was copied or written over."""
    backbone = load_backbone(BackboneConfig(name=folder))
    weights = list(backbone.model.parameters())
    versions = [weight._version for weight in weights]
    assert processes.count() == 2
    make_learner("seqlora", backbone, Path(run)).learn(make_task("copy"))
    assert [weight._version for weight in weights] == versions
    mapped = [line.split()[0] for line in MAPS.read_text().splitlines() if "safetensors" in line]
    ranges = [[int(end, 16) for end in pages.split("-")] for pages in mapped]
    for weight in weights:
        assert any(start <= weight.data_ptr() < end for start, end in ranges)


def assert_same(a: Path, b: Path) -> None:
    """Files of the same names, with the same content up to rounding."""
    one, two = read_files(a), read_files(b)
    assert one.keys() - {".lock"} == two.keys() - {".lock"}
    for name in one:
        if name.endswith(".safetensors"):
            expected, found = load(one[name]), load(two[name])
            assert expected.keys() == found.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
        elif name == "scores.json" or "/predictions/" in name:
            assert answers(one[name]) == answers(two[name])
        elif name.endswith("/training.jsonl"):
            for a, b in zip(rows(one[name]), rows(two[name]), strict=True):
                assert a.pop("phase") == b.pop("phase")
                assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


def rows(content: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in content.splitlines()]


def answers(content: bytes) -> Any:
    """Without routing, which may differ by rounding."""
    if b"routing" not in content:
        return content
    return [{k: v for k, v in row.items() if k != "routing"} for row in rows(content)]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        learn_and_look(sys.argv[1], sys.argv[2])
        sys.exit()
    learn(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
