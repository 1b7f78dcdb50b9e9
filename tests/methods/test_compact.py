"""Blocks of look-alike tasks merged: what is kept, what is refused, and the way back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.errors import RetainError
from retain.export import export
from retain.layers.lora_pool import LoraPool
from retain.layers.merging import cosines, merged, truncated
from retain.learner.compact import compact
from retain.learner.learner import Learner
from retain.learner.upkeep import roll_back, verify
from retain.methods.sapt import Sapt
from retain.methods.sapt.diagnostics import sapt_diagnostics
from retain.runs.compacted import compacted_file
from retain.runs.results import open_run
from retain.testing.tiny import make_backbone, make_learner, make_task, prompts_of, read_files
from tests.command import call

NAMES = ("copy", "constant", "letter")
TASKS = [make_task(name) for name in NAMES]


def load(folder: Path) -> Learner:
    return Learner.load(folder, backbone=make_backbone("llama"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three tasks with each router."""
    folder = tmp_path_factory.mktemp("runs")
    for variant in ("sapt-whitened", "sapt-unreflected"):
        learner = make_learner(variant, make_backbone("llama"), folder / variant)
        for task in TASKS:
            learner.learn(task)
    return folder


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "sapt-whitened", tmp_path / "run"))


def pool_of(learner: Learner) -> LoraPool:
    assert isinstance(learner.method, Sapt)
    assert isinstance(learner.method.pool, LoraPool)
    return learner.method.pool


def deltas(pool: LoraPool, layer: str) -> list[torch.Tensor]:
    factors = pool.factors()
    As = factors[f"{layer}.A"].double().split(pool.rank)
    Bs = factors[f"{layer}.B"].double().split(pool.rank, 1)
    return [B @ A for A, B in zip(As, Bs, strict=True)]


def test_cosines_are_those_of_the_whole_matrices(run: Path) -> None:
    pool = pool_of(load(run))
    rows = [torch.cat([deltas(pool, name)[i].flatten() for name in pool.layers]) for i in range(3)]
    naive = [[torch.cosine_similarity(a, b, 0).item() for b in rows] for a in rows]
    torch.testing.assert_close(cosines(pool), torch.tensor(naive).double())


