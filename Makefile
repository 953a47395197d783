# make setup | demo | test | test-all | test-pretend | lint | tables      (everything below ./.venv and ./.uv; nothing is compiled)
RUN := .venv/bin/python

.PHONY: setup demo test test-all test-pretend lint tables
setup: .venv/.ready

.venv/.ready: pyproject.toml uv.lock
	@echo "setup  python, uv and the locked packages (torch alone is 2 GB); about a minute on a fast line"
	@bash tools/setup.sh
	@touch $@

demo: setup
	@$(RUN) -m dada_det.commands.demo

# Two processes of one thread each; a file's tests stay together, as they share what they have made.
test: setup lint
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -m "not slow" -n 2 --dist loadfile

test-all: setup lint
	@$(RUN) -m pytest

# The CUDA paths on a pretended GPU (gcc and ../shared/gpu/pretend; skipped by name without): slow, and a job of its own.
test-pretend: setup
	@DADA_DET_PRETEND=1 OMP_NUM_THREADS=1 $(RUN) -m pytest tests/pretend

lint: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

# Every table of results in README.md and docs/, from the files in results/; a test says where the two differ.
tables: setup
	@$(RUN) tools/bench/tables.py
