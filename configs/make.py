"""Writes configs/paper and configs/smollm2: what three papers report, put together from pieces.

    python configs/make.py

The pieces are streams with their orders, backbones, and settings of papers with their methods. Only
what was published is set. The rest keeps retain's default, and the head of a file says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

WIDTH = 100
Options = Mapping[str, Any]

STREAMS = {
    "cl-standard": ("long_sequence", "Standard CL benchmark"),
    "long-sequence": ("long_sequence", "Long Sequence (orders 4 and 6 are 3 and 4 in SAPT)"),
    "superni": ("superni", "Super-NaturalInstructions, SAPT's 15 tasks"),
    "superni-12": ("superni", "Super-NaturalInstructions, SEEKR's 12 tasks"),
    "trace": ("trace", "TRACE (SEEKR takes the version with reasoning)"),
}
# A stream's files have its first order. A star: 10 epochs in this order.
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
SUPERNI = """
task002_quoref_answer_generation task073_commonsenseqa_answer_generation
task1290_xsum_summarization task1510_evalution_relation_extraction task1572_samsum_summary
task1590_diplomacy_text_generation task1687_sentiment140_classification
task1729_personachat_generate_next task181_outcome_extraction task195_sentiment140_classification
task363_sst2_polarity_classification task511_reddit_tifu_long_text_summarization
task591_sciq_answer_generation task639_multi_woz_user_utterance_generation
task748_glucose_reverse_cause_event_detection task875_emotion_classification
"""
BACKBONES = {
    "t5-large": "google-t5/t5-large",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-2-7b-chat": "meta-llama/Llama-2-7b-chat-hf",
    "vicuna-7b-v1.5": "lmsys/vicuna-7b-v1.5",
}
PROMPT = ("l2p", "lfpt5", "progprompt", "sapt-prompt")
FULL = ("seqft", "ewc", "lwf", "replay", "derpp", "seekr", "multitask")


@dataclass(frozen=True)
class Setting:
    """How a paper trains; `rates`, `missing` and `notes` go by method, or by kind of method."""

    paper: str
    source: str
    methods: Mapping[str, Options]
    rows: tuple[int, int, int]  # epochs, rows a batch, batches a step
    lengths: tuple[int, int]  # most tokens of a prompt and of an answer
    rates: Mapping[str, float]
    lora: Options
    missing: Mapping[str, str]
    notes: Mapping[str, str] = field(default_factory=dict)
    more: Options = field(default_factory=dict)  # fields of the experiment


def sapt(rows: tuple[int, int, int], length: int, rate: float, rank: int, **own: Any) -> Setting:
    """SAPT; `own` are options of its LoRA form."""
    theirs = "this baseline's own settings (here SAPT-LoRA's)"
    return Setting(
        "SAPT (arXiv 2401.08295)",
        "Settings of SAPT's published scripts, which keep the checkpoint that is best on the test "
        "file; here it is the last.",
        {
            **dict.fromkeys(("seqlora", "l2p", "lfpt5", "progprompt", "pertask"), {}),
            "replay": {"tune": "lora"},
            "olora": {"weight": 0.5},
            "sapt-prompt": {"preset": "paper"},
            "sapt": {"preset": "paper", **own},
        },
        rows,
        (length, 50),
        {"lora": rate},
        {"rank": rank, "alpha": 32},
        {
            "lora": theirs,
            "replay": f"{theirs}, share and schedule of replay",
            "prompt": f"{theirs}, learning rate, the method's options",
            "sapt": "" if "generator" in own else "learning rate and steps of the generator",
        },
    )


def amlora(rows: tuple[int, int, int], **rates: float) -> Setting:
    """AM-LoRA; it takes streams and baselines from O-LoRA, whose settings stand for its own."""
    own = "AM-LoRA's own settings"
    rate = "" if "full" in rates else ", learning rate (SEEKR has 1e-5 for 7B)"
    return Setting(
        "AM-LoRA (arXiv 2409.19611)",
        "AM-LoRA has no published code: these are the settings of O-LoRA's scripts (arXiv "
        "2310.14152), without their LoRA dropout of 0.1.",
        {
            **dict.fromkeys(("seqft", "seqlora", "inclora", "replay", "ewc", "lwf", "l2p"), {}),
            **dict.fromkeys(("lfpt5", "progprompt", "pertask", "multitask", "amlora"), {}),
            "olora": {"weight": 0.5},
        },
        rows,
        (512, 50),
        rates,
        {"rank": 8, "alpha": 32},
        {
            "lora": own,
            "full": f"{own}, the method's options{rate}",
            "prompt": f"{own}, learning rate, the method's options",
            "amlora": f"{own}, the selector, the sparsity term and its weight",
        },
        {
            "pertask": "PerTaskFT is a model a task, this a LoRA a task.",
            "full": "" if rate else "The rate is O-LoRA's for SeqFT, but 1e-3 in its first task.",
        },
    )


def seekr(epochs: int, *bounds: str) -> Setting:
    """SEEKR; `bounds` are methods that it reports on TRACE only, as it does 10 % of replay."""
    tuned = "learning rate (searched), epochs (5 to 15; here as for full tuning), options"
    replay = {"share": 0.01, "every": "reference"}
    ten = "10 % of replay:  --set method.replay.share=0.1"
    budget = "--set method.attention_weight=100 --set method.budget.layers=8"
    own = {
        "profile": "reference",
        "budget": {"layers": 24, "heads": 128, "queries": 100},
        "logit_weight": 0.5,
        "attention_weight": 1000.0,
        "replay": replay,
        "teacher": {"top_k": 64, "dtype": "float16"},
    }
    return Setting(
        "SEEKR (arXiv 2411.06171)",
        "Settings of SEEKR's paper and published scripts: 128 rows a step; their AdamW has betas "
        "0.9 and 0.95, this one 0.9 and 0.999.",
        {
            **dict.fromkeys(("seqft", "lwf", "lfpt5", "l2p", "progprompt", "olora", *bounds), {}),
            **dict.fromkeys(("replay", "derpp"), {"replay": {**replay, "select": "first"}}),
            "seekr": own,
        },
        (epochs, 2, 64),
        (1024, 512),
        {"full": 1e-5},
        {},
        {
            **dict.fromkeys(("prompt", "lora"), tuned),
            **dict.fromkeys(("ewc", "lwf", "derpp"), "the weights of its loss"),
            "multitask": "epochs",
        },
        {"replay": ten, "derpp": ten, "seekr": f"{ten} {budget}"} if bounds else {},
        {"seed": 1234},
    )


# SAPT's generator, with 16 rows a step there, and its reflection.
WRITER = {"max_steps": 5000, "rate": 3.333, "max_new_tokens": 512}
ARM = [{"weight": weight} for weight in (0.1, 0.5, 1.0, 2.0)]
T5, LLAMA = amlora((1, 8, 8), lora=1e-3, full=1e-4), amlora((1, 4, 8), lora=1e-3)
# Of two papers on one stream, the first has the methods that both report.
REPORTED = {
    ("cl-standard", "t5-large"): [T5],
    ("cl-standard", "llama-2-7b"): [LLAMA],
    ("long-sequence", "t5-large"): [sapt((10, 16, 2), 512, 3e-4, 8, reflection=ARM[0]), T5],
    ("long-sequence", "llama-2-7b"): [sapt((20, 2, 16), 1024, 5e-5, 4, reflection=ARM[3]), LLAMA],
    ("superni", "t5-large"): [sapt((100, 8, 4), 512, 3e-4, 4, reflection=ARM[1], generator=WRITER)],
    ("superni", "llama-2-7b"): [sapt((50, 2, 16), 1024, 5e-5, 4, reflection=ARM[2])],
    ("superni-12", "llama-2-7b-chat"): [seekr(10)],
    ("trace", "llama-2-7b-chat"): [seekr(5, "ewc", "multitask")],
    ("trace", "vicuna-7b-v1.5"): [seekr(5, "ewc", "multitask")],
}
SHORT: dict[str, Options] = {
    **dict.fromkeys(("sapt", "sapt-prompt"), {"generator": {"max_steps": 15}}),
    **dict.fromkeys(("replay", "derpp", "seekr"), {"replay": {"every": 4}}),
}
"""What a method needs in a run of few steps."""


def kind(method: str, options: Options) -> str:
    """What a method trains: a `prompt`, `lora` blocks, or the `full` backbone."""
    if method in PROMPT:
        return "prompt"
    return "full" if method in FULL and options.get("tune") != "lora" else "lora"


def orders(stream: str) -> dict[str, dict[str, bool]]:
    """A stream's orders by number: the folder of each task, and whether it has a star."""
    folders = {name.split("_")[0].removeprefix("task"): name for name in SUPERNI.split()}
    found = {}
    for row in ORDERS.strip().split("\n"):
        name, number, *words = row.replace(":", "").split()
        if name == stream:
            stars = {word.strip("*"): "*" in word for word in words}
            found[number] = {folders.get(word, word): star for word, star in stars.items()}
    return found


