"""What sets the baselines apart: their formulas, written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.methods.inclora import IncLora
from retain.methods.l2p import L2p, L2pConfig
from retain.methods.lfpt5 import Lfpt5
from retain.methods.olora import OLora, OLoraConfig, overlap
from retain.methods.progprompt import ProgPrompt, ProgPromptConfig
from retain.methods.shared.lora import LoraMethodConfig
from retain.system.files import read_jsonl
from retain.tasks import Example
from retain.testing.tiny import context_of, make_backbone, make_learner, make_task

FIRST, SECOND, THIRD = make_task("copy"), make_task("constant"), make_task("letter")


def batch_of(backbone: Backbone, with_answer: bool = True) -> Batch:
    return backbone.collate([backbone.encode(e, with_answer) for e in FIRST.test])


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(1, 4),
    blocks=st.integers(1, 3),
    scale=st.floats(0.1, 10),
    seed=st.integers(0, 100),
)
def test_overlap_of_o_lora(rank: int, blocks: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    old, new = torch.randn(blocks * rank, 8), torch.randn(rank, 8)
    published = sum((a * b).sum().abs() for a in old for b in new)
    torch.testing.assert_close(overlap(old, new, "published"), published)
    cosines = torch.stack([F.cosine_similarity(a, b, dim=0).abs() for a in old for b in new])
    relative = cosines.mean() / (2 / (torch.pi * 8)) ** 0.5
    torch.testing.assert_close(overlap(old, new, "relative"), relative)
    # What small rows buy in the published term, they do not buy in the other.
    torch.testing.assert_close(overlap(old, scale * new, "published"), scale * published)
    torch.testing.assert_close(overlap(old, scale * new, "relative"), relative)
    kernel = torch.linalg.svd(old)[2][len(old) :]  # what the old rows do not read
    assert not len(kernel) or overlap(old, kernel, "published") < 1e-4
    assert not len(kernel) or overlap(old, kernel, "relative") < 1e-4


def test_random_rows_overlap_by_one_relative_to_random_rows() -> None:
    torch.manual_seed(0)
    old, new = torch.randn(64, 512), 0.01 * torch.randn(64, 512)
    assert overlap(old, new, "relative").item() == pytest.approx(1, abs=0.02)


def test_o_lora_pays_for_every_older_block() -> None:
    options = OLoraConfig(rank=2, weight=0.5, weighting="published")
    method = OLora(make_backbone("llama"), options)
    method.pool.grow("first", seed=0)
    assert list(method.loss(batch_of(method.backbone))) == ["task"]
    method.pool.grow("second", seed=0)
    method.pool.grow("third", seed=0)
    expected = 0.0
    for layer in method.pool.layers.values():
        assert layer.A is not None
        for older in layer.old_A.split(2):
            expected += 0.5 * float((older @ layer.A.T).abs().sum().detach())
    found = method.loss(batch_of(method.backbone))["orthogonality"]
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_o_lora_pays_for_the_size_of_the_new_block() -> None:
    """λ₂ Σ ‖·‖ over the tensors of the new block alone, and no NaN where B is still zero."""
    method = OLora(make_backbone("llama"), OLoraConfig(rank=2, l2_weight=0.3))
    method.pool.grow("first", seed=0)
    method.pool.grow("second", seed=0)
    found = method.loss(batch_of(method.backbone))["l2"]
    expected = sum(float((p.detach() ** 2).sum().sqrt()) for p in method.pool.parameters())
    assert float(found.detach()) == pytest.approx(0.3 * expected, rel=1e-5)
    for gradient in torch.autograd.grad(found, method.pool.parameters()):
        assert gradient.isfinite().all()


def embedded(backbone: Backbone, batch: Batch) -> Tensor:
    return backbone.embedding(batch["input_ids"])


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_l2p_picks_the_nearest_prompts(kind: str) -> None:
    method = L2p(make_backbone(kind), L2pConfig(pool_size=4, length=2, picked=2, weight=0.5))
    backbone = method.backbone
    batch = batch_of(backbone, with_answer=False)
    distance = method._select(batch)
    rows = embedded(backbone, batch)
    total = 0.0
    for i, example in enumerate(FIRST.test):
        words = torch.tensor([backbone.tokenizer(example.prompt)["input_ids"]])
        words = words[:, :-1] if words[0, -1] == backbone.tokenizer.eos_token_id else words
        trunk = backbone.model.get_encoder() if kind == "t5" else backbone.model.model
        query = trunk(words).last_hidden_state[0].mean(0)
        cosines = F.cosine_similarity(query[None], method.keys).tolist()
        near = sorted(range(4), key=lambda k: -cosines[k])[:2]
        total += sum(1 - cosines[k] for k in near)
        start = int((batch["input_ids"][i] < 0).nonzero()[0])
        torch.testing.assert_close(
            rows[i, start : start + 4], torch.cat([method.prompts[k] for k in near])
        )
    assert distance.item() == pytest.approx(total / len(FIRST.test), rel=1e-4)


def test_l2p_s_batch_may_share_the_prompts_that_most_of_it_picks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    method = L2p(make_backbone("llama"), L2pConfig(pool_size=4, length=1, picked=2, preset="paper"))
    method.prompts.data.normal_()
    batch = batch_of(method.backbone)
    width = method.keys.shape[1]
    method.keys.data = torch.eye(4, width)
    # Of four inputs one picks 1 and 3, two pick 2 and 3, one picks 0 and 1: so 3, then 1 and not 2.
    cosine = torch.tensor([[0, 3, 0, 4], [0, 0, 4, 3], [0, 0, 3, 4], [4, 3, 0, 0]]) / 5
    query = F.pad(cosine, (0, width - 4))
    monkeypatch.setattr(method, "_query", lambda _: query)
    rest = {key: value[:1].expand(4, *value.shape[1:]) for key, value in batch.items()}
    losses = method.loss(rest)
    chosen = method.prompts[[3, 1]].flatten(0, 1)
    torch.testing.assert_close(method.embedding.rows, chosen.expand(4, *chosen.shape))
    distance = (2 - cosine[:, [3, 1]].sum(1)).mean()
    assert float(losses["keys"].detach()) == pytest.approx(0.5 * float(distance), rel=1e-5)
    method.route(rest)  # an answer does not depend on the batch
    torch.testing.assert_close(method.embedding.rows[3], method.prompts[[0, 1]].flatten(0, 1))


def test_l2p_keys_learn_as_fast_as_prompts(tmp_path: Path) -> None:
    method = L2p(make_backbone("llama"), L2pConfig(rate=7.0))
    (phase,) = method.phases(FIRST, context_of(FIRST, tmp_path))
    rates = {id(p): group.rate for group in phase.groups for p in group.parameters}
    assert rates == {id(method.prompts): 7.0, id(method.keys): 7.0}


def test_prog_prompt_puts_the_newest_first_and_hides_later_ones() -> None:
    method = ProgPrompt(make_backbone("llama"), ProgPromptConfig(length=2, hidden=None))
    backbone = method.backbone
    for name in ("first", "second", "third"):
        method.pool.grow(name, seed=0)
        method.pool.prompts.new.data.normal_()
    first, second, third = method.pool.prompts.every()
    batch = batch_of(backbone, with_answer=False)
    start = int((batch["input_ids"][0] < 0).nonzero()[0])
    before = batch["attention_mask"].clone()
    method.route(batch, "third")
    torch.testing.assert_close(
        embedded(backbone, batch)[0, start : start + 6], torch.cat([third, second, first])
    )
    assert torch.equal(batch["attention_mask"], before)
    method.route(batch, "first")
    assert batch["attention_mask"][0, start : start + 6].tolist() == [0, 0, 0, 0, 1, 1]
    method.route(batch, "second")
    assert batch["attention_mask"][0, start : start + 6].tolist() == [0, 0, 1, 1, 1, 1]
    with pytest.raises(RetainError, match="needs the task's name"):
        method.route(batch)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5", "bart"])
def test_a_later_prompt_moves_no_earlier_answer(kind: str) -> None:
    method = ProgPrompt(make_backbone(kind), ProgPromptConfig(length=2, hidden=None))
    backbone = method.backbone
    found = []
    for name in ("first", "second"):
        method.pool.grow(name, seed=0)
        batch = batch_of(backbone)
        method.route(batch, "first")
        with torch.no_grad():
            found.append(backbone.answer_logits(batch)[0])
    torch.testing.assert_close(*found, rtol=0, atol=1e-4)


def test_prog_prompt_keeps_what_came_out_of_the_residual_layer(tmp_path: Path) -> None:
    method = ProgPrompt(make_backbone("llama"), ProgPromptConfig(length=2, hidden=8))
    next(method.phases(FIRST, context_of(FIRST, tmp_path)))
    batch = batch_of(method.backbone)
    method._prepend(batch, 1)
    learning = embedded(method.backbone, batch).detach()
    (raw,) = (p.detach().clone() for p in method.pool.parameters())
    method.finish(FIRST, context_of(FIRST, tmp_path))
    method._prepend(batch, 1)
    torch.testing.assert_close(embedded(method.backbone, batch), learning)
    assert not torch.allclose(method.pool.prompts.every()[0], raw)


def test_inc_lora_is_the_sum_of_its_blocks() -> None:
    method = IncLora(make_backbone("llama"), LoraMethodConfig(rank=2, alpha=4.0))
    deltas: dict[str, Tensor] = {}
    for name in ("first", "second"):
        method.pool.grow(name, seed=0)
        for key, layer in method.pool.layers.items():
            layer.B.data.normal_()
            deltas[key] = deltas.get(key, 0) + 2.0 * (layer.B @ layer.A).detach()
    method.route(batch_of(method.backbone))
    for key, layer in method.pool.layers.items():
        x = torch.randn(len(FIRST.test), 3, layer.d_in)
        torch.testing.assert_close(layer(x), layer.base(x) + x @ deltas[key].T)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_l2p_picks_the_same_in_training(kind: str) -> None:
    method = L2p(make_backbone(kind), L2pConfig(pool_size=6, length=1, picked=3))
    model, batch = method.backbone.model, batch_of(method.backbone, with_answer=False)
    method._select(batch)
    expected = method.embedding.rows
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        method._select(batch)
    assert model.training
    assert torch.equal(method.embedding.rows, expected)


def test_lfpt5_loss(tmp_path: Path) -> None:
    """On its own rows task + λ_lm writing; on written ones (1 − λ) of that + λ KL.

    KL is over all positions of a row together.
    """
    learner = make_learner("lfpt5", make_backbone("llama"), tmp_path / "run")
    method = learner.method
    assert isinstance(method, Lfpt5)
    method.teacher = method.teacher.model_copy(update={"top_k": None})
    method.options.distillation = 0.3
    learner.learn(FIRST)
    backbone = method.backbone
    phase = next(method.phases(SECOND, context_of(SECOND, tmp_path, 1)))
    own, old = backbone.collate(phase.data[:2]), backbone.collate(method.memory[:2])
    with torch.no_grad():
        found, replayed = method.loss(own), method.loss(old)
        method.weights.use(2)
        task = backbone.answer_loss(own)
        written = [
            Example("Write an input of the task constant:", (e.prompt,)) for e in SECOND.train
        ]
        rows = [backbone.encode(e, answer_limit=512) for e in written[:2]]
        method.weights.use(1)
        alone = [backbone.answer_loss(backbone.collate([row])) for row in rows]
        writing = torch.stack(alone).mean()
        torch.testing.assert_close(found, {"task": task, "writing": 0.25 * writing})
        method.weights.use(2)
        replay = backbone.answer_loss(old)
        torch.testing.assert_close(replayed["replay"], 0.7 * replay)
        logits, targets = backbone.answer_logits(old)
        then = logits[targets != -100].softmax(-1)  # nothing was learned since
        assert len(then) > len(targets) == 2
        entropy = -(then * then.log()).sum() / 2
        torch.testing.assert_close(replayed["distillation"], 0.3 * entropy, rtol=1e-2, atol=1e-3)
        rows = [method.loss(backbone.collate([row]))["distillation"] for row in method.memory[:2]]
        torch.testing.assert_close(replayed["distillation"], torch.stack(rows).mean())
    assert phase.units == {"writing": "rows", "distillation": "rows"}  # so micro-batches add up
    assert set(replayed) == {"replay", "writing", "distillation"}


def test_lfpt5_replays_what_it_wrote_and_never_the_examples(tmp_path: Path) -> None:
    learner = make_learner("lfpt5", make_backbone("llama"), tmp_path / "run")
    learner.learn(FIRST)
    method = learner.method
    assert isinstance(method, Lfpt5)
    kept = [row for f in learner.run.learned() for row in read_jsonl(f / "memory.jsonl")]
    assert 0 < len(kept) == len(method.memory) <= method.kept(FIRST)
    learner.learn(SECOND)
    log = read_jsonl(learner.run.learned()[-1] / "training.jsonl")
    parts = {key for row in log for key in row if key.startswith("loss_")}
    assert parts == {"loss_task", "loss_writing", "loss_replay", "loss_distillation"}


def test_multitask_waits_for_the_last_task(tmp_path: Path) -> None:
    learner = make_learner("multitask", make_backbone("llama"), tmp_path / "run")
    before = {n: p.clone() for n, p in learner.backbone.model.named_parameters()}
    assert learner.learn(FIRST, more=True) == [None]
    assert all(torch.equal(p, before[n]) for n, p in learner.backbone.model.named_parameters())
    with pytest.raises(RetainError, match="when the last has come"):
        learner.generate(["a"])
    with pytest.raises(RetainError, match="when the last has come"):
        Learner.load(tmp_path / "run", backbone=make_backbone("llama")).evaluate()
    loaded = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    row = loaded.learn(SECOND)
    assert len(row) == 2
    assert all(score is not None for score in row)
    assert loaded.scores["matrix"][0] == [None]
    assert loaded.scores["metrics"]["average_performance"] is not None
    assert loaded.scores["metrics"]["forgetting"] is None
    log = read_jsonl(loaded.run.learned()[-1] / "training.jsonl")
    steps = loaded.experiment.training.max_steps
    assert len(log) == 2 * steps  # as many as two tasks have one by one
    at_once = make_learner("multitask", make_backbone("llama"), tmp_path / "other")
    at_once.learn(FIRST, more=True)
    assert at_once.learn(SECOND) == row
