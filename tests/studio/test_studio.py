"""The studio draws what tools.sample draws, tells of every step, stops, batches, and lives through what is broken."""

import dataclasses
import json
import re
import threading

import jax
import numpy as np
import pytest
from PIL import Image

from pixart_jax.errors import InputError
from pixart_jax.studio.colours import Colours
from pixart_jax.studio.jobs import Job, State
from pixart_jax.studio.settings import CHUNK
from pixart_jax.studio.sheets import Sheet
from pixart_jax.studio.studio import MAX_WAITING
from pixart_jax.studio.visitors import MAX_PICTURES, MAX_VISITORS, Visitors
from tools import sample


def submitted(studio, **given):
    return studio.submit(Job(studio.settings({"prompt": "red square"} | given)))


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def held(studio, monkeypatch):
    """Holds every step until it is set: `reached` tells that one is under way."""
    reached, go_on = threading.Event(), threading.Event()
    look = studio._look

    def slow(tokens, request):
        reached.set()
        assert go_on.wait(60)
        return look(tokens, request)

    monkeypatch.setattr(studio, "_look", slow)
    yield reached, go_on
    go_on.set()


def test_the_same_picture_as_tools_sample_and_no_second_compilation(studio, workdir, tmp_path, compilations):
    job = submitted(studio, seed=2**64 - 1, num_images=2, style=next(iter(studio.styles)), negative_prompt="blue")
    assert job.wait().state is State.DONE
    first, second = job.view.pictures
    chunks = Image.open(first.path).info
    assert sample.main(
        ["--checkpoint", str(workdir), "--out", str(tmp_path), "--prompt", chunks["prompt"], "--num-images", "2",
         "--negative-prompt", chunks["negative_prompt"], "--seed", chunks["seed"]]
    ) == 0  # fmt: skip
    drawn = [path for path in sorted(tmp_path.glob("*.png")) if path.name != "sheet.png"]
    for ours, theirs in zip((first, second), drawn, strict=True):
        np.testing.assert_array_equal(pixels(ours.path), pixels(theirs))
        told = Image.open(theirs).info
        assert {name: told[name] for name in chunks.keys() - {CHUNK}} == {
            name: value for name, value in Image.open(ours.path).info.items() if name != CHUNK
        }
    compilations.clear()
    again = submitted(studio, num_images=2, num_steps=9, guidance_scale=1.5, seed=4)
    assert again.wait().state is State.DONE
    assert "jit(sample_step)" not in compilations  # Another number of steps, scale, prompt and seed.


def test_without_guidance_no_negative_prompt_is_told(studio):
    """The page keeps what stands there, for the next sampler."""
    job = submitted(studio, sampler="lcm", num_steps=1, negative_prompt="blue")
    assert job.wait().state is State.DONE
    chunks = Image.open(job.view.pictures[0].path).info
    assert "negative_prompt" not in chunks and "guidance_scale" not in chunks
    assert json.loads(chunks[CHUNK])["negative_prompt"] == "blue"


def test_every_step_is_told_with_a_preview(studio):
    job = submitted(studio, num_steps=5)
    views = list(job.follow())
    assert views[-1].state is State.DONE and len(views[-1].pictures) == 1
    assert job.view.previews[0].shape == (4, 4, 3) and job.view.previews[0].dtype == np.uint8
    told = []
    job = Job(studio.settings({"prompt": "x", "num_steps": 5}))
    tell = job.tell
    job.tell = lambda **changes: (told.append(changes), tell(**changes))
    studio.submit(job).wait()
    assert [c["done"] for c in told if c.get("stage") == "drawing"] == [1, 2, 3, 4, 5]


def test_steps_are_counted_of_as_many_pictures_as_the_devices_draw_at_once(studio, monkeypatch):
    monkeypatch.setattr(studio, "_batch_size", 1)
    monkeypatch.setattr(studio.pipeline, "at_once", lambda request: 2)
    job = Job(studio.settings({"prompt": "x", "num_images": 2, "num_steps": 3}))
    told, tell = [], job.tell
    job.tell = lambda **changes: (told.append(changes), tell(**changes))
    assert studio.submit(job).wait().state is State.DONE
    assert [(c["done"], c["total"]) for c in told if c.get("stage") == "drawing"] == [(1, 3), (2, 3), (3, 3)]
    assert [len(c["previews"]) for c in told if "previews" in c] == [2, 2, 2]


