"""Two processes that share out their work compute what two with whole copies of it do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retain.system import processes
from retain.testing.runs import FIRST, KIND, SECOND, KilledError, Record, carry_on, content
from retain.testing.tiny import OPTIONS, OWN_VARIANTS, make_backbone, make_learner
from tests.resilience.test_processes import assert_same, launch

LEFT_TO_ROUNDING = {
    "accumulated": ("seqft", KIND, {"gradient_accumulation_steps": 2}),
    "bfloat16": ("lwf", KIND, {"bf16": True, "gradient_checkpointing": True, "optim": "sgd"}),
    "t5": ("seekr", "t5", {}),
    "gpt2": ("multitask", "gpt2", {"optim": "sgd"}),
    "frozen": ("l2p", "qwen3", {"bf16": True, "gradient_checkpointing": True}),
}
"""More of what `full` has to give: a method, a kind of backbone and settings by a name."""


def learn(
    variant: str, folder: Path, shard: str, killed: bool = False, kind: str = KIND, **settings: int
) -> None:
    """Learns two tasks; killed after the second step of the second and resumed, if wished."""
    record = Record()
    learner = make_learner(
        variant,
        make_backbone(kind),
        folder,
        record,
        per_device_train_batch_size=3,
        shard=shard,
        **settings,
    )
    learner.learn(FIRST)
    if not killed:
        learner.learn(SECOND)
        return
    record.when = lambda event: event.startswith("2 ")
    with pytest.raises(KilledError):
        learner.learn(SECOND)
    shares = [path.name for path in folder.rglob("checkpoint-*/optimizer*.pt")]
    assert len(shares) == processes.count()
    carry_on(folder)


def main(folder: Path, *names: str) -> None:
    """What each process of a launch does: a variant and what it shares out, or a name of above."""
    for method in ("seekr", "derpp"):  # half precision makes rounding visible
        whole = {"teacher": {"dtype": "float32", "top_k": None}}
        OWN_VARIANTS[method] = (method, {**OPTIONS[method], **whole})
    for name in names:
        variant, _, shard = name.partition(":")
        if variant in LEFT_TO_ROUNDING:
            variant, kind, settings = LEFT_TO_ROUNDING[name]
            for shard in ("none", "full"):
                learn(variant, folder / name / shard, shard, kind=kind, **settings)
            continue
        learn(variant, folder / name / "none", "none")
        learn(variant, folder / name / "killed", shard, killed=True)
        if shard == "full":
            learn(variant, folder / name / "full", "full")


@pytest.mark.parametrize(
    "variants",
    [
        ("seqft",),
        pytest.param(("ewc", "lwf", "derpp", "seekr", "ewc-trace"), marks=pytest.mark.slow),
        pytest.param(("sapt", "seqlora", "replay"), marks=pytest.mark.slow),
    ],
    ids=lambda variants: variants[0],
)
def test_shares_of_an_optimizer_change_no_bit(tmp_path: Path, variants: tuple[str, ...]) -> None:
    """Not even of a run that is killed and resumed."""
    names = [f"{variant}:optimizer" for variant in variants]
    launch("tests.resilience.test_shard", str(tmp_path), *names)
    for name in names:
        whole = content(tmp_path / name / "none")
        assert len(whole) > 10
        assert content(tmp_path / name / "killed") == whole


@pytest.mark.parametrize(
    "variants",
    [
        ("ewc",),
        pytest.param(("seqft", "lwf", "derpp", "seekr"), marks=pytest.mark.slow),
        pytest.param(("sapt", "seqlora", "replay", "ewc-lora"), marks=pytest.mark.slow),
    ],
    ids=lambda variants: variants[0],
)
def test_shares_of_parameters_change_rounding_only(
    tmp_path: Path, variants: tuple[str, ...]
) -> None:
    """A run that is killed and resumed leaves the bytes of one that is not.

    The loaded weights of seqlora, sapt and ewc-lora are frozen, and what is trained is whole.
    """
    names = [f"{variant}:full" for variant in variants]
    launch("tests.resilience.test_shard", str(tmp_path), *names)
    for name in names:
        assert_same(tmp_path / name / "none", tmp_path / name / "full")
        whole = content(tmp_path / name / "full")
        assert len(whole) > 10
        assert content(tmp_path / name / "killed") == whole


@pytest.mark.slow
def test_shares_of_other_models_and_settings(tmp_path: Path) -> None:
    launch("tests.resilience.test_shard", str(tmp_path), *LEFT_TO_ROUNDING)
    for name in LEFT_TO_ROUNDING:
        assert_same(tmp_path / name / "none", tmp_path / name / "full")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
