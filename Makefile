# The commands of the README.  Each makes what it needs; a second run takes seconds.
#   make demo     run a model in the terminal            make test    run the tests
#   make lint     check style, types and imports         make format  rewrite the code in the house style
#   make env      make the environment .venv alone       make clean   remove what these commands made
#   make bench    measure this engine beside its peers   make peers   install the peers, in .bench
#   make docs     build the documentation, in docs/build
#   make conformance  compare every architecture with transformers, and write the table of docs/models.md (ten minutes)
#   make sanitize run the kernels' tests in a build that checks every access (every night; minutes)
# PYTHON=python3.12 chooses the interpreter, ARGS="..." is handed on to pytest, the benchmark or the peers' installer.

PYTHON ?=
ARGS ?=
BIN := .venv/bin
PACKAGE_STAMP := .venv/.package-installed
TEST_STAMP := .venv/.test-tools-installed
NATIVE := vllm/ops/native
KERNELS := $(NATIVE)/sources.py $(NATIVE)/src $(wildcard $(NATIVE)/src/*)
INSTALLED_BY := pyproject.toml setup.py vllm/version.py tools/environment.sh $(KERNELS)

.PHONY: conformance demo test lint lint-code lint-types lint-imports format env bench peers docs sanitize clean

demo: $(PACKAGE_STAMP)
	$(BIN)/vllm run "Hello, my name is"

test: $(TEST_STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: lint-code lint-types lint-imports

lint-code: $(TEST_STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint-types: $(TEST_STAMP)
	$(BIN)/mypy

lint-imports: $(TEST_STAMP)
	$(BIN)/lint-imports

format: $(TEST_STAMP)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

env: $(TEST_STAMP)

bench: $(PACKAGE_STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

peers: $(PACKAGE_STAMP)
	$(BIN)/python -m benchmarks.environments $(ARGS)

docs: $(TEST_STAMP)
	$(BIN)/python -m sphinx -q -W --keep-going -n -b html docs docs/build

conformance: $(TEST_STAMP)
	$(BIN)/python -m tests.conformance --write $(ARGS)

sanitize: $(TEST_STAMP)
	tools/sanitize.sh $(ARGS)

$(PACKAGE_STAMP): $(INSTALLED_BY)
	PYTHON="$(PYTHON)" tools/environment.sh
	@touch $@

$(TEST_STAMP): $(PACKAGE_STAMP)
	tools/environment.sh test
	@touch $@

clean:
	rm -rf .venv build docs/build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find vllm tests -name __pycache__ -type d -prune -exec rm -rf {} +
