"""The router in closed form: its equations written out naively, and what it promises."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from retain.backbone import Backbone
from retain.backbone.hidden import HiddenStates
from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.learner.upkeep import roll_back
from retain.methods.sapt import Sapt
from retain.methods.sapt.method import Attentive
from retain.methods.sapt.options import RouterConfig, SaptConfig
from retain.methods.sapt.router import AttentionOptions
from retain.methods.sapt.whitened import (
    RANK,
    THRESHOLD,
    Moments,
    WhitenedOptions,
    WhitenedRouter,
)
from retain.tasks import Example, Task
from retain.testing.tiny import WIDTH, context_of, make_backbone, make_learner, make_task

KINDS = ["llama", "t5"]
GENERIC = "61780605ec2d029fff63ced3b5d4dab2"
NAMES = ("copy", "constant", "letter")
MANY = ["ant", "bear", "cat", "dog", "eel", "fox", "goat", "hare", "ibis"]


def make_router(
    kind: str = "llama", backbone: Backbone | None = None, layer: int = 0, scale: float = 64.0
) -> WhitenedRouter:
    options = WhitenedOptions(layer=layer, scale=scale)
    return WhitenedRouter(backbone or make_backbone(kind), options, None)


def make_tasks(*sizes: int) -> list[Task]:
    """Makes tasks of so many prompts each; at most RANK + 1 prompts keep their whole scatter."""
    tasks = []
    for number, size in enumerate(sizes):
        prompts = [f"{MANY[number]} {MANY[i]} {i}, {'xyz' * number}" for i in range(size)]
        rows = [Example(prompt, ("yes",)) for prompt in prompts]
        tasks.append(Task(f"t{number}", rows, rows, rows))
    return tasks


def learned(router: WhitenedRouter, tasks: list[Task]) -> WhitenedRouter:
    for task in tasks:
        router.add_task(task, context_of(task, Path()))
    return router


def naive_embedding(backbone: Backbone, ids: list[int]) -> Tensor:
    total = torch.zeros(WIDTH, dtype=torch.float64)
    for i in ids:
        total += backbone.embedding.weight[i].detach().double()
    return total / len(ids)


def naive(
    backbone: Backbone, tasks: list[Task], prompts: list[str], s: float
) -> tuple[Tensor, Tensor]:
    """The equations of the module word for word: full scatters, a dense inverse, float64.

    Weights and likeness of the prompts.
    """
    text = files("retain.methods.shared").joinpath("generic.txt").read_text(encoding="utf-8")
    ids = backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [ids[i : i + 100] for i in range(0, len(ids) - 100, 50)]
    generic = torch.stack([naive_embedding(backbone, window) for window in windows])
    c, sigma = generic.mean(0), generic.std(0, correction=0)
    sigma = torch.maximum(sigma, 1e-3 * sigma.mean())

    def z(prompt: str) -> Tensor:
        return (naive_embedding(backbone, backbone.texts.plain_ids(prompt)) - c) / sigma

    z_generic = (generic - c) / sigma
    scatters, means, count = [], [], 0
    for task in tasks:
        rows = torch.stack([z(example.prompt) for example in task.train])
        means.append(rows.mean(0))
        scatters.append(sum(torch.outer(row - means[-1], row - means[-1]) for row in rows))
        count += len(rows)
    pooled = 60 * (z_generic.T @ z_generic) / len(generic) + sum(scatters)
    pooled /= 60 + count - len(tasks)
    middle = torch.stack([*means, torch.zeros(WIDTH)]).mean(0)
    covariance = pooled.clone()
    for mean in [*means, torch.zeros(WIDTH)]:
        covariance += 0.1 * torch.outer(mean - middle, mean - middle) / (len(means) + 1)
    covariance = 0.9 * covariance + 0.1 * covariance.diag().mean() * torch.eye(WIDTH).double()
    inverse = torch.linalg.inv(covariance)
    weights, likeness = [], []
    for prompt in prompts:
        q, cosines, relative = z(prompt) - middle, [], []
        for task, mean, scatter in zip(tasks, means, scatters, strict=True):
            key = mean - middle
            length = key @ inverse @ key
            cosines.append((q @ inverse @ key) / ((q @ inverse @ q) * length).sqrt())
            own = (scatter + pooled) / len(task.train)  # N − 1 degrees of freedom, and one more
            relative.append(cosines[-1] / (length / (length + torch.trace(inverse @ own))).sqrt())
        weights.append((s * torch.stack(cosines)).softmax(0))
        likeness.append(torch.stack(relative))
    return torch.stack(weights), torch.stack(likeness)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("scale", "sizes"),
    [
        (8.0, (1, 9, 4)),
        (64.0, (2, 2, 2, 7)),
        pytest.param(64.0, (1,), marks=pytest.mark.slow),
        pytest.param(8.0, (2, 2, 2, 7), marks=pytest.mark.slow),
        pytest.param(64.0, (5,), marks=pytest.mark.slow),
    ],
)
def test_it_is_the_naive_formula(kind: str, scale: float, sizes: tuple[int, ...]) -> None:
    backbone, tasks = make_backbone(kind), make_tasks(*sizes)
    router = learned(make_router(kind, backbone, scale=scale), tasks)
    prompts = [example.prompt for task in tasks for example in task.train]
    prompts += ["What else is there?", "x"]
    expected, likeness = naive(backbone, tasks, prompts, scale)
    e = router.embed(prompts)
    torch.testing.assert_close(router(e).double(), expected, rtol=1e-3, atol=2e-4)
    torch.testing.assert_close(router.likeness(e).double(), likeness, rtol=1e-3, atol=2e-4)
    if scale == 8.0 and len(sizes) > 1:  # soft enough for a wrong formula to show
        assert ((expected > 0.05) & (expected < 0.95)).any()


def test_prompts_that_are_all_unlike_the_generic_text_are_told_apart() -> None:
    """As in another script: what all prompts have in common says nothing about a task.

    Nor does what half of them have, where the others are in a third one.
    """
    for foreign in (["zq" * 40] * 4, ["zq" * 40, "J@" * 40] * 2):
        told_apart(foreign)


@pytest.mark.parametrize("known", [1, 2, 3])
@pytest.mark.parametrize("before", ["", "zq" * 10])
def test_own_prompts_are_like_their_task_and_others_are_not(before: str, known: int) -> None:
    """Under one threshold, whatever the number of tasks; also far from the generic text."""
    draw, tasks = random.Random(0), []
    for number, letters in enumerate(["abc", "defg", "hijk", "lmno"]):
        prompts = [before + "".join(draw.choices(letters, k=40)) for _ in range(24)]
        rows = [Example(prompt, ("yes",)) for prompt in prompts]
        tasks.append(Task(f"t{number}", rows[8:], rows[:8], rows[:8]))
    router = learned(make_router(), tasks[:known])
    for number, task in enumerate(tasks):
        nearest = router.likeness(router.embed([row.prompt for row in task.test])).amax(1)
        accepted = (nearest >= THRESHOLD).float().mean()
        assert float(accepted) == float(number < known)


def foreign_tasks(foreign: list[str]) -> list[Task]:
    """Makes tasks of nine prompts, which begin with these words."""
    return [
        Task(task.name, *([[Example(before + row.prompt, ("yes",)) for row in task.train]] * 3))
        for before, task in zip(foreign, make_tasks(*[9] * len(foreign)), strict=True)
    ]


def told_apart(foreign: list[str]) -> None:
    tasks = foreign_tasks(foreign)
    router = learned(make_router(), tasks)
    for number, task in enumerate(tasks):
        weights = router(router.embed([row.prompt for row in task.test]))
        assert float(weights[:, number].mean()) > 0.85


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(1, 40), width=st.integers(1, 24), seed=st.integers(0, 999))
def test_moments_keep_the_principal_parts_and_the_diagonal(
    rows: int, width: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.1, width)
    z = torch.randn(rows, width, generator=generator) * spread + 2
    moments = Moments.of(z)
    x = (z - z.mean(0)).double()
    full, kept = x.T @ x, moments.scatter()
    assert {n: tuple(t.shape) for n, t in vars(moments).items()} == Moments.shapes(width)
    assert all(t.dtype == torch.float32 for t in vars(moments).values())
    torch.testing.assert_close(kept.diagonal(), full.diagonal(), rtol=1e-4, atol=1e-4)
    assert float(torch.linalg.eigvalsh(kept).min()) > -1e-4
    if min(rows - 1, width) <= RANK:
        torch.testing.assert_close(kept, full, rtol=1e-4, atol=1e-3)
    parts = torch.linalg.eigvalsh(full)[-RANK:].sum()
    torch.testing.assert_close(moments.factor.double().square().sum(), parts, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [30, 90])
def test_principal_parts_of_a_large_scatter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spread = torch.linspace(3, 0.1, 60)
    z = torch.randn(rows, 60, generator=torch.Generator().manual_seed(0)) * spread + 2
    exact = Moments.of(z)
    monkeypatch.setattr("retain.methods.sapt.whitened.EXACT", 8)
    near, again = Moments.of(z), Moments.of(z)
    assert all(torch.equal(vars(near)[name], vars(again)[name]) for name in vars(near))
    assert not torch.equal(near.factor, exact.factor)
    torch.testing.assert_close(near.scatter().diagonal(), exact.scatter().diagonal())
    kept, most = near.factor.square().sum(), exact.factor.square().sum()
    assert 0.99 * most < kept <= most * (1 + 1e-6)
    off = near.scatter() - exact.scatter()
    assert float(off.norm() / exact.scatter().norm()) < 0.05


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(12)), seed=st.integers(0, 99))
def test_the_order_of_prompts_does_not_matter(order: list[int], seed: int) -> None:
    z = torch.randn(12, 20, generator=torch.Generator().manual_seed(seed))
    one, other = Moments.of(z), Moments.of(z[order])
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.scatter(), other.scatter(), rtol=1e-4, atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(4)), scale=st.floats(0.5, 200), top_k=st.integers(2, 5))
def test_weights_are_a_softmax_whatever_the_order_of_tasks(
    order: list[int], scale: float, top_k: int
) -> None:
    backbone, tasks = BACKBONE, make_tasks(3, 9, 1, 6)
    straight = learned(make_router(backbone=backbone, scale=scale), tasks)
    turned = learned(make_router(backbone=backbone, scale=scale), [tasks[i] for i in order])
    e = straight.embed([row.prompt for task in tasks for row in task.train])
    weights = straight(e)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(e)))
    torch.testing.assert_close(turned(e), weights[:, order], rtol=1e-3, atol=1e-3)
    cosines = straight.logits(e) / scale
    assert float(cosines.abs().max()) <= 1 + 1e-5
    torch.testing.assert_close(weights, (scale * cosines).softmax(1), rtol=1e-4, atol=1e-5)
    likeness = straight.likeness(e)
    torch.testing.assert_close(turned.likeness(e), likeness[:, order], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(straight.usual * likeness, cosines, rtol=1e-4, atol=1e-5)
    straight.top_k = top_k
    few = straight(e)
    assert ((few > 0).sum(1) <= top_k).all()
    torch.testing.assert_close(few.sum(1), torch.ones(len(e)))
    assert torch.equal(straight.train()(e), few)  # no block is favoured in training


BACKBONE = make_backbone("llama")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_prompt_alone_has_the_weights_of_a_batch(kind: str, layer: int) -> None:
    backbone, tasks = make_backbone(kind), make_tasks(4, 5, 6)
    router = learned(make_router(kind, backbone, layer), tasks)
    prompts = ["a", "a much longer prompt than the first one", tasks[0].train[0].prompt]
    rows = [backbone.encode(Example(p, ("",)), with_answer=False) for p in prompts]
    together = router.weights(backbone.collate(rows))
    alone = torch.cat([router.weights(backbone.collate([row])) for row in rows])
    torch.testing.assert_close(alone, together, rtol=0, atol=2e-5)


@pytest.mark.parametrize("prompts", [["only one"], ["the same"] * 7, ["x", "x", "y"]])
def test_tasks_without_spread(prompts: list[str]) -> None:
    rows = [Example(prompt, ("yes",)) for prompt in prompts]
    tasks = [*make_tasks(5), Task("few", rows, rows, rows)]
    router = learned(make_router(), tasks)
    weights = router(router.embed([*prompts, tasks[0].train[0].prompt]))
    assert torch.isfinite(weights).all()
    assert (weights[:-1].argmax(1) == 1).all()
    assert int(weights[-1].argmax()) == 0


def test_the_first_task_alone_may_be_one_prompt() -> None:
    router = learned(make_router(), make_tasks(1))
    assert torch.equal(router(router.embed(["x", "anything"])), torch.ones(2, 1))


def test_four_hundred_tasks_take_one_factorisation_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of 400 tasks loads with one, and neither prompts nor batches take any."""
    calls: list[int] = []
    cholesky = torch.linalg.cholesky

    def counted(matrix: Tensor) -> Tensor:
        calls.append(len(matrix))
        return cholesky(matrix)

    monkeypatch.setattr(torch.linalg, "cholesky", counted)
    router = make_router()
    states = [vars(Moments.of(torch.randn(5, WIDTH) + 3 * torch.randn(WIDTH))) for _ in range(400)]
    began = time.monotonic()
    for state in states:
        router.load_task(state)
    e = router.embed(["one", "two"])
    for _ in range(50):
        assert router(e).shape == (2, 400)
    assert calls == [WIDTH]
    assert time.monotonic() - began < 5  # a tenth of a second where nothing else runs
    learned(router, make_tasks(3))
    assert router(e).shape == (2, 401)
    assert len(calls) == 2


