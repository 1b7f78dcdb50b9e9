"""What configs/ composes is valid; what contradicts itself is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retain.errors import RetainError
from retain.experiment.compose import as_yaml, read_experiment
from retain.experiment.config import ExperimentConfig, resolved
from retain.experiment.merge import merge
from retain.methods import BUILT_IN
from tests.command import call, refused

FOLDER = Path(__file__).parents[2] / "configs"
STREAMS = {path.stem: path for path in sorted((FOLDER / "streams").glob("*.yaml"))}
RECIPES = {path.stem: path for path in sorted((FOLDER / "recipes").glob("*.yaml"))}

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
ROWS = [f"{place}/{method}" for place, methods in REPORTED.items() for method in methods.split()]


def compose(row: str, **more: Any) -> ExperimentConfig:
    """Of recipe/stream/backbone/method."""
    recipe, stream, backbone, method = row.split("/")
    files = [STREAMS[stream], RECIPES[recipe]]
    return read_experiment(files, backbone=backbone, method=method, **more)


@pytest.mark.parametrize("row", ROWS)
def test_every_row_that_is_reported_composes(row: str) -> None:
    experiment = compose(row)
    options = resolved(experiment)
    assert options.method["name"] == row.split("/")[-1]
    assert "/" in options.backbone.name
    assert options.training.lr_scheduler_type == "constant"
    assert "learning_rate" in options.training.model_fields_set  # written, and no default
    if "7b" in row and options.method["name"] in ("l2p", "lfpt5", "progprompt", "sapt-prompt"):
        assert options.training.learning_rate * options.method["rate"] <= 0.01


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_with_the_small_recipe_is_an_experiment(name: str) -> None:
    experiment = read_experiment([STREAMS[name], RECIPES["small"]], method="sapt")
    assert experiment.tasks
    assert experiment.backbone.name == "models/SmolLM2-135M-Instruct"
    assert f"configs/streams/{name}.yaml" in STREAMS[name].read_text() or (
        experiment.output is None or name == "demo"
    )


ORDERS = """
cl-standard 1: dbpedia amazon yahoo agnews
cl-standard 2: dbpedia amazon agnews yahoo
cl-standard 3: yahoo amazon agnews dbpedia
long-sequence 4: mnli cb wic copa qqp boolq rte imdb yelp amazon sst2 dbpedia agnews multirc yahoo
long-sequence 5: multirc boolq wic mnli cb copa qqp rte imdb sst2 dbpedia agnews yelp amazon yahoo
long-sequence 6: yelp amazon mnli cb copa qqp rte imdb sst2 dbpedia agnews yahoo multirc boolq wic
superni 1: 1572 363 1290 181 002 1510 639 1729 073 1590 748 511 591 1687 875
superni 2: 748 073 1590 639 1572 1687 591 363 1510 1729 181 511 002 1290 875
superni-12 1: 1572 363 1290 181 002 1510 073 748 511 591 195 875
superni-12 2: 748 073 1572 195 591 363 1510 181 511 002 1290 875
trace 1: C-STANCE FOMC MeetingBank Py150 ScienceQA NumGLUE-cm NumGLUE-ds* 20Minuten
trace 2: NumGLUE-cm* NumGLUE-ds* FOMC* 20Minuten C-STANCE Py150 MeetingBank ScienceQA
"""
"""As published. A star: SEEKR learns the task for 10 epochs in this order."""


@pytest.mark.parametrize("line", ORDERS.strip().splitlines())
def test_orders_are_the_published_ones(line: str) -> None:
    name, rest = line.split(" ", 1)
    order, tasks = rest.split(": ")
    experiment = read_experiment([STREAMS[name], RECIPES["small"]], method="sapt", order=order)
    folders = [Path(task.path).name for task in experiment.tasks]
    assert [f.removeprefix("task").split("_")[0] for f in folders] == tasks.replace("*", "").split()
    if order in ("1", "4"):  # the default
        assert read_experiment(STREAMS[name], method="sapt", backbone="x").tasks == experiment.tasks
    if name == "trace":
        for method in ("seqft", "multitask"):
            starred = compose(f"seekr/trace/llama-2-7b-chat/{method}", order=order).tasks
            epochs = [t.training.num_train_epochs if t.training else 5 for t in starred]
            longer = [10 if "*" in task and method != "multitask" else 5 for task in tasks.split()]
            assert epochs == longer


FULL = ["seqft", "ewc", "lwf", "replay", "derpp", "seekr", "multitask"]
"""Methods that train all weights, where they train no LoRA by `tune: lora`."""
RATES = {  # of full fine-tuning; a LoRA has 1e-3
    "superni small": 1e-4,
    "superni-short": 1e-4,
    "long-training": 5e-5,
}


@pytest.mark.parametrize("tune", [None, "full", "lora"])
@pytest.mark.parametrize("names", RATES)
def test_all_full_fine_tuning_has_a_lower_rate_and_no_lora_has(
    names: str, tune: str | None
) -> None:
    stream, *recipes = names.split()
    files = [STREAMS[stream], *(RECIPES[recipe] for recipe in recipes)]
    wrong = {}
    for method, kind in BUILT_IN.items():
        if tune and "tune" not in kind.Config.model_fields:
            continue
        changes = [f"method.tune={tune}"] if tune else []
        experiment = read_experiment(files, changes, method=method, backbone="x")
        as_in_sapt = (method, names) == ("replay", "superni small")
        lora = method not in FULL or (tune or ("lora" if as_in_sapt else "full")) == "lora"
        if experiment.training.learning_rate != (1e-3 if lora else RATES[names]):
            wrong[method] = experiment.training.learning_rate
    assert wrong == {}


# -- composing


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stream of two tasks, a recipe and a file of one's own."""
    monkeypatch.chdir(tmp_path)
    write("stream.yaml", "stream: s\ntasks: [{path: a.jsonl}, {path: b.jsonl}]\n")
    write(
        "recipe.yaml",
        """
        recipe: r
        covers: [{stream: s, backbone: tiny, method: [sapt, seqlora]}]
        backbones: {tiny: {name: some/tiny, dtype: bfloat16}}
        training: {max_steps: 5, learning_rate: 0.5}
        cases:
          - when: {method: sapt}
            method: {rank: 4}
            training: {learning_rate: 0.25}
            tasks: {b: {training: {max_steps: 7}}}
        """,
    )
    return tmp_path


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


