# The commands of this repository, which 'make' prints. They need Python 3.11 or 3.12, git, gcc and make.
SHELL := /bin/bash
UV_VERSION := 0.13.9
PYTHON ?= python3
UV := .tools/bin/uv
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PYTHONDONTWRITEBYTECODE :=
export DO_NOT_TRACK := true
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export RAY_USAGE_STATS_ENABLED := 0
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.DEFAULT_GOAL := help
.PHONY: help env vbench-env repro toy-wan test test-slow test-browser check flow ablation ui compare tries send report profile dag plan lock clean

help: ## print these commands
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

##@ Prepare

env: .venv/.ready ## install the locked environment into .venv
vbench-env: .venvs/vbench/.ready ## install the separate environment of VBench

profile: env ## copy profiles/NAME.yaml to params.yaml: NAME=wan-1.3b
	python -m causvid.params use $(NAME)

plan: env ## estimate memory, time and disk of params.yaml, and name the limits of this machine
	python -m causvid.plan params.yaml

# The password of Prefect's server, if 'make ui' has created one.
PASSWORD := $(if $(wildcard .prefect/auth),PREFECT_API_AUTH_STRING="$$(cat .prefect/auth)")

# Compiles the bytecode of this project and of the modules that it imports, not of all packages, which would take a minute
# longer. A 'dvc repro' outside of this Makefile uses the bytecode too.
COMPILE := import importlib, pkgutil; \
  [importlib.import_module(it.name) for name in ('causvid', 'stages') for it in pkgutil.walk_packages([name], f'{name}.')]

$(UV):
	$(PYTHON) -m venv .tools
	.tools/bin/pip install --quiet uv==$(UV_VERSION)

# Installs the packages of this repository last, so that any folder can import them and the command causvid exists.
.venv/.ready: requirements.lock pyproject.toml Makefile | $(UV)
	test -x .venv/bin/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --python .venv requirements.lock
	$(UV) pip install --quiet --python .venv --no-deps --editable .
	.venv/bin/python -c "import dvc.cli, mlflow.tracking" & .venv/bin/python -c "$(COMPILE)" && wait $$!
	touch $@

.venvs/vbench/.ready: requirements/vbench.txt | $(UV)
	test -x .venvs/vbench/bin/python || $(UV) venv --quiet --python $(PYTHON) .venvs/vbench
	$(UV) pip sync --quiet --python .venvs/vbench --require-hashes requirements/vbench.txt
	touch $@

##@ Run

repro: env vbench-env ## run all stages that are out of date (laptop profile: about 5 minutes on two idle cores)
	@git rev-parse --git-dir > /dev/null 2>&1 || { echo "this folder is not a git repository, and DVC needs one: run 'git init' in it first"; exit 1; }
	@python -m causvid.repro dvc repro

flow: env vbench-env ## the same as make repro, as a Prefect flow
	@$(PASSWORD) python -m causvid.repro python -m flows.distill

report: env ## the same as make repro, only for the report and the stages that it depends on
	@python -m causvid.repro dvc repro report

ablation: env vbench-env ## measure the paper's Table 4 over five seeds (seven hours); then run make report
	@$(PASSWORD) python -m flows.ablate

toy-wan: env vbench-env ## retrain the weights in data/inputs/toy_wan (100 minutes); then run make profile NAME=laptop
	python -m causvid.params use toy-wan
	dvc repro evaluate@reconstruction evaluate@teacher evaluate@causal_teacher
	cd data/inputs/toy_wan && rm -rf vae text_encoder tokenizer transformer causal_transformer && \
	  cp -r ../../checkpoints/vae ../../checkpoints/text_encoder/* . && cp -r ../../checkpoints/teacher transformer && \
	  cp -r ../../checkpoints/causal_teacher causal_transformer

##@ Look

ui: env ## serve Prefect on http://127.0.0.1:4200 and MLflow on http://127.0.0.1:5000 until Ctrl-C
	@python -m flows.servers

compare: env ## compare MLflow runs in reports/compare/index.html: RUNS="id id" BASELINE=id; without RUNS, list the latest runs
	@python -m causvid.comparison.compare "$(RUNS)" --baseline "$(BASELINE)"

tries: env ## print the experiments of DVC: changed params and the eight headline numbers
	@python -m causvid.comparison.tries

send: env ## send the records that MLflow could not store during a stage
	@python -m causvid.harness.outbox

##@ Develop

test: env ## check the code, and run all tests except those marked slow, gpu or browser (about 20 minutes)
	$(MAKE) check
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu and not browser"

check: env ## check style, types and import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

test-slow: env vbench-env ## run the tests that take several minutes each
	python -m pytest -m slow

test-browser: env ## test the Prefect and MLflow pages in Debian's headless Chromium
	command -v chromium && command -v chromedriver || { apt-get update && apt-get install -y chromium chromium-driver; }
	python -m pytest -m browser

dag: env ## write docs/pipeline.md from dvc.yaml
	{ printf '# Graph of the pipeline\n\n`make dag` generates this page from dvc.yaml.\n\n```mermaid\n'; dvc dag --mermaid dvc.yaml; printf '```\n'; } > docs/pipeline.md

lock: $(UV) ## update both lock files from pyproject.toml and requirements/vbench.in
	$(UV) pip compile --quiet --universal --generate-hashes --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.11 --group dev pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --no-deps --generate-hashes --no-annotate --no-header --no-emit-index-url \
	  --python-version 3.11 requirements/vbench.in -o requirements/vbench.txt

clean: ## delete unfinished work, records that MLflow does not have yet, and caches of tools, but no data
	rm -rf .work .ruff_cache .mypy_cache .pytest_cache .hypothesis .import_linter_cache