def buffers(learner: Learner) -> dict[str, Tensor]:
    assert isinstance(learner.method, Attentive)
    return dict(learner.method.router.named_buffers())


@pytest.mark.parametrize("variant", ["sapt-whitened", "sapt-hidden", "sapt-prompt-whitened"])
def test_a_rollback_leaves_no_trace(variant: str, tmp_path: Path) -> None:
    """Bit for bit the state of a run that never had the task, also after it goes on."""
    never, had = tmp_path / "never", tmp_path / "had"
    learner = make_learner(variant, make_backbone("llama"), never)
    learner.learn(make_task("copy"))
    shutil.copytree(never, had)
    gone = Learner.load(had, backbone=make_backbone("llama"))
    gone.learn(make_task("letter"))
    assert len(buffers(gone)["keys"]) == 2
    assert roll_back(had, "copy") == ["letter"]
    again = Learner.load(had, backbone=make_backbone("llama"))
    ask = make_task("copy").test[0].prompt
    for run in (learner, again):
        run.answers([ask])
        run.learn(make_task("constant"))
    assert learner.answers([ask]) == again.answers([ask])
    for name, tensor in buffers(learner).items():
        assert torch.equal(buffers(again)[name], tensor), name
    for path in sorted((never / "tasks").rglob("*.safetensors")):
        assert (had / path.relative_to(never)).read_bytes() == path.read_bytes()


