# The two commands of the README. Each makes the environment it needs in .venv, once.
#   make demo    reconstruct the bundled case: a table on the screen, sgr_demo/figure.png
#   make test    run the tests, a process for each core
#   make lint    check the code's style and types
#   make docs    build the documentation into build/docs

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test lint docs

demo: $(INSTALLED)
	$(BIN)/sgr demo

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Without progress bars in the tutorials, which have no notebook around them.
docs: $(INSTALLED)
	TQDM_DISABLE=1 PYTHONWARNINGS='ignore:IProgress not found' $(BIN)/mkdocs build --strict

# The stamp comes last: an installation that was interrupted is taken up again.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, $(PYTHON) is older: make PYTHON=/path/to/python $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test,docs]'
	# Their torchvision has no build beside the CPU build of torch; the tests that need them stub it.
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt --no-deps segmentation-models-pytorch timm deepinv
	touch $@