def test_colours_are_those_of_a_linear_autoencoder():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 4))

    def encode(pictures):
        means = pictures.reshape(1, 32, 8, 32, 8, 3).mean(axis=(2, 4)) / 127.5 - 1
        return means @ mix, np.zeros((1, 32, 32, 4))

    colours = Colours.fit(encode)
    wanted = rng.uniform(-1, 1, (1, 2, 2, 3))
    assert np.abs(colours.pictures(wanted @ mix) / 127.5 - 1 - wanted).max() < 0.01
    assert colours.pictures(np.full((1, 1, 1, 4), np.nan)).shape == (1, 1, 1, 3)


def test_a_drawing_stops_at_its_next_step(studio, held):
    reached, go_on = held
    job = submitted(studio, num_steps=50)
    waiting = submitted(studio, num_steps=7)
    assert reached.wait(60)
    job.stop()
    waiting.stop()
    assert waiting.view.state is State.STOPPED
    go_on.set()
    assert job.wait(60).state is State.STOPPED
    assert job.view.done < 5 and not job.view.pictures


def test_visitors_whose_settings_allow_it_are_drawn_together(studio, held, monkeypatch):
    reached, go_on = held
    counts = []
    draw_each = studio.pipeline.draw_each
    monkeypatch.setattr(
        studio.pipeline,
        "draw_each",
        lambda request, *rest: (counts.append(request.count), draw_each(request, *rest))[1],
    )
    first = submitted(studio)
    assert reached.wait(60)
    jobs = [submitted(studio, prompt=f"square {i}", seed=i, guidance_scale=2.0) for i in range(5)]
    other = submitted(studio, num_steps=2)
    assert jobs[-1].view.ahead == 5
    go_on.set()
    assert all(job.wait(60).state is State.DONE for job in (first, *jobs, other))
    assert counts == [1, 4, 1, 1]
    alone = submitted(studio, prompt="square 2", seed=2, guidance_scale=2.0)
    alone.wait()
    difference = pixels(alone.view.pictures[0].path).astype(int) - pixels(jobs[2].view.pictures[0].path)
    assert np.abs(difference).max() <= 1


class Calls:
    """Stands for the pipeline's drawing: keeps the prompts of every call, the first of which lasts until `go_on`."""

    def __init__(self):
        self.prompts, self.reached, self.go_on = [], threading.Event(), threading.Event()

    def __call__(self, request, progress, watch):
        self.prompts.append(list(request.prompts))
        self.reached.set()
        assert self.go_on.wait(60)
        assert request.batch_size >= request.count  # One batch of the denoiser.
        yield from np.zeros((request.count, 32, 32, 3), np.uint8)


@pytest.fixture
def calls(studio, monkeypatch):
    """The calls, while the first is under way."""
    calls = Calls()
    monkeypatch.setattr(studio.pipeline, "draw_each", calls)
    submitted(studio, prompt="first")
    assert calls.reached.wait(60)
    yield calls
    calls.go_on.set()


def served(calls, jobs):
    """The prompts of the calls that draw those who wait."""
    calls.go_on.set()
    assert all(job.wait(60).state is State.DONE and len(job.view.pictures) == 1 for job in jobs)
    return calls.prompts[1:]


def test_ten_visitors_need_three_calls(studio, calls):
    jobs = [submitted(studio, prompt=f"{i}", seed=i) for i in range(10)]
    assert [job.view.ahead for job in jobs] == list(range(1, 11))
    assert served(calls, jobs) == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8", "9"]]


def test_who_wants_something_else_is_not_passed_by_those_who_come_later(studio, calls):
    jobs = [submitted(studio, prompt=f"{i}") for i in range(3)]
    jobs.append(submitted(studio, prompt="other", num_steps=7))
    jobs += [submitted(studio, prompt=f"{i}") for i in range(3, 9)]
    # One of them is drawn along, which costs nobody a call; then it is the other's turn.
    assert served(calls, jobs) == [["0", "1", "2", "3"], ["other"], ["4", "5", "6", "7"], ["8"]]


