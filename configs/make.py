"""Writes configs/paper and configs/smollm2: what three papers report, put together from pieces.

    python configs/make.py

The pieces are streams with their orders, backbones, and settings of papers with their methods. A
file has the settings of the paper that its folder is named after. What was not published, or not
found, keeps retain's default, and the head of the file says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from retain.methods import METHODS

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
    "smollm2": "models/SmolLM2-135M-Instruct",
}
PROMPT = ("l2p", "lfpt5", "progprompt", "sapt-prompt")
FULL = ("seqft", "ewc", "lwf", "replay", "derpp", "seekr", "multitask")
SIZE = "Weights, gradients and AdamW's moments in float32 are about 110 GB."
EWC = "The importances and the anchor are 54 GB more."
BIG = {"bf16": True, "gradient_checkpointing": True}


WRITING = {"weight": 0.25, "top_k": 64}
# Baselines with prompts, as their authors published them: `rate: 1` leaves learning_rate to them.
PUBLISHED: Mapping[str, Options] = {
    "l2p": {"pool_size": 10, "length": 5, "picked": 5, "weight": 0.5, "rate": 1.0},
    "lfpt5": {"length": 300, "rate": 1.0, "writing": WRITING, "distillation": 0.01},
    "progprompt": {"length": 10, "rate": 1.0},
}
T5_TRAINING: Mapping[str, Options] = {
    "l2p": {"learning_rate": 0.03},
    "lfpt5": {"learning_rate": 0.5, "optim": "adafactor", "weight_decay": 1e-5},
    "progprompt": {"learning_rate": 0.3, "weight_decay": 1e-5},
}
T5_NOTES = {
    "l2p": "Options and rate are those that L2P (arXiv 2112.08654) has for a vision transformer.",
    "lfpt5": "Optimizer, rate and options are those that LFPT5 (arXiv 2110.07298) has for "
    "classification by an adapted T5 v1.1; share and schedule of pseudo-samples are retain's.",
    "progprompt": "Length, rate and weight decay are ProgPrompt's own (arXiv 2301.12314). Its "
    "residual layer is on, as in the paper; the code has it 800 wide, and off unless asked for.",
}
LLAMA_NOTES = {
    "l2p": "",
    "lfpt5": " Share and schedule of pseudo-samples are, too.",
    "progprompt": " The residual layer is off: its norm drowns LLaMA's small embeddings.",
}


@dataclass(frozen=True)
class Setting:
    """How methods are trained. `trained`, `missing` and `notes` go by kind of method or its name.

    `orders` are the numbers of the orders that are reported, `steps` those of (method, task) that
    do not learn for the usual epochs.
    """

    paper: str
    source: str
    methods: str
    options: Mapping[str, Options]
    lora: Options
    training: Options
    more: Options  # fields of the experiment
    trained: Mapping[str, Options]  # fields of `training`, the rate among them
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    orders: str = "1 2 3 4 5 6"
    steps: Mapping[tuple[str, str], int] = field(default_factory=dict)


def training(epochs: int, size: int, rows: int, **more: bool) -> Options:
    """The published epochs and rows a step, on one device."""
    steps = {"per_device_train_batch_size": size, "gradient_accumulation_steps": rows // size}
    return {"num_train_epochs": epochs, **steps, "lr_scheduler_type": "constant", **more}


def lengths(prompt: int, answer: int) -> Options:
    """The most tokens of a prompt, and of an answer."""
    limits = {"max_prompt_tokens": prompt, "max_answer_tokens": answer}
    return {"evaluation": {"max_new_tokens": answer}, "prompt": limits}


def prompts(big: bool) -> tuple[dict[str, Options], dict[str, Options], dict[str, str]]:
    """Options, training and notes of the baselines with prompts, on LLaMA or on T5."""
    if big:
        text = "Options are those of the method's authors, for other backbones. The rate of the "
        text += "prompts, 5e-3, is retain's choice: none was found for LLaMA."
        notes = {name: text + more for name, more in LLAMA_NOTES.items()}
        return {**PUBLISHED}, {name: {"learning_rate": 5e-3} for name in PUBLISHED}, notes
    residual = {**PUBLISHED["progprompt"], "hidden": 800}
    return {**PUBLISHED, "progprompt": residual}, {**T5_TRAINING}, {**T5_NOTES}


def sapt(
    epochs: int,
    size: int,
    rank: int,
    weight: float,
    big: bool,
    note: str = "",
    steps: Mapping[str, int] | None = None,
    **own: Options,
) -> Setting:
    """SAPT: `weight` is of the reflection; `note`, `steps` and `own` are for its LoRA form."""
    options, trained, notes = prompts(big)
    reflection = {"reflection": {"weight": weight}}
    rate = 5e-5 if big else 3e-4
    pseudo, own_settings = "the generator's training", "SAPT's settings of the baseline"
    return Setting(
        "in SAPT (arXiv 2401.08295)",
        "Settings of SAPT's published scripts, which keep the checkpoint that is best on the test "
        "file; here it is the last.",
        "seqlora replay l2p lfpt5 progprompt olora sapt-prompt sapt pertask",
        {
            **options,
            "replay": {"tune": "lora"},
            "sapt-prompt": {"preset": "paper", "length": 10, "rate": 100.0, **reflection},
            "sapt": {"preset": "paper", **reflection, **own},
        },
        {"rank": rank, "alpha": 32},
        training(epochs, size, 32, **(BIG if big else {"bf16": True})),
        lengths(1024 if big else 512, 50),
        {**trained, "lora": {"learning_rate": rate}, "sapt-prompt": {"learning_rate": rate}},
        {
            "lora": f"{own_settings} (here SAPT-LoRA's)",
            "replay": f"{own_settings} (here SAPT-LoRA's), share and schedule of replay",
            "prompt": f"{own_settings} (epochs and batch here are SAPT-LoRA's)",
            "sapt-prompt": f"its own weight of reflection (here SAPT-LoRA's), {pseudo}",
            "sapt": "" if own else pseudo,
        },
        {
            **notes,
            "sapt": note,
            "sapt-prompt": f"The router learns at SAPT-LoRA's rate, the prompts at 100 x {rate:g} "
            f"= {100 * rate:g}; that and their length are retain's choice.",
        },
        "1 2 4 6",
        {("sapt", task): count for task, count in (steps or {}).items()},
    )


def amlora(big: bool, olora: str = "") -> Setting:
    """AM-LoRA; it takes streams and baselines from O-LoRA, whose settings stand for its own."""
    options, trained, notes = prompts(big)
    own = "AM-LoRA's own settings"
    rate = ", learning rate (SEEKR's for 7B stands here)" if big else ""
    return Setting(
        "in AM-LoRA (arXiv 2409.19611)",
        "AM-LoRA has no published code: these are the settings of O-LoRA's scripts (arXiv "
        "2310.14152), without their LoRA dropout of 0.1, and without the names of task and dataset "
        "that they put before every prompt.",
        "seqft seqlora inclora replay ewc lwf l2p lfpt5 progprompt olora pertask multitask amlora",
        {
            **options,
            "olora": {"weight": 0.5},
            "amlora": {
                "selector": {"gate": "softmax", "activation": "silu"},
                "sparsity": {"penalty": "entropy", "weight": 0.01},
            },
        },
        {"rank": 8, "alpha": 32},
        training(1, 4, 32, **BIG) if big else training(1, 8, 64),
        lengths(512, 50),
        {
            **trained,
            "lora": {"learning_rate": 1e-3},
            "full": {"learning_rate": 1e-5 if big else 1e-4},
        },
        {
            "lora": own,
            "full": f"{own}, the method's options{rate}",
            "prompt": f"{own} of the baseline",
            "amlora": f"{own}, the weight of its L1",
        },
        {
            **notes,
            "amlora": "The paper scores a block by a dense layer and a nonlinearity, then takes "
            "the softmax. It does not say which nonlinearity: SiLU is retain's choice. It has an "
            "L1 norm; that of a whole softmax is the constant 1, so here the entropy is kept low.",
            "olora": olora,
            "pertask": "PerTaskFT is a model a task, this a LoRA a task.",
            **({"ewc": EWC} if big else {}),
            "full": SIZE if big else "The rate is O-LoRA's for SeqFT; its first task has 1e-3.",
        },
    )


def seekr(epochs: int, trace: str = "") -> Setting:
    """SEEKR; `trace` are methods that it reports on TRACE only, as it does 10 % of replay."""
    options, trained, notes = prompts(big=True)
    tuned = "what its search chose of rate, options and epochs (5 to 15; here as for full tuning)"
    replay = {"share": 0.01, "every": "reference"}
    budget = " --set method.attention_weight=100 --set method.budget.layers=8"
    ten, seekr_ten = (
        f"\nAlso reported with 10 % of replay:\n  --set method.replay.share=0.1{more} "
        "--output {output}-10"
        if trace
        else ""
        for more in ("", budget)
    )
    own = {
        "profile": "reference",
        "budget": {"layers": 24, "heads": 128, "queries": 100},
        "logit_weight": 0.5,
        "attention_weight": 1000.0,
        "replay": replay,
        "teacher": {"top_k": 64, "dtype": "float16"},
    }
    return Setting(
        "in SEEKR (arXiv 2411.06171)",
        "Settings of SEEKR's paper and published scripts. Their AdamW has betas 0.9 and 0.95, this "
        "one 0.9 and 0.999; their replay baseline mixes kept examples into the task's batches. "
        "Their shell script asks for a cosine schedule, and their code makes a constant one.",
        f"seqft lwf lfpt5 l2p progprompt olora replay derpp seekr {trace}",
        {
            **options,
            "olora": {"weight": 0.5},
            "replay": {"replay": replay},
            "derpp": {"replay": replay},
            "seekr": own,
        },
        {"rank": 8, "alpha": 32},
        training(epochs, 2, 128, **BIG),
        {**lengths(1024, 512), "seed": 1234},
        {**trained, "lora": {"learning_rate": 1e-3}, "full": {"learning_rate": 1e-5}},
        {
            **dict.fromkeys(("prompt", "lora"), tuned),
            **dict.fromkeys(("ewc", "lwf", "derpp"), "the weights of its loss"),
            "multitask": "epochs",
        },
        {
            **notes,
            "lora": "Rank, alpha, weight and rate are O-LoRA's own (arXiv 2310.14152).",
            "full": SIZE,
            "ewc": EWC,
            **dict.fromkeys(("replay", "derpp"), ten),
            "seekr": "Over the profile's: 100 random queries, as in the paper (its script takes "
            "all), and the 64 largest logits in float16, for the disk." + seekr_ten,
        },
    )


GENERATOR = {"max_steps": 5000, "rate": 3.333, "max_new_tokens": 512}  # rate: 1e-3
ROWS = "A step of the generator has 16 rows there, and 32 here."
STOPS = {"cb": 100, "copa": 200, "boolq": 500, "imdb": 250, "dbpedia": 200, "multirc": 500}
LAMBDAS = (
    "O-LoRA's script for this stream changes its weights by task (0.5, then 5; a second one of up "
    "to 0.3); here 0.5 for all. It learns MNLI for two epochs, here for one."
)
REPORTED = {
    ("sapt", "superni", "t5-large"): sapt(100, 8, 4, 0.5, False, ROWS, generator=GENERATOR),
    ("sapt", "superni", "llama-2-7b"): sapt(50, 2, 4, 1.0, True),
    ("sapt", "long-sequence", "t5-large"): sapt(10, 16, 8, 0.1, False),
    ("sapt", "long-sequence", "llama-2-7b"): sapt(20, 2, 4, 2.0, True, steps=STOPS),
    ("amlora", "cl-standard", "t5-large"): amlora(False),
    ("amlora", "cl-standard", "llama-2-7b"): amlora(True),
    ("amlora", "long-sequence", "t5-large"): amlora(False, LAMBDAS),
    ("amlora", "long-sequence", "llama-2-7b"): amlora(True, LAMBDAS),
    ("seekr", "superni-12", "llama-2-7b-chat"): seekr(10),
    ("seekr", "trace", "llama-2-7b-chat"): seekr(5, "ewc multitask"),
    ("seekr", "trace", "vicuna-7b-v1.5"): seekr(5, "ewc multitask"),
}
SHORT = Setting(
    "in few steps on two cores",
    "`make demo` leaves the backbone.",
    "",
    {
        "sapt": {"generator": {"max_steps": 15}},
        "sapt-prompt": {"generator": {"max_steps": 15}},
        **{name: {"replay": {"every": 4}} for name in ("lfpt5", "replay", "derpp", "seekr")},
    },
    {"rank": 8, "alpha": 16},
    {"max_steps": 40, "per_device_train_batch_size": 8},
    {
        "evaluation": {"max_new_tokens": 24, "limit": 60, "batch_size": 60},
        "prompt": {"max_prompt_tokens": 256},
    },
    {
        "lora": {"learning_rate": 1e-3},
        "prompt": {"learning_rate": 1e-3},
        "full": {"learning_rate": 1e-4},
    },
)


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


def experiment(
    path: str, stream: str, backbone: str, method: str, one: Setting, options: Options
) -> str:
    """The text of a file."""
    reader, name = STREAMS[stream]
    (first, own), *others = orders(stream).items()
    full = method in FULL and options.get("tune") != "lora"
    kind = "prompt" if method in PROMPT else "full" if full else "lora"
    # Tasks that are learned together have one number of epochs.
    epochs = "num_train_epochs" in one.training and not METHODS[method].traits.waits
    output = f"runs/{path.removeprefix('paper/').removesuffix('.yaml').replace('/', '-')}"

    head = wrap(f"{name}, order {first}: {method} on {backbone} {one.paper}.", WIDTH - 2)
    head.append(f"  retain run configs/{path}")
    for number, order in ((n, order) for n, order in others if n in one.orders.split()):
        numbers = ",".join(str(list(own).index(task) + 1) for task in order)
        line = f"order {number}:  --set 'order=[{numbers}]'"
        for place, task in enumerate(own):
            if epochs and order[task] > own[task]:
                line += f" --set tasks.{place}.training.num_train_epochs=10"
        head.append(f"{line} --output {output}-order{number}")
    missing = one.missing.get(method, one.missing.get(kind, ""))
    labels = ",labels" if reader == "long_sequence" else ""
    frozen = kind != "full" and "7b" in backbone
    for note in (
        *(one.source, one.notes.get(kind, ""), one.notes.get(method, "")),
        f"Not published, or not found: {missing}." if missing else "",
        "The backbone is frozen, and in bfloat16 (14 GB)." if frozen else "",
        f"data/{reader}/<task>/{{train,test{labels}}}.json are the files of the benchmark.",
    ):
        for line in note.replace("{output}", output).split("\n"):
            head += [line] if "--set" in line else wrap(line, WIDTH - 2)

    fields = {
        "backbone": {"name": BACKBONES[backbone], "dtype": "bfloat16"}
        if frozen
        else BACKBONES[backbone],
        "method": {"name": method, **(one.lora if kind == "lora" else {}), **options},
        "tasks": [
            {"reader": reader, "path": f"data/{reader}/{task}"}
            | ({"training": {"num_train_epochs": 10}} if epochs and star else {})
            | (
                {"training": {"max_steps": one.steps[method, task]}}
                if (method, task) in one.steps
                else {}
            )
            for task, star in own.items()
        ],
        "training": {**one.training, **(one.trained.get(method) or one.trained[kind])},
        **one.more,
        "output": output,
    }
    body = yaml.safe_dump(fields, default_flow_style=None, sort_keys=False, width=WIDTH - 10)
    return "".join(f"# {line}\n" for line in head) + body


def files() -> dict[str, str]:
    """The text of every file, by its path in configs/."""
    found: dict[str, str] = {}
    for (paper, stream, backbone), one in REPORTED.items():
        for method in one.methods.split():
            options = one.options.get(method, {})
            path = f"paper/{paper}/{stream}/{backbone}-{method}.yaml"
            found[path] = experiment(path, stream, backbone, method, one, options)
            path = f"smollm2/{stream}-{method}.yaml"
            if path not in found:
                tune = {key: value for key, value in options.items() if key == "tune"}
                options = {**tune, **SHORT.options.get(method, {})}
                found[path] = experiment(path, stream, "smollm2", method, SHORT, options)
    return found


if __name__ == "__main__":
    for name, text in files().items():
        target = Path(__file__).parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