CHOSEN = ("stream.yaml", "recipe.yaml", "--backbone", "tiny", "--method", "sapt")


def read(*files: str, **more: Any) -> ExperimentConfig:
    return read_experiment([Path(file) for file in files], **{"backbone": "tiny", **more})


def test_cases_count_over_the_file_and_later_files_over_both(place: Path) -> None:
    write("own.yaml", "training: {max_steps: 9}\n")
    experiment = read("stream.yaml", "recipe.yaml", "own.yaml", method="sapt")
    assert (experiment.training.max_steps, experiment.training.learning_rate) == (9, 0.25)
    assert experiment.method == {"name": "sapt", "rank": 4}
    assert (experiment.backbone.name, experiment.backbone.dtype) == ("some/tiny", "bfloat16")
    first, second = experiment.tasks
    assert first.training is None
    assert second.training is not None
    assert second.training.max_steps == 7
    other = read("stream.yaml", "recipe.yaml", changes=["method=seqlora", "training.max_steps=3"])
    assert (other.method, other.training.learning_rate) == ({"name": "seqlora"}, 0.5)
    assert other.training.max_steps == 3


@pytest.mark.parametrize(
    ("method", "changes", "rate"),
    [
        (None, [], 0.125),
        (None, ["method.tune=lora"], 0.5),
        (None, ['method.tune="lora"'], 0.5),
        (None, ["method={name: seekr, tune: lora}"], 0.5),
        ("{name: seekr, tune: lora}", [], 0.5),
        ("{tune: lora}", [], 0.5),
        ("{name: replay, tune: lora}", [], 0.125),  # its options fall away
        ("{tune: lora}", ["method.tune=full"], 0.125),
        ("{name: seekr, tune: lora}", ["method={name: seekr}"], 0.125),  # the whole section
        (None, ["method.tune=lora", "method={name: seekr}"], 0.125),
        (None, ["method={name: seekr}", "method.tune=lora"], 0.5),
        (None, ["method.tune=lora", "training.learning_rate=0.25"], 0.25),
    ],
)
def test_the_rate_of_full_fine_tuning_is_not_for_a_lora(
    place: Path, method: str | None, changes: list[str], rate: float
) -> None:
    write(
        "rates.yaml",
        "training: {learning_rate: 0.5}\n"
        "cases: [{when: {method: [seekr, seqft], tune: full}, training: {learning_rate: 0.125}}]\n",
    )
    files = ["stream.yaml", "rates.yaml"]
    if method:
        write("own.yaml", f"method: {method}\n")
        files.append("own.yaml")
    assert read(*files, method="seekr", changes=changes).training.learning_rate == rate
    assert read("stream.yaml", "rates.yaml", method="seqft").training.learning_rate == 0.125