def file(
    stream: str, title: str, path: str, epochs: bool, notes: list[str], fields: Options
) -> str:
    """The text of a file: as comments what it is, its command, other orders and notes; its fields.

    `epochs` says whether a task's own are given.
    """
    reader, name = STREAMS[stream]
    (first, own), *others = orders(stream).items()
    lines = [*wrap(f"{name}, order {first}: {title}.", WIDTH - 2), f"  retain run {path}"]
    for number, order in others:
        places = [list(own).index(task) for task in order]
        line = f"order {number}:  --set 'order=[{','.join(str(place + 1) for place in places)}]'"
        for place, (task, star) in zip(places, order.items(), strict=True):
            line += f" --set tasks.{place}.epochs=10" if epochs and star and not own[task] else ""
        lines.append(line)
    labels = ",labels" if reader == "long_sequence" else ""
    data = f"data/{reader}/<task>/{{train,test{labels}}}.json are the files of the benchmark."
    for note in (*notes, data):
        lines += [note] if "--set" in note else wrap(note, WIDTH - 2, break_on_hyphens=False)
    tasks = [
        {"reader": reader, "path": f"data/{reader}/{task}"}
        | ({"epochs": 10} if epochs and star else {})
        for task, star in own.items()
    ]
    backbone, method, *rest = fields.items()
    every = dict([backbone, method, ("tasks", tasks), *rest, ("output", f"runs/{output(path)}")])
    rows = [row for key, value in every.items() for row in block(key, value)]
    return "\n".join([*(f"# {line}" for line in lines), *rows, ""])


