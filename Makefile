# make demo: install, render the data, train, draw.   make test: install and test.
# make recipe: the three-stage recipe in miniature (docs/recipe.md).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EMOJI_FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

.PHONY: demo recipe test lint font clean

demo: DATA := data/quickstart
demo: $(VENV)/installed font
	$(BIN)/python -m tools.make_quickstart_data --out data/quickstart $(if $(FONT),--font "$(FONT)")
	$(BIN)/python -m pixart_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

recipe: DATA := data/recipe
recipe: $(VENV)/installed font
	$(BIN)/python -m tools.make_recipe_data --out data/recipe $(if $(FONT),--font "$(FONT)")
	$(BIN)/python -m tools.recipe --data data/recipe --workdir runs/recipe

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 12) else "Python 3.11 or 3.12 is needed, this is %d.%d: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/installed-dev: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# Debian's emoji font, where it can be installed without a question; otherwise the tool says what to do.
font:
	@if [ -z "$(FONT)" ] && [ ! -e $(EMOJI_FONT) ] && [ ! -d $(DATA) ] && command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi; \
		{ $$as_root apt-get update -qq && $$as_root apt-get install -y -qq fonts-noto-color-emoji; } >/dev/null 2>&1 || true; \
	fi

clean:
	rm -rf $(VENV) data/quickstart data/recipe runs/quickstart runs/recipe