@pytest.mark.parametrize("later", [False, True])
def test_a_case_chooses_what_a_method_trains(place: Path, later: bool) -> None:
    write(
        "own.yaml",
        "recipe: own\ncovers: [{method: [seekr, ewc], tune: lora}]\n"
        "training: {learning_rate: 0.5}\n"
        "cases:\n"
        "- {when: {tune: lora}, training: {learning_rate: 0.25, max_steps: 3}}\n"
        "- {when: {method: seekr}, training: {max_steps: 4}, method: {tune: lora}}\n",
    )
    write("tune.yaml", "cases: [{when: {method: ewc}, method: {tune: lora}}]\n")
    files = ["stream.yaml", "own.yaml", *(["tune.yaml"] if later else [])]
    training = read(*files, method="seekr").training
    assert (training.learning_rate, training.max_steps) == (0.25, 4)  # in the file's order
    says = r"own.yaml: the recipe 'own' has no tune 'full' here; it has lora"
    with pytest.raises(RetainError, match=says):
        read(*files, method="seekr", changes=["method.tune=full"])
    if later:
        assert read(*files, method="ewc").training.learning_rate == 0.25
    else:
        with pytest.raises(RetainError, match=says):
            read(*files, method="ewc")
    with pytest.raises(RetainError, match=r"method.tune=null: field 'method.tune': .*'lora'"):
        read(*files, method="seekr", changes=["method.tune=null"])


@pytest.mark.parametrize(
    ("method", "seed"), [("seqft", 1), ("seekr", 1), ("seqlora", 2), ("sapt", 2), ("l2p", 2)]
)
def test_tune_in_when_is_of_methods_without_that_option_too(
    place: Path, method: str, seed: int
) -> None:
    write("own.yaml", "cases: [{when: {tune: full}, seed: 1}, {when: {tune: lora}, seed: 2}]\n")
    assert read("stream.yaml", "own.yaml", method=method).seed == seed


def test_a_star_is_every_task(place: Path) -> None:
    write("all.yaml", "tasks: {'*': {training: {max_steps: 8, save_steps: 2}}}\n")
    changes = ["tasks.*.metric=rouge_l", "tasks.0.training.save_steps=3"]
    files = ("stream.yaml", "all.yaml", "recipe.yaml")  # whose case has 7 steps for b
    tasks = read(*files, method="sapt", changes=changes).tasks
    assert [task.metric for task in tasks] == ["rouge_l", "rouge_l"]
    settings = [task.training for task in tasks if task.training]
    assert [(t.max_steps, t.save_steps) for t in settings] == [(8, 3), (7, 2)]
    write("wrong.yaml", "tasks: {'*': {prompt_stil: sapt}}\n")
    with pytest.raises(RetainError, match=r"wrong.yaml: .*'tasks.\*.prompt_stil'"):
        read("stream.yaml", "wrong.yaml", method="sapt")


def test_options_beside_a_name_are_for_that_method_only(place: Path) -> None:
    write("one.yaml", "backbone: x\nmethod: {name: sapt, generator: {max_steps: 3}}\n")
    write("two.yaml", "method: {rank: 2}\n")
    assert read("one.yaml", "two.yaml").method == {
        "name": "sapt",
        "generator": {"max_steps": 3},
        "rank": 2,
    }
    assert read("one.yaml", "two.yaml", method="olora").method == {"name": "olora", "rank": 2}
    again = read("one.yaml", "two.yaml", changes=["method={name: olora, weight: 2}"])
    assert again.method == {"name": "olora", "weight": 2}


@pytest.mark.parametrize("order", ["reversed", "2,1"])
def test_orders_of_one_s_own(place: Path, order: str) -> None:
    experiment = read("stream.yaml", "recipe.yaml", method="sapt", order=order)
    assert [task.path for task in experiment.tasks] == ["b.jsonl", "a.jsonl"]
    assert read("stream.yaml", method="sapt", changes=[f"order={order}"]).tasks[0].path == "b.jsonl"


