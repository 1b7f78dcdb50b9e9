"""Two processes that share out an optimizer's state compute what two that share nothing do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from retain.system import processes
from retain.testing.runs import FIRST, SECOND, KilledError, Record, carry_on, content
from retain.testing.tiny import make_backbone, make_learner
from tests.resilience.test_processes import launch


def learn(variant: str, folder: Path, shard: str, killed: bool) -> None:
    """Learns two tasks; killed after the second step of the second and resumed, if wished."""
    record = Record()
    learner = make_learner(
        variant,
        make_backbone("llama"),
        folder,
        record,
        per_device_train_batch_size=3,
        shard=shard,
    )
    learner.learn(FIRST)
    if not killed:
        learner.learn(SECOND)
        return
    record.when = lambda event: event.startswith("2 ")
    with pytest.raises(KilledError):
        learner.learn(SECOND)
    shares = [path.name for path in folder.rglob("checkpoint-*/optimizer*.pt")]
    assert len(shares) == processes.count() or shard == "none"
    carry_on(folder)


def main(folder: Path, shard: str, *variants: str) -> None:
    """What each process of a launch does."""
    for variant in variants:
        learn(variant, folder / variant / "none", "none", killed=False)
        learn(variant, folder / variant / shard, shard, killed=True)


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
    launch("tests.resilience.test_shard", str(tmp_path), "optimizer", *variants)
    for variant in variants:
        whole = content(tmp_path / variant / "none")
        assert len(whole) > 10
        assert content(tmp_path / variant / "optimizer") == whole


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
