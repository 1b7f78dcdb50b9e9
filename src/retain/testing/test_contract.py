"""What every method promises, tested on every tiny backbone. Registered methods are included."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.pytorch_utils import Conv1D

from retain.backbone import Backbone, Batch, Features
from retain.layers.attentive_linear import Attending
from retain.layers.lora_pool import LoraPool
from retain.learner.learner import Learner
from retain.methods import METHODS, Phase, TaskContext
from retain.report.draw_sections import drawings, section_tables
from retain.runs.results import open_run
from retain.system.files import read_json
from retain.tasks import Task
from retain.testing.tiny import (
    KINDS,
    VARIANTS,
    context_of,
    make_backbone,
    make_learner,
    make_task,
    prompts_of,
    read_files,
)
from retain.training.parameters import release

RUN_FILES = (".lock", "config.yaml", "environment.json", "manifest.json", "scores.json")
FIRST, SECOND, THIRD = make_task("copy"), make_task("constant"), make_task("letter")


@dataclass
class Watch:
    """Records which tensors changed while a task was learned, by wrapping `method.phases`."""

    moved: list[str] = field(default_factory=list)
    """Tensors that changed in a phase whose groups do not hold them."""

    still: list[str] = field(default_factory=list)
    """Groups in which nothing changed."""

    released: set[int] = field(default_factory=set)
    """ids of all parameters that were in a group."""

    def wrap(self, model: nn.Module, phases: Callable[..., Iterator[Phase]]) -> object:
        def watched(task: Task, context: TaskContext) -> Iterator[Phase]:
            for phase in phases(task, context):
                groups = {
                    g.name: [(p, p.detach().clone()) for p in g.parameters] for g in phase.groups
                }
                moving = {id(p) for pairs in groups.values() for p, _ in pairs}
                self.released |= moving
                rest = [(n, t, t.clone()) for n, t in tensors(model) if id(t) not in moving]
                yield phase
                self.moved += [
                    f"{phase.name}: {n}" for n, t, old in rest if not torch.equal(t, old)
                ]
                for name, pairs in groups.items():
                    if all(torch.equal(p, old) for p, old in pairs):
                        self.still.append(f"{phase.name}: {name}")

        return watched


def tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


@dataclass
class Learned:
    """A learner that has learned two tasks, with what was recorded on the way."""

    method: str
    kind: str
    folder: Path
    learner: Learner
    watch: Watch
    answers_first: list[str]
    logits_first: Tensor
    unreleased: list[str]

    def load(self) -> Learner:
        return Learner.load(self.folder, backbone=make_backbone(self.kind))

    def loaded_copy(self, folder: Path) -> Learner:
        """Copies the run and loads it, for a test that changes it."""
        shutil.copytree(self.folder, folder)
        return Learner.load(folder, backbone=make_backbone(self.kind))


FAST_KINDS = ("llama", "t5")  # qwen3 differs from llama by little that a method meets
FAST_ON_GPT2 = ("sapt", "sapt-prompt", "amlora", "seekr", "seqft")
"""Methods with layers or attention of their own, and one without, for GPT-2's transposed layers."""


def is_fast(variant: str, kind: str) -> bool:
    """Whether the quick tests have this method, or method with options, on this backbone."""
    if variant not in METHODS:
        return False
    return kind in FAST_KINDS or (kind == "gpt2" and variant in FAST_ON_GPT2)


GRID = [
    pytest.param(
        (variant, kind),
        id=f"{variant}-{kind}",
        marks=() if is_fast(variant, kind) else pytest.mark.slow,
    )
    for variant, kind in product(VARIANTS, KINDS)
    if variant in METHODS or kind in ("llama", "t5")  # options rarely meet an architecture
]


@pytest.fixture(scope="module", params=GRID)
def learned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    method, kind = request.param
    folder = tmp_path_factory.mktemp("contract") / f"{method}-{kind}"
    learner = make_learner(method, make_backbone(kind), folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)  # a file of a relative path would be seen there
        return learn_two(method, kind, folder, learner)