@pytest.mark.parametrize("order", [None, "2", "reversed", "2,1"])
def test_settings_of_the_task_that_is_learned_first(place: Path, order: str | None) -> None:
    write("s.yaml", Path("stream.yaml").read_text() + "orders: {1: [a, b], 2: [b, a]}\n")
    write(
        "own.yaml",
        "first_training: {learning_rate: 0.75, max_steps: 3}\n"
        "cases: [{when: {method: sapt}, first_training: {learning_rate: 0.125}}]\n",
    )
    experiment = read("s.yaml", "recipe.yaml", "own.yaml", method="sapt", order=order)
    chosen = [
        task.training.model_dump(exclude_unset=True) for task in experiment.tasks if task.training
    ]
    steps = {"max_steps": 7 if order else 3}  # what a file has for b by its name counts over it
    assert chosen == [{"learning_rate": 0.125, **steps}, *([] if order else [{"max_steps": 7}])]
    assert experiment.training.learning_rate == 0.25


@pytest.mark.parametrize(
    ("own", "changes", "says"),
    [
        ("first_training: {optim: 1}", (), "own.yaml: field 'tasks.1.training.optim'"),
        ('tasks: {"*": {training: {seed: 1}}}', (), "own.yaml: unknown field 'tasks.*.training.s"),
        ('tasks: {"*": {train_limit: 0}}', (), "own.yaml: field 'tasks.0.train_limit'"),
        ("tasks: {a: {training: {max_steps: x}}}", (), "own.yaml: field 'tasks.0.training.max_st"),
        ("seed: 1", ("tasks.*.extract=x",), "--set tasks.*.extract=x: field 'tasks.0.extract'"),
        ("seed: 1", ("tasks.*.x=1",), "--set tasks.*.x=1: unknown field 'tasks.0.x'"),
    ],
)
def test_a_task_s_bad_setting_is_said_of_the_file_that_has_it(
    place: Path, own: str, changes: tuple[str, ...], says: str
) -> None:
    write("own.yaml", own + "\n")
    files = [Path(name) for name in (*CHOSEN[:2], "own.yaml")]
    with pytest.raises(RetainError) as error:
        read_experiment(files, changes, method="sapt", backbone="tiny", order="2,1")
    assert str(error.value).startswith(says)


