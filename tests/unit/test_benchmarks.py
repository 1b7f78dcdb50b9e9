"""What the benchmarks compare computes the same thing."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path

import pytest
import torch

from benchmarks import (
    four_hundred,
    gpu,
    languages,
    long_prompts,
    memory,
    precision,
    router_scale,
    scale,
    seekr_step,
    transfer,
)
from benchmarks.alignment import alignment
from benchmarks.bench import __main__ as costs
from benchmarks.bench import model as bench
from benchmarks.bench import tasks
from benchmarks.bench.pool import NaiveLinear, mixing, pool_of
from benchmarks.moved_heads import compare, rank_correlation
from benchmarks.routing import auroc, best_threshold, measured, rates
from benchmarks.seekr_step import Bench
from benchmarks.shift import reworded, shifted
from retain.learner.learner import Learner
from retain.methods.sapt import Sapt
from retain.methods.sapt.whitened import THRESHOLD
from retain.runs import results
from retain.system.files import read_json, write_json, write_jsonl
from retain.tasks import Example, Task
from retain.testing.tiny import make_backbone, make_learner, make_task, save_backbone


def test_seekr_and_eager_attention_take_the_same_loss(tmp_path: Path) -> None:
    bench = Bench(tmp_path, width=64, length=120)
    bench.optimizer = torch.optim.SGD(bench.backbone.model.parameters(), lr=0.0)
    plain, seekr, eager = (bench.step(kind) for kind in ("plain", "seekr", "eager"))
    assert seekr == pytest.approx(eager, rel=1e-4)
    assert abs(seekr - plain) > 0.01


def test_sapt_is_timed_with_its_default_router_and_with_the_other() -> None:
    kinds = {
        side: Sapt.Config.model_validate(
            {k: v for k, v in method.items() if k != "name"}
        ).router.kind
        for side, method in tasks.variants().items()
        if method["name"] == "sapt"
    }
    assert kinds == {"sapt": "whitened", "sapt attention": "attention"}


def test_movement_of_heads_against_lost_answers(tmp_path: Path) -> None:
    values = torch.tensor([0.1, 0.5, 0.2, 9.0])
    assert rank_correlation(values, values**3).item() == pytest.approx(1)
    assert rank_correlation(values, -values).item() == pytest.approx(-1)
    backbone = save_backbone("llama", tmp_path / "backbone")
    learner = make_learner("seekr-lora", backbone, tmp_path / "run")
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    (row,) = compare(tmp_path / "run", 4)
    assert row["task"] == "copy"
    assert row["examples"] == 4
    assert math.isfinite(row["lost nats"])
    assert all(-1 <= row[key] <= 1 for key in ("all heads", "chosen by SEEKR", "moved most"))
    assert [folder.name for folder in tmp_path.iterdir() if folder.name.startswith("tmp")] == []


def test_alignment_is_the_divergence_of_what_evaluation_saw(tmp_path: Path) -> None:
    learner = make_learner("sapt", make_backbone("llama"), tmp_path / "run")
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    (found,) = alignment(results.open_run(tmp_path / "run")).values()
    now = learner.answers([example.prompt for example in make_task("copy").test])
    # Right after the first task its block had all of the weight.
    expected = [-math.log(answer.routing["copy"]) for answer in now]
    assert found == pytest.approx(sum(expected) / len(expected), abs=1e-4)


def test_routing_alone_is_the_routing_of_a_run(tmp_path: Path) -> None:
    method = {"name": "sapt", "router": {"kind": "whitened", "scale": 2.0}}  # soft
    learner = Learner(make_backbone("llama"), method, tmp_path / "run", training={"max_steps": 1})
    tasks = [make_task(name) for name in ("copy", "constant", "letter")]
    for task in tasks:
        learner.learn(task)
    found = measured(make_backbone("llama"), "whitened", {"scale": 2.0}, tasks, ["none", "noise"])
    own = [
        answer.routing[task.name]
        for task in tasks
        for answer in learner.answers([example.prompt for example in task.test])
    ]
    assert [point.tasks for point in found.curves["none"]] == [1, 2, 3]
    assert found.curves["none"][-1].own == pytest.approx(sum(own) / len(own), abs=1e-4)
    assert found.curves["noise"][-1] != found.curves["none"][-1]


def test_scales_are_tried_on_the_weights_of_a_run() -> None:
    tasks = [make_task(name) for name in ("copy", "constant", "letter")]
    (usual,) = (
        row for row in router_scale.rows(make_backbone("llama"), 0, tasks) if row.scale == 16
    )
    found = measured(make_backbone("llama"), "whitened", {"scale": 16.0}, tasks, ["none"])
    end = found.curves["none"][-1]
    own = (2 * usual.chosen_on.own + usual.others.own) / 3  # tasks 0 and 2, task 1
    assert end.own == pytest.approx(own, abs=1e-3)
    assert {name: group.tasks for name, group in found.groups.items()} == dict.fromkeys(
        ("copy", "constant", "letter"), 1
    )


def test_tasks_in_other_languages() -> None:
    tasks = languages.tasks(languages.LANGUAGES, 30, 5)
    assert len({task.name for task in tasks}) == 40
    unseen = languages.tasks(languages.LANGUAGES, 30, 5, unseen=True)
    bare = languages.tasks(languages.LANGUAGES, 30, 5, asked=False)
    for task, other, alone in zip(tasks, unseen, bare, strict=True):
        prompts = [row.prompt for row in (*task.train, *task.test)]
        assert len(set(prompts)) == len(prompts) == 35
        assert not any("{" in prompt for prompt in prompts)
        asked = {row.prompt.partition("\n")[0] for row in task.train}
        assert {row.prompt.partition("\n")[0] for row in task.test} <= asked
        assert not {row.prompt.partition("\n")[0] for row in other.test} & asked
        assert {row.prompt for row in alone.test} <= {p.partition("\n")[2] for p in prompts}


def test_long_texts_use_each_input_once() -> None:
    assert long_prompts.texts(["a b c", "d", "e f", "g h"], 3, 2) == ["a b c", "d e f"]
    with pytest.raises(ValueError, match="2 texts of 3 words, 3 are needed"):
        long_prompts.texts(["a b c", "d", "e f", "g h"], 3, 3)


def test_auroc_counts_pairs() -> None:
    assert auroc([torch.tensor([3.0, 1.0])], [torch.tensor([2.0, 0.0])]) == 0.75


@pytest.mark.parametrize("shift", ["noise", "reworded"])
def test_a_shift_changes_prompts_the_same_way_each_time(shift: str) -> None:
    rows = [
        Example(f"Classify the sentence number {i} of the given text", ("a",)) for i in range(9)
    ]
    task = Task("t", rows, rows, rows)
    first, again = shifted(task, shift), shifted(task, shift)
    assert first.test == again.test != rows
    assert [example.references for example in first.test] == [("a",)] * 9
    words = zip(rows[0].prompt.split(), first.test[0].prompt.split(), strict=True)
    assert sum(a != b for a, b in words) < 6
    assert shifted(task, "none").test == rows


def test_other_words_keep_the_case() -> None:
    assert reworded("Classify a URL, given NASA's text", random.Random(0)) == (
        "Sort a URL, shown NASA's passage"
    )


def test_transfer_compares_the_same_task_after_the_same_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = []
    for name in ("copy", "letter"):
        task = make_task(name)
        write_jsonl(Path(f"{name}.jsonl"), [row.as_row() for row in task.train])
        write_jsonl(Path(f"{name}.test.jsonl"), [row.as_row() for row in task.test])
        configs.append({"path": f"{name}.jsonl", "test": f"{name}.test.jsonl"})
    monkeypatch.setattr(transfer, "PAIRS", {"tiny": tuple(configs)})
    backbone = save_backbone("llama", tmp_path / "backbone")
    words = "--pairs tiny --examples 4 8 --variants fresh nearest --steps 2 --json out.json"
    transfer.main([*words.split(), "--backbone", str(backbone)])
    rows = read_json(Path("out.json"))["rows"]
    cases = [(row["variant"], row["examples"], row["copied"]) for row in rows]
    assert cases == [
        ("fresh", 4, False),
        ("fresh", 8, False),
        ("nearest", 4, True),
        ("nearest", 8, True),
    ]
    runs = [results.open_run(Path("runs/transfer") / f"tiny-{v}-0-{n}") for v, n, _ in cases]
    trained = [results.task_record(run, run.learned()[1]).examples.train for run in runs]
    assert trained == [4, 8, 4, 8]
    assert [results.scores(run).matrix[1][1] for run in runs] == [row["score"] for row in rows]
    assert rows[0]["before"] == rows[2]["before"]  # the first task was learned alike
    assert capsys.readouterr().out.count("| tiny |") == 4


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WIDTH": 64, "BATCH": 2, "LENGTH": 12}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(tasks, "STEPS", 1)
    monkeypatch.setattr(tasks, "SAPT_STEPS", 2)
    monkeypatch.setattr(
        seekr_step, "Bench", lambda folder, length: Bench(folder, width=64, length=120)
    )


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.filterwarnings("ignore")  # what users would run instead warns as it likes
@pytest.mark.parametrize("group", costs.GROUPS.keys() - {"memory"})  # of the full size, always
def test_every_side_of_a_group_runs(group: str) -> None:
    times = costs.group_times(group, 2)
    wanted = {side for row in costs.ROWS if row.group == group for side in (row.above, row.below)}
    assert wanted == times.keys()
    assert all(len(seconds) == 2 for seconds in times.values())


def test_every_row_has_a_group_that_measures_it() -> None:
    assert {row.group for row in costs.ROWS} == costs.GROUPS.keys()
    assert len({row.key for row in costs.ROWS}) == len(costs.ROWS)
    low, high = costs.Row("", "", "", "", "≤ 1.04"), costs.Row("", "", "", "", "≥ 0.95")
    assert [row.met(bound) for row in (low, high) for bound in (0.9, 1.0, 1.1)] == [
        *(True, True, False),
        *(False, True, True),
    ]


def test_sorted_steps_pad_little() -> None:
    """The target of `padded_per_real_token`, which is counted and not timed."""
    found = tasks.padding(2)
    sides = {name: sum(counts) / sum(found["real"]) for name, counts in found.items()}
    assert 1.2 < sides["unsorted"] < 1.4  # as counted on SuperNI
    assert sides["computed"] < 1.15


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="it reads peaks from /proc")
def test_memory_is_foretold_and_measured(tmp_path: Path) -> None:
    memory.save_model(tmp_path / "model", width=64, layers=2)
    found = memory.measure(tmp_path / "model", "seqft", tmp_path, "float32", ["max_steps=1"])
    assert found["foretold"] > found["parts"]["weights"] > 4 * 64 * memory.VOCABULARY
    assert found["measured"] > 0


@pytest.mark.usefixtures("small")
def test_the_naive_pool_is_the_pool() -> None:
    """The same factors and weights give the same output in the papers' way."""
    model, plain = bench.bench_model(), bench.bench_model()
    pool = pool_of(model, 3)
    weights = mixing(3)
    learning = []
    for name, layer in pool.layers.items():
        naive = NaiveLinear(plain.get_submodule(name), 3)
        layer.B.data.normal_(std=0.1)
        As, Bs = layer.old_A.split(bench.RANK), layer.old_B.split(bench.RANK, 1)
        for i, (A, B) in enumerate(zip((*As, layer.A), (*Bs, layer.B), strict=True)):
            if i < 2:
                B.normal_(std=0.1)
            naive.A[i].data.copy_(A)
            naive.B[i].data.copy_(B)
        naive.weights = weights
        plain.set_submodule(name, naive)
        learning.append((layer.A, naive.A[-1]))
    pool.use(weights)
    ids = torch.randint(2, 100, (bench.BATCH, 12))
    found = []
    for side, of in ((model, 0), (plain, 1)):
        logits = side(ids).logits
        wanted = [weights, *(pair[of] for pair in learning)]
        found.append((logits, *torch.autograd.grad(logits.square().mean(), wanted)))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_growth_is_measured_over_the_first_side(tmp_path: Path) -> None:
    scale.write_blocks(tmp_path, 3)
    sides = [scale.load(tmp_path, 1), scale.load(tmp_path, 3)]
    sides += [scale.step(3, None), scale.step(10, 8), scale.decode(3, None), scale.decode(9, 8)]
    seconds, ratios = scale.growth(sides, 2)
    assert len(seconds) == len(ratios) == 6
    assert ratios[0] == 1.0