def test_a_sheet_lets_others_through(studio, calls, tmp_path):
    cells = [studio.settings({"prompt": f"cell {steps}", "num_steps": steps}) for steps in (5, 6, 7)]
    sheet = Sheet(cells, 3, ("steps", "seeds"), tmp_path)
    sheet.begin(studio.submit)
    jobs = [submitted(studio, prompt="a"), submitted(studio, prompt="b", num_steps=9)]
    assert served(calls, [*jobs, sheet]) == [["cell 5"], ["a"], ["b"], ["cell 6"], ["cell 7"]]


def test_who_has_had_enough_leaves_the_queue(studio, calls):
    jobs = [submitted(studio, prompt=f"{i}") for i in range(10)]
    for job in (jobs[0], jobs[2], jobs[5]):
        job.stop()
    assert studio.waiting == 7
    left = [job for job in jobs if job.view.state is State.WAITING]
    assert [job.view.ahead for job in left] == list(range(1, 8))
    assert served(calls, left) == [["1", "3", "4", "6"], ["7", "8", "9"]]


def test_what_fails_is_told_and_the_next_is_drawn(studio, monkeypatch):
    for error, words in (
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes"), "not enough memory"),
        (RuntimeError("<b>secret</b>"), "the drawing failed (RuntimeError); the app's log says more"),
        (InputError("no step is left"), "no step is left"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(studio.pipeline, "draw_each", lambda *_, error=error: (_ for _ in ()).throw(error))
            job = submitted(studio)
            assert job.wait(60).state is State.FAILED and words in job.view.error
    assert submitted(studio).wait(60).state is State.DONE


@pytest.mark.parametrize(
    "given, words",
    [
        ({"num_images": 5}, "num_images = 5: at most 4 here"),
        ({"num_steps": 0}, "num_steps = 0: must be at least 1"),
        ({"num_steps": 251}, "at most 250 here"),
        ({"seed": "-1"}, "must be a whole number from 0"),
        ({"seed": 2**64}, "seed"),
        ({"sampler": "x"}, "sampler = 'x': must be one of"),
        ({"style": "../x"}, "style = '../x': must be one of none"),
        ({"aspect_ratio": "16:9"}, "must be one of 1:1"),
        ({"size": 4096}, "size = 4096: must be one of 32"),
        ({"prompt": "a" * 2001}, "prompt has 2,001 characters; at most 2,000"),
        ({"prompt": "\ud800"}, "no UTF-8"),
        ({"prompt": 3}, "prompt must be a text"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"loras": [["x", 1]]}, "there is no LoRA 'x' here"),
        ({"loras": "x"}, "loras must be pairs"),
        ({"__class__": 1}, "there is no setting '__class__'"),
    ],
)
def test_what_cannot_be_is_refused_before_it_waits(studio, given, words):
    with pytest.raises(InputError, match=re.escape(words)):
        submitted(studio, **given)


def test_too_many_do_not_wait(studio, held):
    reached, _ = held
    submitted(studio)
    assert reached.wait(60)
    waiting = [submitted(studio) for _ in range(MAX_WAITING)]
    with pytest.raises(InputError, match="64 visitors wait already"):
        submitted(studio)
    for job in waiting:
        job.stop()


def test_visitors_and_their_pictures_are_bounded(studio):
    visitors = Visitors()
    assert visitors.name("made up") != "made up"
    name = visitors.name("")
    visitor = visitors.visitor(name)
    assert visitors.name(name) == name
    job = submitted(studio)
    job.wait()
    (drawn,) = job.view.pictures
    paths = []
    for number in range(MAX_PICTURES + 2):
        visitors.begin(visitor, job := Job(job.settings))
        with pytest.raises(InputError, match="not done yet"):
            visitors.begin(visitor, job)
        path = drawn.path.with_name(f"{number}.png")
        path.write_bytes(b"")
        paths.append(path)
        job.tell(state=State.DONE, pictures=(dataclasses.replace(drawn, path=path),))
        visitors.finish(visitor)
    assert [each.path for each in visitor.pictures] == paths[:1:-1]
    assert [path.exists() for path in paths] == [False] * 2 + [True] * MAX_PICTURES
    for _ in range(MAX_VISITORS):
        visitors.visitor(visitors.name(""))
    assert visitors.name(name) != name and not paths[-1].exists()