def test_only_the_block_is_trained_and_kilobytes_are_kept(tmp_path: Path) -> None:
    learner = make_learner("sapt-whitened", make_backbone("llama"), tmp_path / "run")
    method = learner.method
    assert isinstance(method, Sapt)
    task = make_task("copy")
    phases = list(method.phases(task, context_of(task, tmp_path)))
    assert [phase.name for phase in phases] == ["learn"]
    assert [group.name for group in phases[0].groups] == ["block"]
    assert list(method.router.parameters()) == []
    sizes = sum(tensor.numel() for tensor in method.router.state().values())
    assert sizes == (2 + RANK) * WIDTH + 1
    block = method.pool.block_size()
    plain = method.footprint(task, 8)
    assert plain.trainable == 4 * block
    assert plain.kept >= 4 * (block + sizes)


@pytest.mark.parametrize("kind", [*KINDS, "gpt2", "bart"])
def test_hidden_states_are_those_of_the_bare_backbone(kind: str) -> None:
    backbone = make_backbone(kind)
    rows = [backbone.encode(Example(p, ("",)), with_answer=False) for p in ("short", "longer one")]
    batch = backbone.collate(rows)
    model = backbone.model
    stack = model.get_encoder() if backbone.is_encoder_decoder else model.get_decoder()
    ids, mask = batch["route_ids"], batch["route_mask"]
    states = HiddenStates(backbone, 1)
    with torch.no_grad():
        every = stack(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    words = mask.bool()
    torch.testing.assert_close(states(batch)[words], every[1][words])
    model.train()
    noisy = states(batch)  # dropout is off, and the model is left in training
    assert all(module.training for module in model.modules())
    model.eval()
    assert torch.equal(noisy, states(batch))


def test_the_blocks_have_no_part_in_hidden_states(tmp_path: Path) -> None:
    learner = make_learner("sapt-hidden", make_backbone("llama"), tmp_path / "run")
    for name in NAMES:
        learner.learn(make_task(name))
    bare = make_router(layer=1)
    assert isinstance(learner.method, Attentive)
    router = learner.method.router
    assert isinstance(router, WhitenedRouter)
    batch = learner.backbone.collate(
        [learner.backbone.encode(row, with_answer=False) for row in make_task("copy").test]
    )
    learner.method.route(batch)  # after a forward with blocks, and with weights set
    learner.backbone.generate(batch, 2)
    learner.method.route(batch)
    again = learner.method.routing()
    assert again is not None
    for name in NAMES:
        task = make_task(name)
        bare.add_task(task, context_of(task, tmp_path))
    bare.top_k = 2
    torch.testing.assert_close(bare.weights(batch), again)
    assert torch.equal(bare.keys, router.keys)


def test_statistics_are_float32_whatever_the_backbone() -> None:
    backbone = make_backbone("llama")
    backbone.model.to(torch.bfloat16)
    router = learned(make_router(backbone=backbone), make_tasks(3, 4))
    assert {b.dtype for b in router.buffers()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        within = router.weights(
            backbone.collate([backbone.encode(Example("a word", ("",)), with_answer=False)])
        )
    assert within.dtype == torch.float32
    assert torch.equal(within, router(router.embed(["a word"])))


def test_a_layer_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RetainError, match=r"router.layer: 9, but LlamaForCausalLM has 2 layers"):
        make_router(layer=9)
    backbone = make_backbone("llama")
    backbone.model.model.layers[0].forward = lambda *_, **__: torch.zeros(6, 3)
    with pytest.raises(RetainError, match=r"cannot be read up to layer 1 \(gives \(6, 3\)\)"):
        make_router(backbone=backbone, layer=1)


@pytest.mark.parametrize(
    ("router", "says"),
    [
        ({"kind": "whitened", "hidden": 16}, "hidden is no option of kind: whitened"),
        ({"kind": "attention", "layer": 2}, "layer is no option of kind: attention"),
        ({"kind": "other"}, "'attention' or 'whitened'"),
        ({"kind": "whitened", "scale": 0}, "greater than 0"),
        ({"kind": "whitened", "layer": -1}, "greater than or equal to 0"),
    ],
)
def test_options_of_the_other_kind_are_refused(router: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RouterConfig.model_validate(router)


def test_reflection_is_off_with_it_unless_asked_for() -> None:
    def weight(**values: object) -> float | None:
        return SaptConfig.model_validate(values).reflection.weight

    whitened = {"kind": "whitened"}
    assert weight(router={"kind": "attention"}) == weight(preset="paper") == 0.5
    assert weight() == weight(router={"top_k": 4}) == 0
    assert weight(router=whitened) == weight(router=whitened, reflection={"tasks": 3}) == 0
    assert weight(router=whitened, reflection={"weight": 0.2}) == 0.2
    assert SaptConfig.model_validate({"preset": "paper"}).router.kind == "attention"
    with pytest.raises(ValidationError, match="centre is no option of kind: whitened"):
        SaptConfig.model_validate({"preset": "paper", "router": whitened})
    stored = SaptConfig.model_validate({"router": whitened})
    assert SaptConfig.model_validate(stored.model_dump()) == stored


@pytest.mark.parametrize(
    "options",
    [
        {"router": {"rate": 0.01}},
        {"router": {"hidden": 8, "top_k": 2}},
        {"router": {"key": "uniform"}},
        {"generator": {"max_steps": 3}},
        {"reflection": {"tasks": 3}},
    ],
)
def test_options_of_the_trained_router_choose_it(options: dict[str, Any]) -> None:
    config = SaptConfig.model_validate(options)
    assert (config.router.kind, config.reflection.weight) == ("attention", 0.5)
    assert SaptConfig.model_validate(config.model_dump()) == config
    router = {**options.get("router", {}), "layer": 1}
    with pytest.raises(ValidationError, match=r"chooses .*: attention, and router\.layer is"):
        SaptConfig.model_validate({**options, "router": router})


def test_a_run_from_before_there_were_two_kinds_keeps_its_router() -> None:
    config = SaptConfig.model_validate({"router": {"kind": "attention"}}).model_dump()
    config["router"] = {name: config["router"][name] for name in AttentionOptions.model_fields}
    assert SaptConfig.model_validate(config).router.kind == "attention"


def test_a_generator_without_reflection_is_refused() -> None:
    options = {"router": {"kind": "whitened"}, "generator": {"max_steps": 3}}
    with pytest.raises(ValidationError, match="generator writes pseudo-samples for reflection"):
        SaptConfig.model_validate(options)
    assert SaptConfig.model_validate({**options, "reflection": {"weight": 0.5}})


def test_generator_and_reflection_remain_available(tmp_path: Path) -> None:
    options = {
        "name": "sapt",
        "router": {"kind": "whitened"},
        "reflection": {"weight": 1.0},
        "generator": {"share": 0.2, "max_new_tokens": 6},
    }
    learner = Learner(make_backbone("llama"), options, tmp_path / "run", training={"max_steps": 2})
    for name in NAMES[:2]:
        learner.learn(make_task(name))
    assert (learner.run.learned()[1] / "pseudo.jsonl").exists()
    again = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    ask = ["copy this word: owl"]
    assert again.answers(ask) == learner.answers(ask)


def test_the_generic_text_is_part_of_every_runs_state() -> None:
    """A run stores moments in its units: another text would silently route all old runs anew."""
    text = files("retain.methods.shared").joinpath("generic.txt").read_bytes()
    assert hashlib.sha256(text).hexdigest()[:32] == GENERIC


def test_a_tokenizer_that_knows_no_english() -> None:
    """All windows are the same then: nothing to standardise by, and still finite weights."""
    backbone = make_backbone("llama")
    encode = backbone.tokenizer.__class__.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            type(backbone.tokenizer),
            "__call__",
            lambda self, text, **options: (
                {"input_ids": [2] * 500} if len(text) > 9000 else encode(self, text, **options)
            ),
        )
        router = learned(make_router(backbone=backbone), make_tasks(4, 5))
    weights = router(router.embed(["anything", make_tasks(4)[0].train[0].prompt]))
    assert torch.isfinite(weights).all()


def test_training_meets_the_mixture_of_inference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new task is in the keys before its first step, with all of its training prompts."""
    learner = make_learner("sapt-whitened", make_backbone("t5"), tmp_path / "run")
    learner.learn(make_task("copy"))
    seen: list[tuple[Tensor, Tensor]] = []
    route = type(learner.method).route

    def watched(method: Sapt, batch: dict[str, Tensor], task: str | None = None) -> None:
        route(method, batch, task)
        if method.backbone.model.training:
            weights = method.routing()
            assert weights is not None
            method.backbone.model.eval()
            route(method, batch, task)
            method.backbone.model.train()
            now = method.routing()
            assert now is not None
            seen.append((weights, now))

    monkeypatch.setattr(type(learner.method), "route", watched)
    learner.learn(replace(make_task("constant"), name="second"))
    assert len(seen) >= learner.experiment.training.max_steps
    for weights, now in seen:
        assert weights.shape[1] == 2
        assert torch.equal(weights, now)
        assert float(weights[:, 1].min()) > 0.5
