"""The notebooks run from nothing as users run them, but for the values of one cell, and are kept without outputs."""

import json
import os
import shutil

import nbformat
import pytest
from emoji_font import build_font
from nbclient import NotebookClient
from tiny_run import ROOT

NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
# A notebook may keep one picture, of at most so many bytes.
PICTURE_BYTES = 300_000

SMALL_RUN = [
    "--config.data.batch_size=4",
    "--config.model.depth=1",
    "--config.model.scan_unroll=1",
    "--config.train.num_steps=2",
    "--config.train.log_every=1",
    "--config.sample.every=0",
    "--config.sample.num_images=2",
    "--config.sample.num_steps=2",
    "--config.sample.retrieval_captions=0",
]
SMALL_QUICKSTART = [*SMALL_RUN, "--config.model.hidden_size=24", "--config.model.num_heads=2"]
# As the tiny Σ of tests/tiny_pipeline.py.
SMALL_LORA = [
    *SMALL_RUN,
    "--config.model.depth=2",
    "--config.model.hidden_size=36",
    "--config.model.num_heads=3",
    "--config.model.text_dim=20",
    "--config.model.resolution=256",
    "--config.model.position_scale=0.5",
    "--config.adapter.lora.rank=2",
    "--config.dtype=float32",
]


@pytest.fixture(scope="module")
def place(tmp_path_factory, weights):
    """A checkout that pip may build in, a folder that it may install into, and what the notebooks are given."""
    folder = tmp_path_factory.mktemp("notebooks")
    for name in ("pixart_jax", "configs", "tools", "notebooks"):
        shutil.copytree(ROOT / name, folder / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "checkout")
    font = str(build_font(folder / "emoji.ttf"))
    quickstart = {"GLYPHS": 12, "FONT": font, "SETTINGS": SMALL_QUICKSTART}
    pipeline = {"MODEL": str(weights.parent / "pipeline"), "STEPS": 2}
    return folder, {
        "train_and_draw": quickstart | {"PROMPTS": ["dog face", "cat"]},
        "evaluate": quickstart | {"METRICS": ["retrieval"], "GUIDANCE": [1.0, 3.0], "DRAWING": ["--num-steps", "2"]},
        "convert_and_draw": pipeline | {"PROMPTS": ["a red cat on a mat"]},
        "finetune_lora": pipeline | {"RESOLUTION": 256, "SETTINGS": SMALL_LORA, "PROMPT": "a red cat"},
    }


def run(name, place):
    """The executed notebook. The cell that pip installs the package with is the first one's alone to do."""
    folder, values = place
    notebook = nbformat.read(folder / "checkout/notebooks" / f"{name}.ipynb", as_version=4)
    (number,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
    lines = [f"{key} = {value!r}" for key, value in values[name].items()]
    assert all(f"\n{line.split(' = ')[0]}" in f"\n{notebook.cells[number].source}" for line in lines)
    notebook.cells.insert(number + 1, nbformat.v4.new_code_cell("\n".join(lines)))
    # Into a folder of its own, from what is here: what the package needs is installed.
    pip = {"PIP_TARGET": str(folder / "site"), "PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1", "PIP_NO_COMPILE": "1"}
    pip |= {"PIP_NO_BUILD_ISOLATION": "0", "PYTHONPATH": str(folder / "site")}
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "checkout/notebooks")}})
    client.execute(env=os.environ | pip)
    return notebook


def pictures_of(notebook):
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name,pictures", [("train_and_draw", 3), ("convert_and_draw", 2)])
def test_runs_from_nothing(name, pictures, place):
    assert pictures_of(run(name, place)) == pictures


def test_goes_on_with_what_others_have_made(place):
    """Weights that another has converted, and the run of the quickstart; by themselves they make these anew."""
    folder, _ = place
    run("finetune_lora", place)
    assert (folder / "checkout/notebooks/runs/lora/style/adapter_config.json").exists()
    run("evaluate", place)
    found = [path.read_text() for path in (folder / "checkout/notebooks/results/quickstart").glob("*.json")]
    assert sum("retrieval_at_1" in json.loads(text).get("metrics", {}) for text in found) == 2


def kept(notebook):
    """What a notebook is kept with and should not be."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    problems = ["a run's number"] if any(cell["execution_count"] for cell in cells) else []
    problems += ["outputs"] if len(outputs) > len(pictures) or len(pictures) > 1 else []
    problems += ["a large picture"] if any(len(str(picture)) > PICTURE_BYTES for picture in pictures) else []
    return problems


def test_kept_without_outputs():
    assert len(NOTEBOOKS) == 4
    for name, path in NOTEBOOKS.items():
        notebook = json.loads(path.read_text(encoding="utf-8"))
        assert kept(notebook) == [], name
        first = "".join(notebook["cells"][0]["source"])
        assert first.startswith("# ") and "**How long:**" in first, name
    code = {"cell_type": "code", "execution_count": 1, "outputs": [{"output_type": "stream", "text": "x"}]}
    assert kept({"cells": [code]}) == ["a run's number", "outputs"]
