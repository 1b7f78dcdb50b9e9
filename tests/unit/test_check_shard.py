"""What several processes cannot share out is refused before a backbone is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from retain import Learner, RetainError
from retain.backbone import BackboneConfig
from retain.learner.check_shard import check_shard
from retain.methods import METHODS
from retain.methods.seqft import SeqFt
from retain.system import processes
from retain.testing.tiny import make_backbone
from retain.training.config import Shard, TrainingConfig, effective
from retain.training.fit import check_class


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of one of two processes, which nothing here connects."""
    monkeypatch.setenv("WORLD_SIZE", "2")


REFUSED = [
    (
        "ewc",
        {"fisher": "batches"},
        {"shard": "full"},
        {},
        "reads or changes the weights",
    ),
    ("seqft", {}, {"shard": "full", "optim": "adafactor"}, {}, "share out what optim: adafactor"),
    ("seqlora", {}, {"shard": "full", "torch_compile": True}, {}, "torch_compile: true; set it"),
    ("seqlora", {}, {"shard": "full"}, {"quantization": "nf4"}, "backbone.quantization: nf4; set"),
    ("seqft", {}, {"shard": "optimizer", "optim": "paged_adamw_8bit"}, {}, "the pages of optim"),
]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(("name", "options", "training", "backbone", "says"), REFUSED)
def test_it_is_refused_before_the_backbone_is_looked_for(
    name: str,
    options: dict[str, Any],
    training: dict[str, Any],
    backbone: dict[str, Any],
    says: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(RetainError, match=says) as caught:
        Learner(
            BackboneConfig.model_validate({"name": "nowhere", **backbone}),
            {"name": name, **options},
            tmp_path / "run",
            training=training,
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("name", sorted(METHODS))
def test_built_in_methods_are_accepted_with_their_defaults(name: str) -> None:
    method = METHODS[name]
    training, source = TrainingConfig(), make_backbone("llama").source
    shards: tuple[Shard, ...] = ("optimizer", "full")
    for shard in shards:
        check_shard(method, method.Config(), source, training, shard)


@pytest.mark.usefixtures("two")
def test_a_method_that_says_nothing_is_refused_where_it_trains_the_backbone() -> None:
    class Own(SeqFt):
        only_calls = False

    training = TrainingConfig(shard="full")
    with pytest.raises(RetainError, match="reads or changes the weights"):
        check_shard(Own, Own.Config(), make_backbone("llama").source, training, training.shard)


@pytest.mark.usefixtures("two")
def test_a_class_without_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = make_backbone("llama")
    check_class(backbone, TrainingConfig(shard="full"))
    monkeypatch.setattr(backbone.model, "_no_split_modules", None)
    with pytest.raises(RetainError, match="names no layers of LlamaForCausalLM"):
        check_class(backbone, TrainingConfig(shard="full"))


def test_one_process_shares_nothing_out() -> None:
    training = TrainingConfig(shard="full", torch_compile=True)
    shard = effective(training.shard)
    method = METHODS["seqft"]
    check_shard(method, method.Config(), make_backbone("llama").source, training, shard)


@pytest.mark.parametrize("variable", sorted(processes.ENGINES))
def test_another_engine_is_refused(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "true")
    says = r"^accelerate launch: asks for .*launch without it .*training\.shard: "
    with pytest.raises(RetainError, match=says):
        Learner("nowhere", "seqlora", tmp_path / "run")
    monkeypatch.setenv(variable, "false")
    with pytest.raises(RetainError, match="nowhere"):
        Learner(tmp_path / "nowhere", "seqlora", tmp_path / "run")


def test_an_error_of_the_first_process_is_raised_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> int:
        raise RetainError("the file is damaged")

    said: list[Any] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "gather", lambda values: said.extend(values) or said)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(RetainError, match=r"^the file is damaged$"):
            processes.from_first(fails)
    assert said == ["the file is damaged"]