def test_the_best_threshold_lies_between_known_and_others() -> None:
    known, others = torch.tensor([0.6, 0.7, 0.8]), torch.tensor([0.1, 0.2, 0.3, 0.65])
    assert best_threshold(known[1:], others) == pytest.approx(0.675)
    # Below 0.6 it accepts 3 of 3 and rejects 3 of 4; above 0.65 it is 2 of 3 and 4 of 4.
    assert best_threshold(known, others) == pytest.approx(0.45)
    found = rates(0.45, [known], [others[:2], others[2:]])
    assert (found.accepted, found.rejected) == (1.0, 0.75)


def test_unknown_prompts_are_judged_on_other_tasks() -> None:
    """No task whose texts had a part in choosing the threshold has one in its rates."""
    tasks = []
    for i, name in enumerate(("a", "b", "c", "d", "e", "a again", "cb", "sst2 x", "f_1", "g", "h")):
        rows = [Example(f"{word} {i} " * 3, ("yes",)) for word in ("ant", "bear", "cat", "dog")]
        tasks.append(Task(name, rows[:3], rows[3:], rows[3:]))
    found = measured(make_backbone("llama"), "whitened", {}, tasks, ["none"])
    assert found.judges == 3
    assert found.chosen is not None
    assert found.default is not None
    assert found.default.threshold == THRESHOLD
    by = found.by_threshold
    assert [r.accepted for r in by] == sorted((r.accepted for r in by), reverse=True)
    assert [r.rejected for r in by] == sorted(r.rejected for r in by)
    assert len(found.curves["none"]) == len(tasks)
    published = measured(make_backbone("llama"), "attention", {}, tasks, ["none"])
    assert (published.judges, published.chosen) == (0, None)


