# make train   train the main job (ALGO, ENV, RESET, PRESET and ARGS pass through), in its own .venv
# make demo    run experiments/demo.yaml, 7 minutes on 2 idle cores, and write its report
# make study   run experiments/study.yaml, when does a reset pay?, and write its report
# make test    run the quick test suite in WORKERS processes (2); `make test-slow` adds the learning tests
# make check   lint, format check, types and quick tests
# make bench   short runs of the benchmarks behind the figures in results/
# make newest  the quick tests on the newest releases within the pinned major versions, once a week
# make audit   known vulnerabilities of everything in requirements.lock; `make lock` writes that file

PYTHON ?= python3
ALGO   ?= sac
ENV    ?= h1-walk
RESET  ?= fire
PRESET ?= quick
ARGS   ?=
WORKERS ?= 2
TOGETHER = -n $(WORKERS) --dist worksteal

BIN := .venv/bin

.PHONY: train demo study test test-slow check bench newest audit lock clean

train: .venv/installed
	$(BIN)/python train.py --algo $(ALGO) --env $(ENV) --reset $(RESET) --preset $(PRESET) $(ARGS)

demo: .venv/installed
	$(BIN)/python sweep.py experiments/demo.yaml
	$(BIN)/python report.py runs/demo

study: .venv/installed
	$(BIN)/python sweep.py experiments/study.yaml
	$(BIN)/python report.py runs/study

test: .venv/installed-dev
	$(BIN)/python -m pytest $(TOGETHER)

test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -m "slow or not slow"

check: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest $(TOGETHER)

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks.throughput --rounds 5
	$(BIN)/python -m benchmarks.reset --networks nature_cnn simba --repeats 3
	$(BIN)/python -m benchmarks.envs
	$(BIN)/python -m benchmarks.dqn updates --rounds 10
	$(BIN)/python -m benchmarks.dqn end-to-end --rounds 10
	$(BIN)/python -m benchmarks.atari --rounds 5
	$(BIN)/python -m benchmarks.overlap --rounds 2

newest:
	PYTHON=$(PYTHON) .ci/newest

lock: .venv-tools/installed
	PATH="$(CURDIR)/.venv-tools/bin:$$PATH" .ci/lock

audit: .venv-tools/installed
	.venv-tools/bin/pip-audit --disable-pip --require-hashes -r requirements.lock

.venv-tools/installed:
	@$(PYTHON) -m venv .venv-tools
	.venv-tools/bin/python -m pip install --disable-pip-version-check -q uv==0.13.9 pip-audit==2.10.1
	@touch $@

clean:
	rm -rf .venv .venv-newest .venv-tools .pytest_cache .ruff_cache .mypy_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed, $(PYTHON) is `$(PYTHON) --version`; set PYTHON=..."; exit 2; }
	@$(PYTHON) -m venv .venv \
	  || { rm -rf .venv; echo "could not create .venv; on Debian: apt-get install python3-venv"; exit 2; }

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt requirements-studies.txt .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements-dev.txt
	@touch $@