def flow(value: object) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=9999)[1:-2]


def block(key: str, value: object) -> Iterator[str]:
    """A field as YAML: tasks one a line, others on one line where they fit."""
    line = f"{key}: {flow(value)}"
    if isinstance(value, list):
        yield from (f"{key}:", *(f"  - {flow(item)}" for item in value))
    elif isinstance(value, Mapping) and len(line) > WIDTH - 2:
        yield f"{key}:"
        for inner, item in value.items():
            yield from (f"  {row}" for row in block(inner, item))
    else:
        yield line


def paper(stream: str, backbone: str, method: str, by: list[Setting], path: str) -> str:
    """A file with the settings of the first of the papers that report the method."""
    one, large = by[0], "7b" in backbone
    options, (epochs, size, steps), what = one.methods[method], one.rows, ""
    what = kind(method, options)
    note, missing = (said.get(method, said.get(what, "")) for said in (one.notes, one.missing))
    notes = [one.source, note]
    if large and what == "full":
        held = "importances and AdamW's moments" if method == "ewc" else "AdamW's moments"
        notes.append(f"Weights and {held} are float32: {160 if method == 'ewc' else 110} GB.")
    if missing:
        notes.append(f"Not published, or not found: {missing}.")
    rate = {"learning_rate": one.rates[what]} if what in one.rates else {}
    fields = {
        "backbone": BACKBONES[backbone],
        "method": {"name": method, **(one.lora if what == "lora" else {}), **options},
        "training": {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": size,
            "gradient_accumulation_steps": steps,
            **rate,
            "lr_scheduler_type": "constant",
            **({"bf16": True, "gradient_checkpointing": True} if large else {}),
        },
        "evaluation": {"max_new_tokens": one.lengths[1]},
        "prompt": {"max_prompt_tokens": one.lengths[0], "max_answer_tokens": one.lengths[1]},
        **one.more,
    }
    papers = " and ".join(each.paper for each in by)
    return file(stream, f"{method} on {backbone}, as in {papers}", path, True, notes, fields)


def short(stream: str, method: str, options: Options, path: str) -> str:
    """A file for a laptop, with the settings of superni-short.yaml and superni-replay.yaml."""
    what = kind(method, options)
    tune = {key: options[key] for key in ("tune",) if key in options}
    fields = {
        "backbone": "models/SmolLM2-135M-Instruct",
        "method": {
            "name": method,
            **({"rank": 8, "alpha": 16} if what == "lora" else {}),
            **tune,
            **SHORT.get(method, {}),
        },
        "training": {
            "max_steps": 30 if what == "full" else 50,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-4 if what == "full" else 1e-3,
        },
        "evaluation": {"max_new_tokens": 24, "limit": 60, "batch_size": 60},
        "prompt": {"max_prompt_tokens": 256},
        "seed": 0,
    }
    notes = ["models/SmolLM2-135M-Instruct is what `make demo` leaves."]
    title = f"{method} on SmolLM2-135M, in few steps, for two cores"
    return file(stream, title, path, False, notes, fields)


def files() -> dict[str, str]:
    """The text of every file, by its path in configs/."""
    found = {}
    for (stream, backbone), settings in REPORTED.items():
        for method in dict.fromkeys(name for one in settings for name in one.methods):
            by = [one for one in settings if method in one.methods]
            path = f"paper/{stream}/{backbone}-{method}.yaml"
            found[path] = paper(stream, backbone, method, by, f"configs/{path}")
            path = f"smollm2/{stream}-{method}.yaml"
            found[path] = short(stream, method, by[0].methods[method], f"configs/{path}")
    return found


def main() -> None:
    """Writes them, and deletes those that are no longer made."""
    here, made = Path(__file__).parent, files()
    for folder in ("paper", "smollm2"):
        for path in (here / folder).rglob("*.yaml"):
            if path.relative_to(here).as_posix() not in made:
                path.unlink()
    for name, text in made.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(text)


if __name__ == "__main__":
    main()
