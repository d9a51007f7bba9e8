# A fresh machine needs Python 3.11, pip and make: every target first sets up .venv with the versions that were tested.
#   make demo       grow a small model on the embedded text (about four minutes on two cores), then name the report
#   make test       every test, including those that start a real Ray cluster; `make test-fast` leaves those out
#   make test-gpu   what only a GPU can show, the gravest first (ten minutes on one card of 80 GB); skipped without one
#   make crash      let every write of a run fail, and let it die before and after each (an hour; SHARD=1/8 for less)
#   make large      pack more than 2^31 tokens for real (ten minutes, 12 GB of disk)
#   make mutants    plant every bug of tests/mutants in a copy, one at a time, and see that tests notice (JOBS=2 ONLY=seal-* SHARD=1/4)
#   make check      format, lint, types and layers; `make format` repairs what can be repaired
#   make clean      remove the environment and the caches; runs/ stays
# A GPU machine is set up by the same targets: pip decides which build of torch==(constraints.txt) it gets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Named after its inputs, so that a changed dependency installs again and an unchanged one costs nothing.
STAMP := $(VENV)/installed-$(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
SOURCES := growtx serve rayjobs benchmarks tests

.PHONY: demo test test-fast test-gpu mutants crash large readers check format install clean

demo: $(STAMP)
	$(BIN)/python rayjobs/grow.py

# Environments of other versions of libraries, which read what we write; torch and the like come from .venv.
READERS := .readers/transformers4/installed-4.57.6

readers: $(READERS)

$(READERS): $(STAMP)
	rm -rf .readers/transformers4
	$(PYTHON) -m venv $(dir $@) 2>/dev/null || $(PYTHON) -m venv --without-pip $(dir $@)
	$(BIN)/pip --python $(dir $@)bin/python install --quiet 'transformers==4.57.6' 'tokenizers<0.23.1' 'huggingface_hub<1'
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' > $$(echo $(dir $@)lib/python*/site-packages)/zz_venv.pth
	touch $@

# First what needs no cluster, in two processes and in another order every time (`make test ORDER=N` repeats one); then the rest, two clusters at a time: each waits for processes that start and die.
test: test-fast
	$(BIN)/python -m pytest -m ray --numprocesses 2 --dist loadfile

ORDER ?= $(shell date +%s)

test-fast: $(STAMP) readers
	@echo "order of tests: ORDER=$(ORDER)"
	GROWTX_TEST_ORDER=$(ORDER) $(BIN)/python -m pytest -m "not ray" --numprocesses 2 --dist loadfile

test-gpu: $(STAMP)
	CUDA_VISIBLE_DEVICES=$(or $(CUDA_VISIBLE_DEVICES),0) $(BIN)/python -m pytest -m gpu -s -x tests/gpu

JOBS ?= 2
SHARD ?= 1/1

mutants: $(STAMP)
	$(BIN)/python tests/mutants/run.py --jobs $(JOBS) --shard $(SHARD) $(if $(ONLY),--only '$(ONLY)')

large: $(STAMP)
	GROWTX_LARGE_TESTS=1 $(BIN)/python -m pytest tests/data/test_packing_job.py -k for_real --timeout 3600

crash: $(STAMP)
	$(BIN)/python -m tests.crash.harness $(SHARD) $(JOBS)

check: $(STAMP)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

install: $(STAMP)

# Debian ships `venv` without pip unless python3-venv is there too; the pip of the machine then fills the environment.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "growtx needs Python 3.11: make PYTHON=python3.11")'
	@echo "Setting up $(VENV), once: some minutes and 3 GB"
	$(PYTHON) -m venv $(VENV) 2>/dev/null || $(PYTHON) -m venv --without-pip $(VENV)
	test -x $(BIN)/pip || $(PYTHON) -m pip --python $(BIN)/python install --quiet pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@rm -f $(VENV)/installed-* && touch $@

clean:
	rm -rf $(VENV) .readers .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
