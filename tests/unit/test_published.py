"""What configs/ composes has the numbers of the published runs in tests/published.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.experiment.compose import read_experiment
from retain.experiment.config import ExperimentConfig, resolved
from retain.experiment.read_tasks import with_defaults

ROOT = Path(__file__).parents[2]
ENTRIES = yaml.safe_load((ROOT / "tests" / "published.yaml").read_text(encoding="utf-8"))
PLACES = ("recipe", "stream", "backbone", "method", "order", "preset")

OF_TRAINING = {
    "learning_rate": "learning_rate",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "scheduler": "lr_scheduler_type",
    "warmup_steps": "warmup_steps",
    "optimizer": "optim",
    "weight_decay": "weight_decay",
    "max_grad_norm": "max_grad_norm",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "bf16": "bf16",
}
"""Fields of training, by their names in the table."""


def rows() -> Iterator[Any]:
    """Each entry for each of its places."""
    for number, entry in enumerate(ENTRIES):
        lists = [several(entry.get(place)) for place in PLACES]
        for places in product(*lists):
            name = "/".join(str(place) for place in places if place is not None)
            yield pytest.param(places, entry["published"], id=f"{number}-{name}")


def several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def compose(
    recipe: str, stream: str, backbone: str, method: str, order: Any, preset: str | None
) -> ExperimentConfig:
    files = [ROOT / "configs" / "streams" / f"{stream}.yaml"]
    files.append(ROOT / "configs" / "recipes" / f"{recipe}.yaml")
    named = None if order is None else str(order)
    changes = [] if preset is None else [f"method.preset={preset}"]
    return resolved(read_experiment(files, changes, backbone=backbone, method=method, order=named))


@pytest.mark.parametrize(("places", "published"), list(rows()))
def test_a_published_run_is_what_is_composed(places: Any, published: Mapping[str, Any]) -> None:
    experiment = compose(*places)
    count = len(experiment.tasks)
    composed = {name: composed_value(experiment, name) for name in published}
    expected = {
        name: by_task(value, count) if isinstance(composed[name], list) else value
        for name, value in published.items()
    }
    assert composed == expected


def by_task(value: Any, count: int) -> list[Any]:
    """A number for each task."""
    if isinstance(value, list):
        assert len(value) == count
        return value
    if isinstance(value, Mapping):
        return [value["first"], *[value["others"]] * (count - 1)]
    return [value] * count


def composed_value(experiment: ExperimentConfig, name: str) -> Any:
    """A value of the run, or a list with the value of each task."""
    training = [
        experiment.training.model_copy(
            update=task.training.model_dump(exclude_unset=True) if task.training else {}
        )
        for task in experiment.tasks
    ]
    if name in OF_TRAINING:
        return [getattr(of_task, OF_TRAINING[name]) for of_task in training]
    if name == "rows":
        return [t.per_device_train_batch_size * t.gradient_accumulation_steps for t in training]
    if name in ("metric", "extract"):
        return [getattr(with_defaults(task), name) for task in experiment.tasks]
    if name == "max_new_tokens":
        own = [task.max_new_tokens for task in experiment.tasks]
        return [
            experiment.evaluation.max_new_tokens if tokens is None else tokens for tokens in own
        ]
    if name in ("prompt_style", "references"):
        return [getattr(task, name) for task in experiment.tasks]
    if name == "seed":
        return experiment.seed
    if name == "generator_rate":
        rate = experiment.method["generator"]["rate"] * experiment.training.learning_rate
        return round(rate, 6)  # written as a multiple with few digits
    if name.startswith("method."):
        value: Any = experiment.method
        for key in name.split(".")[1:]:
            value = value[key]
        return value
    return getattr(experiment.prompt, name)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry["source"])[:50])
def test_every_number_has_its_source(entry: Mapping[str, Any]) -> None:
    assert set(entry) <= {*PLACES, "source", "published"}
    source = entry["source"]
    assert source.startswith("not verified: arXiv ") or "@" in source.split()[0]


def test_ten_percent_of_replay_has_a_smaller_weight() -> None:
    """Not verified: the paper's text, of which the scripts have only the run with 1 %."""
    recipe = (ROOT / "configs" / "recipes" / "seekr.yaml").read_text(encoding="utf-8")
    comments = recipe.split("recipe:")[0]
    assert "method.replay.share=0.1" in comments
    assert "method.attention_weight=100 " in comments