def test_four_hundred_tasks_are_24_questions_about_16_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(folder: Path, split: str) -> list[Example]:
        count = 90 + int(folder.name[4:7])
        return [
            Example(f"Do.\n\nInput: {folder.name} row {i}\nOutput:", ("x",)) for i in range(count)
        ]

    monkeypatch.setattr(four_hundred, "DATA", tmp_path)
    monkeypatch.setattr(four_hundred, "read_superni", read)
    for i in range(18):
        (tmp_path / f"superni/task{i:03d}_x").mkdir(parents=True)
    tasks = four_hundred.tasks()
    assert list(tasks) == list(four_hundred.tasks())
    assert len(tasks) == 400
    assert {len(rows) for rows in tasks.values()} == {four_hundred.TRAIN + four_hundred.TEST}
    assert {name.split()[0] for name in tasks} == {f"task{i:03d}" for i in range(2, 18)}
    (row,) = (r for r in tasks["task005 backwards"] if "row 7\n" in r.prompt)
    assert row.references == ("7 row task005_x",)
    assert all(row.references[0] for rows in tasks.values() for row in rows)


TOY = ["--size", "toy", "--rounds", "2"]


@pytest.mark.parametrize(
    "rows",
    [
        [row for row in gpu.ROWS if row not in gpu.SHARD],
        pytest.param(gpu.SHARD, marks=pytest.mark.slow),
    ],
    ids=["one process", "shard"],
)
def test_every_row_of_the_gpu_benchmark_runs(
    rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu.main([*TOY, "--only", *rows, "--json", str(tmp_path / "found.json")]) == 0
    found = read_json(tmp_path / "found.json")["sizes"]["toy"]
    assert list(found) == rows
    for values in found.values():
        numbers = [*values.pop("quartiles"), *values.values()]
        assert set(values) == {"milliseconds", "tokens_per_second", "peak_gib"}
        assert all(math.isfinite(number) and number > 0 for number in numbers)
    printed = capsys.readouterr().out
    assert all(f"| {row} | " in printed for row in rows)


def test_a_row_without_memory_says_so_and_the_next_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(error: Exception) -> gpu.Row:
        def make(_: gpu.Bench) -> gpu.Found:
            raise error

        return gpu.Row(make)

    monkeypatch.setitem(gpu.ROWS, "pool 15", fails(torch.OutOfMemoryError("CUDA out of memory")))
    monkeypatch.setitem(gpu.ROWS, "pool 1", fails(ValueError("no such thing\nat all")))
    assert gpu.main([*TOY, "--only", "pool 15", "peft"]) == 0
    assert gpu.main([*TOY, "--only", "pool 1"]) == 1
    printed = capsys.readouterr().out
    assert "| pool 15 | out of memory | | | | |" in printed
    assert "| pool 1 | failed: no such thing | | | | |" in printed
    assert re.search(r"\| peft \| \d", printed)


def test_without_a_gpu_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "bench-gpu: this machine has no GPU; run it where there is one, or --size toy"
    ]


