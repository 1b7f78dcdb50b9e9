#!/usr/bin/env bash
# Builds the wheel, installs it into an empty environment, and learns a small stream there with a
# model and data of its own. Nothing of the repository but the wheel and make_inputs.py is used.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
unset PYTHONPATH

"$python" -m venv "$place/venv"
bin=$place/venv/bin
install="$bin/pip install --quiet --constraint $root/constraints.txt"
"$bin/pip" wheel --quiet --no-deps --wheel-dir "$place/dist" "$root"
$install torch # alone and first: the release for CPUs
$install "$place"/dist/retain-*.whl
cp "$root/tests/wheel/make_inputs.py" "$place"
cd "$place"

"$bin/python" - <<'PYTHON'
import sys
from importlib.resources import files

import retain

assert retain.__file__.startswith(sys.prefix), f"not the installed package: {retain.__file__}"
assert files("retain").joinpath("py.typed").is_file(), "the wheel has no py.typed"
PYTHON
"$bin/python" make_inputs.py .
cat > experiment.yaml <<'YAML'
backbone: model
method: {name: seqlora, rank: 2}
tasks: [{path: copy.jsonl}, {path: name.jsonl}]
training: {max_steps: 3, per_device_train_batch_size: 4}
evaluation: {max_new_tokens: 5}
YAML
"$bin/retain" run experiment.yaml --output runs/tiny
"$bin/retain" verify runs/tiny
"$bin/retain" generate runs/tiny "copy this word: owl" --json | grep -F '"output"'
"$bin/retain" report runs/tiny
"$bin/retain" sweep experiment.yaml --variants seqlora "sapt rank=2" --seeds 0 1 --csv sweep.csv
test "$(grep -c ,finished, sweep.csv)" = 4
if "$bin/retain" eval runs/tiny --general arc_easy 2> refusal; then exit 1; fi
grep -F "pip install 'retain[general]'" refusal
if "$bin/retain" serve runs/tiny 2> refusal; then exit 1; fi
grep -F "pip install 'retain[serve]'" refusal
echo "test-wheel: the installed wheel works"
