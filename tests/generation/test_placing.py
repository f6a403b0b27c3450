"""Several devices draw one picture: it is that of one device, and what they cannot divide is refused."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from tiny_run import ROOT, run_python

from pixart_jax.devices.sharding import AXES, MeshSpec
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.placing import check_tokens, drawing_mesh, parse_mesh, pictures_at_once
from pixart_jax.models.pixart import PixArt
from pixart_jax.studio.jobs import Job
from pixart_jax.studio.studio import Studio
from tools import sample


def test_a_picture_on_any_mesh_is_that_of_one_device():
    """On 8 simulated devices: latents to 1e-5, all steps by one compiled program."""
    printed = run_python(ROOT / "tests" / "draw_on_devices.py", devices=8)
    assert printed.splitlines() == [
        "one picture over eight",
        "branches over two, each over four",
        "data is the rest, keys are compressed",
        "one picture's branches, and three drawn for nothing",
        "two pictures, with noise on the way",
        "reuse, and a LoRA over int8",
        "interval",
        "few steps near a picture",
        "a ControlNet under a LoRA, and a part that is kept",
        "the dropped path",
    ]


def mesh_of(**sizes):
    """A mesh of devices that are not there."""
    return AbstractMesh(tuple(sizes.get(name, 1) for name in AXES), AXES)


@pytest.mark.parametrize(
    "text,spec",
    [("context=4", MeshSpec(context=4)), ("data=2, context=4", MeshSpec(2, context=4)), ("data=8", MeshSpec(8))],
)
def test_meshes_by_word(text, spec):
    assert parse_mesh(text) == spec


@pytest.mark.parametrize(
    "text", ["", "4", "context", "context=", "context=0", "context=-1", "context=2,context=2", "tensor=2", "data=2x"]
)
def test_words_that_are_no_mesh(text):
    with pytest.raises(InputError, match='must be such as "context=4"'):
        parse_mesh(text)


@pytest.mark.parametrize(
    "spec,message",
    [
        (MeshSpec(context=16), "mesh context=16: takes 16 devices, and here are 8"),
        (MeshSpec(context=3), "mesh context=3: takes 3 devices, and here are 8"),
        (MeshSpec(2, context=2), "mesh data=2,context=2: takes 4 devices, and here are 8"),
        (MeshSpec(context=0), "mesh: context = 0 must be a number of devices, at least 1"),
        (MeshSpec(context="4"), "mesh: context = '4' must be a number of devices"),
        ("context=8", r"mesh = 'context=8': must be a MeshSpec, such as MeshSpec\(context=4\)"),
        (MeshSpec(tensor=2), "leave out fsdp and tensor"),
    ],
)
def test_a_mesh_that_the_devices_do_not_make_is_refused(spec, message):
    with pytest.raises(InputError, match=message):
        drawing_mesh(spec, [None] * 8)


def test_tokens_that_devices_cannot_divide_are_refused():
    check_tokens(8, PixArt(), 2048, 128**2)
    check_tokens(8, PixArt(kv_compress=(1, 2), depth=2), 2048, 128**2)
    check_tokens(8, PixArt(), 32, 8)
    with pytest.raises(InputError, match="mesh context=8: does not divide the 4 tokens of 32 px evenly; take 4, or"):
        check_tokens(8, PixArt(), 32, 4)
    with pytest.raises(InputError, match="the 4 blocks of 2x2 tokens of 64 px evenly; take 4"):
        check_tokens(8, PixArt(kv_compress=(1, 2), depth=2), 64, 16)


@pytest.mark.parametrize(
    "batch_size,count,shares,branches,expected",
    [
        (4, 1, 1, 2, 1),
        # Two devices have a branch each of any number of pictures.
        (4, 1, 2, 2, 1),
        (4, 3, 2, 2, 3),
        (4, 1, 2, 1, 2),
        (4, 1, 8, 2, 4),
        # A batch fills the devices where there is enough to draw.
        (4, 100, 8, 2, 8),
        (4, 100, 8, 1, 8),
        (6, 100, 8, 1, 8),
        (4, 5, 8, 2, 8),
    ],
)
def test_pictures_at_once(batch_size, count, shares, branches, expected):
    mesh = mesh_of(data=shares)
    assert pictures_at_once(batch_size, count, mesh, branches) == expected


def test_nothing_is_loaded_for_a_mesh_that_cannot_be(weights, tmp_path, monkeypatch, capsys):
    few = jax.local_device_count()
    arguments = ["--checkpoint", str(weights), "--prompt", "a red cat", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr("pixart_jax.generation.opening.read_stored_model", lambda *given: pytest.fail("loaded"))
        assert sample.main([*arguments, f"--mesh=context={2 * few}"]) == 2
        with pytest.raises(InputError, match=f"context={2 * few}: takes {2 * few} devices, and here are {few}"):
            TextToImage.from_checkpoint(weights, mesh=MeshSpec(context=2 * few))
    assert f"and here are {few}; the product" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sample.main([*arguments, "--mesh=fsdp=2"])
    assert 'must be such as "context=4"' in capsys.readouterr().err
    # The tokens of a picture, before the text is read.
    pipeline = TextToImage.from_checkpoint(weights)
    studio = Studio(pipeline, tmp_path)
    object.__setattr__(pipeline.parts, "mesh", mesh_of(context=3))
    object.__setattr__(pipeline.parts, "encode_text", lambda *given: pytest.fail("read"))
    with pytest.raises(InputError, match="mesh context=3: does not divide the 256 tokens of 256 px"):
        pipeline("a red cat")
    with pytest.raises(InputError, match="mesh context=3: does not divide"):
        studio.submit(Job(studio.settings({"prompt": "a red cat"})))
    studio.close()
    with pytest.raises(InputError, match="mesh context=3: does not divide"):
        Studio(pipeline, tmp_path)


def test_models_that_stay_loaded_draw_as_many_at_a_time_as_the_devices_do(weights, tmp_path, monkeypatch):
    counts = []

    def draw_each(self, request, progress):
        counts.append(request.count)
        return iter(np.zeros((request.count, 256, 256, 3), np.uint8))

    monkeypatch.setattr(TextToImage, "draw_each", draw_each)
    monkeypatch.setattr("pixart_jax.generation.pipeline.pictures_at_once", lambda *given: 3)
    prompts = [f"--prompt={number}" for number in range(5)]
    arguments = ["--checkpoint", str(weights), "--out", str(tmp_path), "--batch-size=1", "--keep-loaded", *prompts]
    assert sample.main(arguments) == 0
    assert counts == [3, 2]