def learn_two(method: str, kind: str, folder: Path, learner: Learner) -> Learned:
    """Learns two tasks, and records the first one's answers and what the second one changes."""
    learner.learn(FIRST)
    answers = learner.generate(prompts_of(FIRST), FIRST.name)
    logits = logits_of(learner, FIRST)
    model, watch = learner.backbone.model, Watch()
    before = [(name, p, p.detach().clone()) for name, p in model.named_parameters()]
    phases = learner.method.phases
    vars(learner.method)["phases"] = watch.wrap(model, phases)
    learner.learn(SECOND)
    del vars(learner.method)["phases"]
    unreleased = [
        name for name, p, old in before if id(p) not in watch.released and not torch.equal(p, old)
    ]
    return Learned(method, kind, folder, learner, watch, answers, logits, unreleased)


def prompts(backbone: Backbone, task: Task) -> list[Batch]:
    """Returns one batch for each test prompt of a task."""
    rows = [backbone.encode(example, with_answer=False) for example in task.test]
    return [backbone.collate([row]) for row in rows]


def logits_of(learner: Learner, task: Task) -> Tensor:
    """Returns the logits of a task's test answers, routed."""
    backbone = learner.backbone
    batch = backbone.collate([backbone.encode(example) for example in task.test])
    with torch.no_grad():
        learner.method.route(batch, task.name)
        return backbone.answer_logits(batch)[0]


def test_scores_are_a_triangle(learned: Learned) -> None:
    scores = json.loads((learned.folder / "scores.json").read_text())
    assert scores["tasks"] == [FIRST.name, SECOND.name]
    assert [len(row) for row in scores["matrix"]] == [1, 2]
    assert all(0 <= score <= 100 for score in scores["matrix"][-1])
    assert scores == learned.learner.scores


def test_a_loaded_learner_is_the_one_that_learned(learned: Learned) -> None:
    loaded = learned.load()
    for task in (FIRST, SECOND):
        assert torch.equal(logits_of(loaded, task), logits_of(learned.learner, task))
        asked = prompts_of(task), task.name
        assert loaded.answers(*asked) == learned.learner.answers(*asked)


def test_a_third_task_leaves_the_older_files(learned: Learned, tmp_path: Path) -> None:
    learner = learned.loaded_copy(tmp_path / "run")
    old = [folder.name for folder in learner.run.learned()]
    learner.learn(THIRD)
    assert len(old) == 2
    for name in old:
        before = read_files(learned.folder / "tasks" / name)
        for superseded in learner.method.traits.latest_only:
            before.pop(superseded, None)
        assert read_files(tmp_path / "run" / "tasks" / name) == before
    assert [len(row) for row in learner.scores["matrix"]] == [1, 2, 3]


def test_only_the_folders_of_tasks_are_written(learned: Learned) -> None:
    """Whatever else lies in a run's folder belongs to no task: a rollback would leave it behind."""
    run = learned.learner.run
    of_tasks = tuple(f"{folder.relative_to(learned.folder.parent)}/" for folder in run.learned())
    assert len(of_tasks) == 2
    others = {name for name in read_files(learned.folder.parent) if not name.startswith(of_tasks)}
    assert others <= {f"{learned.folder.name}/{name}" for name in RUN_FILES}


