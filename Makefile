# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test integration lint bench
setup: .venv/installed

# Made again when what it is made from changes; otherwise this costs nothing.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m jobs.demo $(if $(PHOTOS),--photos "$(PHOTOS)")

test: setup
	$(BIN)/python -m pytest --ignore=tests/integration --numprocesses 2 --dist loadfile

# Against the S3 server that AWS_ENDPOINT_URL names, else against moto's; on a Ray cluster of several processes.
integration: setup
	$(BIN)/python -m pytest tests/integration
	$(BIN)/python -m pytest tests/pipeline -m s3

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m jobs.benchmark all $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(RUNS),--runs $(RUNS)) $(if $(SAVE),--save "$(SAVE)") $(if $(S3),--s3 "$(S3)") $(if $(WITHOUT),--without $(WITHOUT))