MEASURES = {
    "average_performance": 50.0,
    **dict.fromkeys(("forgetting", "forward_transfer", "backward_transfer", "rouge_l")),
    **dict.fromkeys(("own_block", "parameters", "minutes")),
    "megabytes_per_task": 1.0,
    "megabytes": 1.0,
}
RUN = {"seed": 0, "status": "finished", "measures": MEASURES}


def test_loss_curves_of_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for variant, steps in (("one", 3), ("two", 3)):
        folder = tmp_path / variant
        learner = make_learner("seqlora", make_backbone("llama"), folder, max_steps=steps)
        for task in ("copy", "letter") if variant == "one" else ("letter", "copy"):
            learner.learn(make_task(task))
        runs.append({**RUN, "variant": variant, "path": str(folder)})
    runs.append(
        {
            **RUN,
            "variant": "three",
            "path": "",
            "status": "failed",
            "reason": "why",
            "measures": None,
        }
    )
    sweep = {"files": [], "dev": False, "seeds": [0], "settings": {}, "variants": {}, "notes": []}
    write_json(tmp_path / "sweep.json", {**sweep, "runs": runs})
    picture, target = tmp_path / "a.svg", tmp_path / "a.json"
    arguments = ["--against", "one", "--picture", str(picture), "--json", str(target)]
    monkeypatch.setattr("sys.argv", ["", str(tmp_path / "sweep.json"), *arguments])
    precision.main()
    found = read_json(target)
    assert found["three"] == {"failed": "why"}
    assert found["one"]["distance"] == [0, 0]
    for task in range(2):
        one, two = (found[variant]["loss"][task] for variant in ("one", "two"))
        gaps = [abs(a - b) for a, b in zip(one, two, strict=True)]
        assert len(gaps) == 3
        assert found["two"]["distance"][task] == pytest.approx(sum(gaps) / 3)
        assert found["two"]["last"][task] == pytest.approx(sum(two) / 3)
    assert "two" in picture.read_text()
    named = "sapt rank=4 backbone.dtype=bfloat16 backbone.quantization=nf4"
    assert precision.label(named) == "sapt bfloat16 nf4"
