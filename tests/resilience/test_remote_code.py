"""Code of a backbone runs for whoever permits it, and for no run that only says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

from retain.testing.tiny import save_backbone
from tests.command import call, check, settings, snapshot, write_settings, write_tasks

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({mark!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a model folder whose code makes the file `ran`, tasks, `exp.yaml`."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.chdir(tmp_path)
    folder = save_backbone("llama", tmp_path / "own")
    values = json.loads((folder / "config.json").read_text())
    values["model_type"] = "own"
    values["auto_map"] = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "code.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    write_tasks(tmp_path)
    experiment = settings(Path("own"), "copy")
    experiment["backbone"]["trust_remote_code"] = True
    experiment["method"]["target_modules"] = ["q_proj"]
    write_settings(tmp_path / "exp.yaml", experiment)
    return tmp_path


def test_code_runs_where_it_is_permitted(place: Path) -> None:
    ran = place / "ran"
    untrusted = ("run", "exp.yaml", "--set", "backbone.trust_remote_code=false")
    check(call(*untrusted), ["backbone 'own': needs to run code", "trust_remote_code: true"])
    assert not ran.exists()
    done = call("run", "exp.yaml")
    assert done.status == 0, done.err
    assert ran.exists()
    ran.unlink()
    for command in (
        ("generate", "out", "a prompt"),
        ("eval", "out"),
        ("learn", "out", "letter.jsonl"),
        ("export", "out", "exported"),
        ("serve", "out", "--port", "0"),
    ):
        before = snapshot(place / "out")
        done = call(*command)
        check(done, ["out: its backbone './own' runs code of its own", "add --trust-remote-code"])
        assert snapshot(place / "out") == before
    assert not ran.exists()
    for command in (("generate", "out", "p"), ("eval", "out"), ("learn", "out", "letter.jsonl")):
        done = call(*command, "--trust-remote-code")
        assert done.status == 0, done.err
    assert call("run", "exp.yaml", "--resume").status == 0