@settings(max_examples=30, deadline=None)
@given(k=st.integers(1, 9), rank=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_truncation_is_the_best_one(k: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(k, 7, generator=generator).double()
    B = torch.randn(5, k, generator=generator).double()
    new_A, new_B = truncated(A, B, rank)
    assert (new_A.shape, new_B.shape) == ((rank, 7), (5, rank))
    U, S, V = torch.linalg.svd(B @ A, full_matrices=False)
    best = (U[:, :rank] * S[:rank]) @ V[:rank]
    torch.testing.assert_close((new_B @ new_A).double(), best, rtol=1e-4, atol=1e-4)


def test_a_merged_block_is_the_mean_over_tasks(run: Path) -> None:
    pool = pool_of(load(run))
    layer = next(iter(pool.layers))
    old = deltas(pool, layer)
    factors = merged(pool, [0, 1, 0], [3, 1, 1])  # the first block is of three tasks already
    mean = (3 * old[0] + old[2]) / 4
    U, S, V = torch.linalg.svd(mean)
    best = (U[:, : pool.rank] * S[: pool.rank]) @ V[: pool.rank]
    A, B = factors[f"{layer}.A"].double(), factors[f"{layer}.B"].double()
    torch.testing.assert_close(B[:, : pool.rank] @ A[: pool.rank], best, rtol=1e-4, atol=1e-5)
    assert torch.equal(A[pool.rank :].float(), pool.factors()[f"{layer}.A"].split(pool.rank)[1])


def test_two_equal_blocks_lose_nothing(run: Path) -> None:
    learner = load(run)
    pool = pool_of(learner)
    for layer in pool.layers.values():  # the third block becomes the first one's bits
        A, B = layer.old_A.split(layer.rank), layer.old_B.split(layer.rank, 1)
        pairs = [(A[0], B[0]), (A[1], B[1]), (A[0], B[0])]
        layer.clear()
        for pair in pairs:
            layer.push(*pair)
    asked = prompts_of(*TASKS)
    before = learner.answers(asked)
    done = compact(learner, 2, 0.0)
    assert done is not None
    assert done.sharing == [0, 1, 0]
    assert done.before == done.after
    after = learner.answers(asked)
    assert [a.output for a in after] == [b.output for b in before]
    assert [a.routing for a in after] == [b.routing for b in before]  # one weight per task still
    assert next(iter(pool.layers.values())).old_A.shape[0] == 2 * pool.rank


def test_as_many_blocks_as_tasks_change_nothing(run: Path) -> None:
    files = read_files(run)
    assert compact(load(run), 3, 0.0) is None
    assert read_files(run) == files


@pytest.mark.parametrize("variant", ["sapt-whitened", "sapt-unreflected"])
def test_a_loaded_run_and_a_rollback(variant: str, runs: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs / variant, tmp_path / "run"))
    before, asked = read_files(run), prompts_of(*TASKS)
    learner = load(run)
    plain = learner.answers(asked)
    assert compact(learner, 2, 100.0) is not None
    assert verify(open_run(run)) == []
    again = load(run)
    assert len({*pool_of(again).sharing}) == 2
    assert again.answers(asked) == learner.answers(asked)
    assert roll_back(run, "letter") == ["compact/03.safetensors"]
    assert read_files(run) == before
    assert load(run).answers(asked) == plain


def test_learning_goes_on_and_compacts_again(run: Path) -> None:
    learner = load(run)
    compact(learner, 2, 100.0)
    twin = replace(make_task("copy"), name="twin")
    learner.learn(twin)
    assert len(pool_of(learner).sharing) == 4
    assert max(pool_of(learner).sharing) == 2
    asked = prompts_of(*TASKS)
    again = load(run)
    assert again.answers(asked) == learner.answers(asked)
    compact(again, 1, 100.0)
    assert pool_of(load(run)).sharing == [0, 0, 0, 0]
    (section,) = [s for s in sapt_diagnostics(open_run(run)) if "share" in s.title]
    assert [label for label, _ in section.grids[0].rows] == [*NAMES, "twin"]
    assert roll_back(run, "letter") == ["twin", "compact/03.safetensors", "compact/04.safetensors"]
    assert pool_of(load(run)).sharing == [0, 1, 2]


def test_a_loss_is_refused_and_nothing_changes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = load(run)
    files, factors = read_files(run), pool_of(learner).factors()
    scores = iter([{"a": 80.0, "b": 60.0}, {"a": 79.0, "b": 60.0}] * 2)
    monkeypatch.setattr(learner, "evaluate", lambda: next(scores))
    with pytest.raises(RetainError, match=r"would lose 0\.50 points of AP \(70\.0 to 69\.5\)"):
        compact(learner, 1, 0.4)
    assert read_files(run) == files
    assert pool_of(learner).sharing == [0, 1, 2]
    for name, factor in pool_of(learner).factors().items():
        assert torch.equal(factor, factors[name])
    assert compact(learner, 1, 0.5) is not None


def test_what_it_cost_counts_at_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = load(run)
    then = [learner.scores["matrix"][j][j] for j in range(3)]
    now = [then[0] - 1, then[1], then[2] - 7]
    scores = iter([dict(zip(NAMES, row, strict=True)) for row in (then, now)])
    monkeypatch.setattr(learner, "evaluate", lambda: next(scores))
    assert call("check", run, "--max-forgetting", "5").status == 0
    compact(learner, 1, 100.0)
    done = call("check", run, "--max-forgetting", "5")
    assert (done.status, done.out) == (1, "letter: lost 7.0 points since it was learned\n")
    note = f"run was compacted after these scores: AP {sum(then) / 3:.1f} before, "
    for command in ("report", "compare"):
        done = call(command, run)
        assert done.status == 0
        assert note in " ".join((done.out + done.err).split())
    roll_back(run, "letter")
    assert call("check", run, "--max-forgetting", "5").status == 0
    assert note not in " ".join(call("report", run).out.split())


def test_a_run_that_is_written_to_is_refused_first(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = load(run)
    monkeypatch.setattr(learner, "evaluate", lambda: pytest.fail("answered in vain"))
    with (
        FileLock(run / ".lock"),
        pytest.raises(RetainError, match="another process is writing to this run"),
    ):
        compact(learner, 1, 100.0)


@pytest.mark.parametrize("variant", ["pertask", "sapt-prompt-whitened"])
def test_other_methods_are_refused(variant: str, tmp_path: Path) -> None:
    learner = make_learner(variant, make_backbone("llama"), tmp_path / "run")
    for task in TASKS[:2]:
        learner.learn(task)
    with pytest.raises(RetainError, match="retain compact is for runs of sapt"):
        compact(learner, 1, 100.0)


def test_damage_is_named(run: Path) -> None:
    compact(load(run), 1, 100.0)
    path = compacted_file(open_run(run), 2)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(RetainError, match=r"03\.safetensors: damaged"):
        load(run)
    roll_back(run, "letter")
    load(run)


def test_what_was_written_and_not_committed_is_not_read(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the file and the manifest."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    learner = load(run)
    monkeypatch.setattr("retain.runs.directory.RunDirectory._write_manifest", killed)
    with pytest.raises(KeyboardInterrupt):
        compact(learner, 1, 100.0)
    monkeypatch.undo()
    assert compacted_file(learner.run, 2).exists()
    assert verify(open_run(run)) == []
    assert pool_of(load(run)).sharing == [0, 1, 2]


def test_export_of_shared_blocks(run: Path, tmp_path: Path) -> None:
    compact(load(run), 1, 100.0)
    with pytest.raises(RetainError, match="share blocks since retain compact"):
        export(load(run), tmp_path / "adapters", None)
    learner = load(run)
    pool, asked = pool_of(learner), prompts_of(TASKS[0])
    batch = learner.backbone.collate([learner.encode(row) for row in TASKS[0].test])
    pool.use_block(len(asked), 2)
    routed = learner.backbone.generate(batch, 5)
    export(learner, tmp_path / "merged", {"letter": 1.0})
    assert learner.backbone.generate(batch, 5) == routed


def test_a_block_begins_as_a_copy_of_a_shared_one(run: Path) -> None:
    learner = load(run)
    compact(learner, 1, 100.0)
    pool = pool_of(learner)
    pool.grow("new", 0)
    pool.copy_block(2)
    factors = pool.factors()
    for name, factor in pool.named_parameters().items():
        assert torch.equal(factor, factors[name])


def test_the_command(tmp_path: Path, backbone_folder: Callable[[str], Path]) -> None:
    learner = make_learner("sapt-whitened", backbone_folder("llama"), tmp_path / "run")
    for task in TASKS[:2]:
        learner.learn(task)
    done = call("compact", str(tmp_path / "run"), "--blocks", "1", "--max-loss", "100")
    assert done.status == 0, done.err
    lines = done.out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == list(NAMES[:2])
    assert lines[2].startswith("AP ")
    assert lines[2].endswith("after, with blocks: 1")
    assert lines[3] == f"to undo it: retain rollback {tmp_path / 'run'} --to constant"
    done = call("compact", str(tmp_path / "run"), "--blocks", "1")
    assert "nothing to merge" in done.out
    done = call("rollback", str(tmp_path / "run"), "--to", "constant")
    assert done.out.splitlines() == ["removed compact/02.safetensors"]