def test_a_dry_run_prints_the_same_experiment_and_writes_nothing(place: Path) -> None:
    before = sorted(place.iterdir())
    done = call("run", *CHOSEN, "--order", "2,1", "--dry-run")
    assert (done.status, done.err) == (0, "")
    assert sorted(place.iterdir()) == before
    write("again.yaml", done.out)
    again = read_experiment(Path("again.yaml"))
    assert done.out == as_yaml(again) + (
        "# memory: cannot be estimated: b.jsonl: no such file; check the path\n"
    )
    first = read("stream.yaml", "recipe.yaml", method="sapt", order="2,1")
    assert resolved(again) == resolved(first)


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("tasks: [{path: c.jsonl}]", (), ["stream.yaml and own.yaml: both have 'tasks'"]),
        ("stream: other", (), ["stream.yaml and own.yaml: both have 'stream'"]),
        ("recipe: other", (), ["recipe.yaml and own.yaml: both have 'recipe'"]),
        ("casess: []", (), ["own.yaml: unknown field 'casess'", "use one of"]),
        ("cases: [{method: {rank: 2}}]", (), ["own.yaml: field 'cases.0.when'", "add it"]),
        ("cases: [{when: {task: b}}]", (), ["own.yaml: unknown field 'cases.0.when.task'"]),
        (
            "cases: [{when: {method: saptt}}]",
            (),
            ["own.yaml: field 'cases.0.when.method': no method 'saptt'; choose one of"],
        ),
        (
            "cases: [{when: {order: 1}, method: sapt}]",
            (),
            ["own.yaml: field 'cases.0.method': a case has options only"],
        ),
        ("tasks: {c: {metric: rouge_l}}", (), ["own.yaml: field 'tasks.c'", "it has a, b"]),
        ("method: {rank: many}", (), ["own.yaml: field 'method.rank'", "valid integer"]),
        ("training: {max_step: 2}", (), ["own.yaml: unknown field 'training.max_step'"]),
        ("seed: 1", ("--method", "ewc"), ["recipe.yaml: the recipe 'r' has no method 'ewc'"]),
        ("seed: 1", ("--backbone", "t5"), ["the recipe 'r' has no backbone 't5'", "has tiny"]),
        ("method: {preset: papers}", (), ["own.yaml: field 'method.preset'", "default, paper"]),
        ("seed: 1", ("--order", "3"), ["field 'order'", "each number from 1 to 2 once"]),
        ("orders: {1: [a, c]}", (), ["own.yaml: field 'orders.1'", "each task", "'b'"]),
        ("orders: {1: [a, b]}", ("--order", "3"), ["no order '3'; choose one of 1, reversed"]),
        ("seed: 1", ("--order", "²,1"), ["field 'order'", "each number from 1 to 2 once"]),
        (
            "seed: 1\nseed: 2",
            (),
            ["own.yaml, line 2: not valid YAML (the key 'seed' is there twice"],
        ),
        (
            "orders: {1: [a, b], '1': [b, a]}",
            (),
            ["own.yaml, line 1", "the key '1' is there twice"],
        ),
        ("training: &t {extra: *t}", (), ["own.yaml, line 1", "'*t' stands inside '&t'"]),
        ("training: {extra: &t [*t]}", (), ["own.yaml, line 1", "'*t' stands inside '&t'"]),
        (
            "seed: 1",
            ("--set", "method={rank: 1, rank: 2}"),
            ["--set", "the key 'rank' is there tw"],
        ),
        *(
            (
                f"{section}:",
                (),
                [f"own.yaml: field '{section}': Input should be a valid dictionary; add options"],
            )
            for section in (
                "method",
                "backbone",
                "training",
                "first_training",
                "evaluation",
                "prompt",
            )
        ),
        ("cases: [{when: {order: true}}]", (), ["field 'cases.0.when.order.0'", "valid string"]),
        ("covers: [{order: 1}]", (), ["own.yaml: the recipe needs an order", "with --order: 1"]),
        ("covers: [{stream: t}]", (), ["own.yaml: the recipe has no stream 's' here; it has t"]),
        ("seed: 1", ("./own.yaml",), ["own.yaml: is named twice; name each file once"]),
    ],
)
def test_contradictions(place: Path, text: str, more: tuple[str, ...], says: list[str]) -> None:
    write("own.yaml", text + "\n")
    files = [*CHOSEN[:2], "own.yaml", *CHOSEN[2:]]
    refused("run", *files, *more, "--output", "out", says=says)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            "when: {stream: x}",
            "own.yaml: field 'cases.0.when.stream': no stream 'x'; choose one of s",
        ),
        ("when: {backbone: x}", "no backbone 'x'; choose one of tiny"),
        ("when: {method: ewc}", "no method 'ewc'; choose one of sapt, seqlora"),
        ("when: {tune: lore}", "no tune 'lore'; choose one of full, lora"),
        (
            "when: {tune: full}, method: {tune: lora}",
            "own.yaml: field 'cases.0': 'method.tune' decides whether this case matches; set it in",
        ),
        (
            "when: {stream: s, order: 3}",
            "field 'cases.0.when.order': no order '3'; choose one of 1, 2",
        ),
        ("when: {order: 2}, training: {x: 1}", "unknown field 'cases.0.training.x'"),
        ("when: {order: 2}, first_training: {x: 1}", "unknown field 'cases.0.first_training.x'"),
        ("when: {order: 2}, backbone: {x: 1}", "unknown field 'cases.0.backbone.x'"),
        ("when: {order: 2}, tasks: {a: {x: 1}}", "unknown field 'cases.0.tasks.a.x'"),
        (
            "when: {method: sapt}, method: {router: {x: 1}}",
            "unknown field 'cases.0.method.router.x'",
        ),
        ("when: {method: [sapt, seqlora]}, method: {router: {}}", "field 'cases.0.method.router'"),
    ],
)
def test_a_case_that_could_never_count_is_refused(place: Path, case: str, says: str) -> None:
    orders = "orders: {1: [a, b], 2: [b, a]}\n"
    write("stream.yaml", Path("stream.yaml").read_text() + orders)
    covers = "covers: [{stream: s, backbone: tiny, method: [sapt, seqlora]}]\n"
    write("own.yaml", f"{covers}cases: [{{{case}}}]\n")
    with pytest.raises(RetainError) as error:
        read("stream.yaml", "own.yaml", method="seqlora")
    assert says in str(error.value)


def test_options_for_a_method_that_is_not_chosen_are_checked(place: Path) -> None:
    write("own.yaml", "method: {name: sapt, rnk: 8}\n")
    with pytest.raises(RetainError, match=r"own.yaml: unknown field 'method.rnk'"):
        read("stream.yaml", "own.yaml", method="olora")


