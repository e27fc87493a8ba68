# Every target sets up .venv by itself. It needs only Python and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SEED ?= 0
PORT ?= 7860
# One more than two cores: tests that wait for a process leave a core idle.
WORKERS ?= 3
VLLM := .venv-vllm
AXE := tests/axe/node_modules/axe-core/axe.min.js
VLLM_VERSION ?= 0.32.0
VLLM_TESTS ?=

.PHONY: demo app test test-vllm environments lint clean

demo: $(VENV)/.ready
	$(BIN)/python -m coconut_ds.demo --seed $(SEED)

# Shows the runs under outputs/, and the released checkpoint of the demo, so that nothing has to be trained first.
app: $(VENV)/.ready
	$(BIN)/python -m serve app --port $(PORT)

test: $(VENV)/.ready $(AXE)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# The plugin of vLLM, on a CPU, in an environment of its own: 2.5 GB, for which pip downloads about 0.5 GB.
test-vllm: $(VLLM)/.ready-$(VLLM_VERSION)
	cd serve/vllm && ../../$(VLLM)/bin/python -m pytest -n 2 --dist loadfile $(VLLM_TESTS)

# Both environments; with -j 2 at the same time.
environments: $(VENV)/.ready $(VLLM)/.ready-$(VLLM_VERSION)

lint: $(VENV)/.ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	cd serve/vllm && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml --explicit-package-bases \
		--cache-dir ../../.mypy_cache coconut_vllm

# DS_BUILD_OPS=0 builds none of DeepSpeed's ops, so that no compiler is needed.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# What the browser tests check the app's accessibility with; one of them is skipped without it.
$(AXE): tests/axe/package-lock.json
	npm ci --prefix tests/axe --no-audit --no-fund --silent && touch $@ || \
		echo "npm cannot install axe-core: the test of the app's accessibility is skipped" >&2

# The version is part of the stamp's name, so that another one is installed into a new environment.
$(VLLM)/.ready-$(VLLM_VERSION): serve/vllm/pyproject.toml serve/vllm/install_cpu.sh
	rm -rf $(VLLM)
	PYTHON=$(PYTHON) bash serve/vllm/install_cpu.sh $(VLLM) $(VLLM_VERSION)
	touch $@

clean:
	rm -rf $(VENV) $(VLLM) outputs dist tests/axe/node_modules
