# `make demo` and `make test` do all the set-up themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test integration soak lint bench
setup: .venv/installed

# Made again when what it is made from changes; otherwise this costs nothing.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python -m jobs.demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(MODEL),--model "$(MODEL)")

# Two processes are what two cores carry, and each has a Ray cluster of its own.
IN_TWO := --numprocesses 2 --dist loadfile

test: setup
	$(BIN)/python -m pytest --ignore=tests/integration $(IN_TWO)

# Against the S3 server that AWS_ENDPOINT_URL names, else against moto's; on Ray clusters of several processes.
# What takes the server away from others (`alone`) has it for itself, at the end.
integration: setup
	$(BIN)/python -m pytest tests/integration $(IN_TWO) -m "not alone and not soak"
	$(BIN)/python -m pytest tests/pipeline tests/integration/test_chaos.py -m "s3 and not soak"

# What takes hours and is run by hand, before an issue is called resolved; see tests/tools/soak.py for its parts.
soak: setup
	.ci/with-s3 $(BIN)/python -m tests.tools.soak $(if $(ONLY),--only $(ONLY))

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python -m jobs.benchmark all $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(RUNS),--runs $(RUNS)) $(if $(SAVE),--save "$(SAVE)") $(if $(S3),--s3 "$(S3)") $(if $(WITHOUT),--without $(WITHOUT))