def test_a_recipe_covers_orders_too(place: Path) -> None:
    write("s.yaml", Path("stream.yaml").read_text() + "orders: {1: [a, b], 2: [b, a]}\n")
    write("one.yaml", "recipe: one\ncovers: [{stream: s, order: 1}]\n")
    assert read("s.yaml", "one.yaml", method="sapt", order="1").tasks[0].path == "a.jsonl"
    with pytest.raises(RetainError, match="the recipe 'one' has no order '2' here; it has 1"):
        read("s.yaml", "one.yaml", method="sapt", order="2")


@pytest.mark.parametrize("order", ["2", "2,1", "reversed", [2, 1]])
def test_a_list_that_is_a_named_order_has_its_cases(place: Path, order: Any) -> None:
    write(
        "s.yaml",
        Path("stream.yaml").read_text()
        + "orders: {1: [a, b], 2: [b, a]}\ncases: [{when: {order: 2}, seed: 7}]\n",
    )
    write("own.yaml", yaml.safe_dump({"order": order}))
    for experiment in (
        read("s.yaml", "own.yaml", method="sapt"),
        read("s.yaml", method="sapt", changes=[f"order={order}"]),
    ):
        assert (experiment.seed, experiment.tasks[0].path) == (7, "b.jsonl")
    assert read("s.yaml", method="sapt").seed == 0


def test_a_change_is_of_one_place_only(place: Path) -> None:
    write(
        "one.yaml",
        "method: sapt\ntraining: &t {max_steps: 1, extra: &e {ddp_timeout: 1}}\n"
        "tasks: [{path: a.jsonl, training: *t}, {path: b.jsonl, training: {extra: *e}}]\n",
    )
    changes = ["tasks.0.training.max_steps=9", "tasks.1.training.extra.ddp_timeout=9"]
    experiment = read("one.yaml", changes=changes)
    first, second = (task.training for task in experiment.tasks)
    assert first is not None
    assert second is not None
    assert [t.max_steps for t in (experiment.training, first)] == [1, 9]
    assert [t.extra["ddp_timeout"] for t in (experiment.training, first, second)] == [1, 1, 9]


def test_a_task_is_no_text(place: Path) -> None:
    write("one.yaml", "method: sapt\ntasks: [a.jsonl]\n")
    write("two.yaml", "tasks: {'': {training: {max_steps: 1}}}\n")
    with pytest.raises(RetainError, match=r"field 'tasks.0': Input should be a valid dictionary"):
        read("one.yaml", "two.yaml")


def test_keys_that_are_merged_may_be_there_again(place: Path) -> None:
    write(
        "one.yaml",
        "method: sapt\ntasks:\n- {path: a.jsonl, training: &a {max_steps: 1, save_steps: 4}}\n"
        "- {path: b.jsonl, training: &b {<<: *a, max_steps: 2}}\n"
        "- {path: c.jsonl, training: {<<: *b, max_steps: 3}}\n",
    )
    steps = [task.training for task in read("one.yaml").tasks]
    assert [(t.max_steps, t.save_steps) for t in steps if t] == [(1, 4), (2, 4), (3, 4)]


def test_a_recipe_says_what_it_needs(place: Path) -> None:
    refused("run", "recipe.yaml", says=["the recipe 'r' needs a stream; name its file before"])
    refused("run", "stream.yaml", "recipe.yaml", says=["needs a backbone", "--backbone: tiny"])
    refused("run", "recipe.yaml", "stream.yaml", says=["stream.yaml", "recipe.yaml; name it first"])
    write("one.yaml", "recipe: one\nmethod: {name: sapt}\n")
    with pytest.raises(RetainError, match="the recipe is of method 'sapt' and 'olora' is chosen"):
        read("stream.yaml", "one.yaml", method="olora")


VALUES = st.recursive(
    st.integers() | st.lists(st.integers(), max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)


@given(MAPPINGS, MAPPINGS)
def test_merging(below: dict[str, Any], above: dict[str, Any]) -> None:
    merged = merge(below, above)
    assert merge(merged, above) == merged
    assert merge(below, {}) == below
    assert merge({}, above) == above
    assert list(merged) == list(dict.fromkeys((*below, *above)))
    for key, value in above.items():
        if not (isinstance(value, Mapping) and isinstance(below.get(key), Mapping)):
            assert merged[key] == value