def test_what_a_run_shows_is_read(learned: Learned, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(learned.folder.parent)
    before = read_files(learned.folder.parent)
    run = open_run(learned.folder)
    for task in (None, FIRST.name, SECOND.name):
        for section in type(learned.learner.method).diagnostics(run, task):
            section_tables(section)
            list(drawings([section]))
    assert read_files(learned.folder.parent) == before


def test_only_the_groups_of_a_phase_move(learned: Learned) -> None:
    assert learned.watch.released
    assert learned.watch.moved == []
    assert learned.watch.still == []
    assert learned.unreleased == []


def test_a_method_that_does_not_forget_answers_as_before(learned: Learned) -> None:
    if learned.learner.method.traits.forgets:
        pytest.skip("says that it forgets")
    assert learned.learner.generate(prompts_of(FIRST), FIRST.name) == learned.answers_first
    now = logits_of(learned.learner, FIRST)
    torch.testing.assert_close(now, learned.logits_first, rtol=0, atol=1e-5)


def test_routing_and_answers_do_not_depend_on_the_batch(learned: Learned) -> None:
    backbone, method = learned.learner.backbone, learned.learner.method
    for task in (FIRST, SECOND):
        other = SECOND if task is FIRST else FIRST  # its prompts are of other lengths
        rows = [
            backbone.encode(example, with_answer=False) for example in (*task.test, *other.test)
        ]
        assert len({len(row["input_ids"]) for row in rows}) > 2
        batch = backbone.collate(rows)
        method.route(batch, task.name)
        answers, together = backbone.generate(batch, 5), method.routing()
        for i, alone in enumerate(prompts(backbone, task)):
            method.route(alone, task.name)
            assert tokens_of(alone, 0) == tokens_of(batch, i)
            assert backbone.generate(alone, 5) == [answers[i]]
            weights = method.routing()
            assert (weights is None) == (together is None)
            if weights is not None and together is not None:
                torch.testing.assert_close(weights[0], together[i], rtol=0, atol=1e-6)


def tokens_of(batch: Batch, row: int) -> list[int]:
    """Returns the token ids of a routed example that the model sees."""
    ids: list[int] = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
    return ids


def test_a_batch_may_be_routed_again(learned: Learned) -> None:
    backbone, method = learned.learner.backbone, learned.learner.method
    for task in (FIRST, SECOND):
        batch = backbone.collate([backbone.encode(example) for example in task.test])
        logits = []
        for _ in range(2):
            method.route(batch, task.name)
            with torch.no_grad():
                logits.append(backbone.answer_logits(batch)[0])
        assert torch.equal(*logits)


def test_training_does_not_depend_on_padding(learned: Learned) -> None:
    backbone, method = learned.learner.backbone, learned.learner.method
    rows = [backbone.encode(example) for example in (*FIRST.test, *SECOND.test)]
    with torch.no_grad():
        batch = backbone.collate(rows)
        method.route(batch, SECOND.name)
        together = backbone.answer_logits(batch)[0]
        for row, logits in zip(rows, together, strict=True):
            batch = backbone.collate([row])
            method.route(batch, SECOND.name)
            alone, targets = backbone.answer_logits(batch)
            n = targets.shape[1]
            same = logits[:n] if backbone.is_encoder_decoder else logits[-n:]
            torch.testing.assert_close(alone[0], same, rtol=0, atol=1e-4)


def test_cached_decoding_says_what_one_forward_says(learned: Learned) -> None:
    """Routing, gates and virtual tokens stay through the steps of a generation."""
    backbone, method = learned.learner.backbone, learned.learner.method
    rows = [backbone.encode(example, with_answer=False) for example in FIRST.test]
    for row in rows:
        batch = backbone.collate([row])
        method.route(batch, FIRST.name)
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        written = backbone.model.generate(**inputs, max_new_tokens=4, do_sample=False)[0].tolist()
        if backbone.is_encoder_decoder:
            answer = written[1:]
            whole = {**row, "labels": answer}
        else:
            prompt = row["input_ids"]
            answer = written[len(prompt) :]
            whole = {**row, "input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
        again = backbone.collate([whole])
        method.route(again, FIRST.name)
        with torch.no_grad():
            logits, _ = backbone.answer_logits(again)
        assert logits[0].argmax(-1).tolist() == answer


def test_beams_keep_their_samples_routing(learned: Learned) -> None:
    backbone, method = learned.learner.backbone, learned.learner.method
    pool = method.exported_pool
    attends = type(getattr(pool, "mixture", None)) is Attending  # its gates differ by sample
    rows = [backbone.encode(example, with_answer=False) for example in FIRST.test]

    def beams(numbers: list[int]) -> list[str]:
        batch = backbone.collate([rows[i] for i in numbers])
        method.route(batch, FIRST.name)
        # Samples take turns with the two blocks.
        if pool and len(pool.blocks) > 1 and not attends:
            pool.use(torch.eye(2)[[i % 2 for i in numbers]])
        return backbone.generate(batch, 5, num_beams=2)

    together = beams([0, 1, 2, 3])
    assert together == [beams([i])[0] for i in range(4)]


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
def test_a_block_loads_with_plain_peft(learned: Learned) -> None:
    pool = learned.learner.method.exported_pool
    folders = [
        folder
        for folder in learned.learner.run.learned()
        if (folder / "adapter_config.json").exists()
        and read_json(folder / "adapter_config.json")["peft_type"] == "LORA"
    ]
    if pool is None or not folders:
        pytest.skip("keeps no LoRA block")
    backbone = learned.learner.backbone
    batch = backbone.collate([backbone.encode(example) for example in SECOND.test])
    for back in range(1, len(pool.blocks) + 1):  # a pool of one block has the latest
        fresh = make_backbone(learned.kind)
        with torch.no_grad():
            plain = fresh.answer_logits(batch)[0]
            PeftModel.from_pretrained(fresh.model, folders[-back])
            expected = fresh.answer_logits(batch)[0]
            pool.use_block(len(SECOND.test), -back)
            actual = backbone.answer_logits(batch)[0]
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert (expected - plain).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft's
@pytest.mark.parametrize("kind", KINDS)
def test_every_linear_layer_can_carry_blocks(kind: str, tmp_path: Path) -> None:
    backbone, fresh = make_backbone(kind), make_backbone(kind)
    head = backbone.model.get_output_embeddings()
    endings = {
        name.rpartition(".")[2]
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    pool = LoraPool(backbone.model, sorted(endings), rank=2, alpha=4.0)
    pool.grow("block", seed=0)
    torch.manual_seed(0)
    for p in pool.parameters():
        p.data.normal_(std=0.1)
    pool.save_block(tmp_path, backbone.name)
    pool.use_block(len(FIRST.test), 0)
    PeftModel.from_pretrained(fresh.model, tmp_path)
    batch = backbone.collate([backbone.encode(example) for example in FIRST.test])
    with torch.no_grad():
        actual, expected = backbone.answer_logits(batch)[0], fresh.answer_logits(batch)[0]
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def gradients(
    learner: Learner, phase: Phase, rows: Sequence[Features], moving: list[nn.Parameter]
) -> tuple[tuple[Tensor, ...], int]:
    """Returns the gradients of the phase's loss on a batch, and the number of module calls."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    model = learner.backbone.model.train()
    batch = learner.backbone.collate(rows)
    torch.manual_seed(0)  # dropout
    with register_module_forward_hook(count):
        loss = torch.stack(list(phase.loss(batch).values())).sum()
        computed = torch.autograd.grad(loss, moving)
    model.eval()
    return computed, calls


def test_gradient_checkpointing_keeps_the_gradients(learned: Learned, tmp_path: Path) -> None:
    learner = learned.loaded_copy(tmp_path / "run")
    model = learner.backbone.model
    for phase in learner.method.phases(THIRD, context_of(THIRD, tmp_path, 2)):
        release(model, phase)
        moving = [p for group in phase.groups for p in group.parameters]
        for p in moving:  # a block's B starts at zero, where its A has no gradient
            p.data.add_(0.05 * torch.randn_like(p))
        replayed = phase.replay.rows if phase.replay else ()
        for rows in filter(None, (phase.data[:4], replayed[:4])):
            plain, calls = gradients(learner, phase, rows, moving)
            model.activation_checkpointing_enable({"use_reentrant": False})
            again, more_calls = gradients(learner, phase, rows, moving)
            model.activation_checkpointing_disable()
            assert more_calls > calls  # something was computed a second time
            for p, a, b in zip(moving, plain, again, strict=True):
                assert a.abs().max() > 0, tuple(p.shape)
                scale = max(1.0, float(a.abs().max()))
                torch.testing.assert_close(b, a, rtol=0, atol=1e-5 * scale)
        model.requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_loads_its_backbone_from_a_folder(
    kind: str, backbone_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    learner = make_learner("seqlora", backbone_folder(kind), tmp_path / "run", max_steps=1)
    learner.learn(FIRST)
    loaded = Learner.load(tmp_path / "run")
    text = "A b,  c's {d}\n"
    tokenizer = loaded.backbone.tokenizer
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert torch.equal(logits_of(loaded, FIRST), logits_of(learner, FIRST))
    for name, tensor in make_backbone(kind).model.state_dict().items():
        parent, _, leaf = name.rpartition(".")
        module = loaded.backbone.model.get_submodule(parent)
        assert torch.equal(getattr(getattr(module, "base", module), leaf), tensor), name
