# make setup | demo | test | test-all | lint      (everything below ./.venv and ./.uv; nothing is compiled)
RUN := .venv/bin/python

.PHONY: setup demo test test-all lint
setup: .venv/.ready

.venv/.ready: pyproject.toml uv.lock
	@echo "setup  python, uv and the locked packages (torch alone is 2 GB); about a minute on a fast line"
	@bash tools/setup.sh
	@touch $@

demo: setup
	@$(RUN) -m dada_det.commands.demo

test: setup lint
	@$(RUN) -m pytest -m "not slow"

test-all: setup lint
	@$(RUN) -m pytest

lint: setup
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy
