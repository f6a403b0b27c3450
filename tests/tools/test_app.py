"""The app in a real browser: headless Chromium, a page on this machine, and a model of a few weights."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import threading
import time
import urllib.request

import gradio_client
import httpx
import numpy as np
import pytest
from made_once import made_once
from PIL import Image
from playwright.sync_api import expect, sync_playwright
from tiny_adapters import write_random_control, write_random_lora
from tiny_words import train_words_run

from pixart_jax.conversion.runs import load_run
from pixart_jax.studio.dropped import MAX_BYTES
from pixart_jax.studio.settings import CHUNK
from tools.app import command

# Without background networking it looks up no hosts, and with no sandbox it runs as root, as in CI.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
CHROMIUM = "/usr/bin/chromium"
# Much longer than anything takes: a test waits for things, and not for times.
PATIENCE = 300_000
LORAS = ["alps", "night"]
expect.set_options(timeout=PATIENCE)


class Gate:
    """Holds a drawing after its first step for as long as it is shut."""

    def __init__(self, studio):
        self._open, self.reached = threading.Event(), threading.Event()
        self._open.set()
        look = studio._look

        def held(tokens, request):
            self.reached.set()
            assert self._open.wait(PATIENCE / 1000)
            return look(tokens, request)

        studio._look = held

    @contextlib.contextmanager
    def shut(self):
        self.reached.clear()
        self._open.clear()
        try:
            yield self.reached
        finally:
            self._open.set()


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """Address, studio and gate of a running app, with two LoRAs and a ControlNet."""
    workdir = made_once(tmp_path_factory, "words-run", train_words_run) / "run"
    base, adapters = load_run(workdir, ema=True), tmp_path_factory.mktemp("adapters")
    (adapters / "loras").mkdir()
    for seed, name in enumerate(LORAS):
        write_random_lora(adapters / "loras" / f"{name}.safetensors", base, seed)
    write_random_control(adapters / "control", base)
    options = ["--checkpoint", workdir, "--loras", adapters / "loras", "--controlnet", adapters / "control"]
    folder = tmp_path_factory.mktemp("app")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        served = command.open_app(command.parse_arguments([*map(str, options)]), folder)
        served.gate = Gate(served.studio)
        yield served
        served.close()


@pytest.fixture(scope="module")
def browser():
    """Chromium; where it is missing this fails, and says what to do."""
    if not pathlib.Path(CHROMIUM).exists():
        pytest.fail(f"there is no {CHROMIUM}: make chromium (or apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def context(browser):
    context = browser.new_context(viewport={"width": 1280, "height": 960}, accept_downloads=True)
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture
def page(app, context):
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda request: page.problems.append(request.url) if not is_own(request.url) else None)
    page.goto(app.address, wait_until="domcontentloaded")
    expect(page.locator("#prompt textarea")).to_be_visible()
    yield page
    assert not page.problems, page.problems
    page.close()


def is_own(url):
    return url.startswith(("http://127.0.0.1:", "data:", "blob:"))


def state(page, name):
    return page.locator(f".studio-view[data-state={name}]")


def draw(page, prompt, **fields):
    for name, value in fields.items():
        page.locator(field(name)).fill(str(value))
    page.locator("#prompt textarea").fill(prompt)
    page.locator("#draw").click()


def field(name):
    return f"#{name} input, #{name} textarea"


def drawn_by(app):
    """How many pictures there are: one browser has drawn all of them."""
    return len(list(app.studio.folder.glob("*/*.png")))


def newest(app):
    return max(app.studio.folder.glob("*/*.png"), key=lambda path: path.name)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def pictures(page):
    return page.locator("#gallery .grid-container button img")


def test_a_prompt_becomes_a_picture_with_a_preview_on_the_way(app, page):
    with app.gate.shut() as reached:
        draw(page, "red <b>square</b>", steps=5)
        assert reached.wait(PATIENCE / 1000)
        expect(state(page, "drawing")).to_be_visible()
    expect(state(page, "done")).to_contain_text("1 picture")
    expect(pictures(page)).to_have_count(1)


def test_a_drawing_stops_and_survives_a_reload(app, page):
    before = drawn_by(app)
    with app.gate.shut() as reached:
        draw(page, "blue square", steps=50)
        assert reached.wait(PATIENCE / 1000)
        page.reload(wait_until="domcontentloaded")
        # It is still drawn, and the page shows it.
        expect(state(page, "drawing")).to_be_visible()
        page.locator("#stop").click()
        expect(page.locator("#view")).to_be_visible()
    expect(state(page, "stopped")).to_be_visible()
    expect(pictures(page)).to_have_count(before)


def test_a_reload_in_the_middle_finds_the_picture(app, page):
    with app.gate.shut() as reached:
        draw(page, "green circle", steps=4, seed=3)
        assert reached.wait(PATIENCE / 1000)
        page.reload(wait_until="domcontentloaded")
        expect(state(page, "drawing")).to_be_visible()
    expect(state(page, "done")).to_be_visible()
    expect(pictures(page).first).to_be_visible()


def test_settings_come_back_by_a_click_and_by_a_dropped_png(app, page, tmp_path):
    draw(page, "small <i>red</i> circle", steps=3, seed=77)
    expect(state(page, "done")).to_be_visible()
    page.locator("#dice").click()
    expect(page.locator(field("seed"))).not_to_have_value("77")
    before = drawn_by(app)
    draw(page, "another", steps=4)
    expect(pictures(page)).to_have_count(before + 1)
    page.locator("#gallery .grid-container button").nth(1).click()
    # What a visitor writes is text, and no part of the page.
    expect(page.locator("#about")).to_contain_text("small <i>red</i> circle")
    page.locator("#again").click()
    expect(page.locator(field("seed"))).to_have_value("77")
    expect(page.locator("#prompt textarea")).to_have_value("small <i>red</i> circle")
    # The PNG as it is downloaded.
    found = next(p for p in app.studio.folder.glob("*/*.png") if "small" in p.name)
    copy = tmp_path / "a <img src=x onerror=alert(1)>.png"
    copy.write_bytes(found.read_bytes())
    page.locator("#prompt textarea").fill("")
    data = {"name": copy.name, "bytes": list(copy.read_bytes())}
    page.evaluate(
        """({name, bytes}) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name, {type: "image/png"}));
          document.querySelector("h2").dispatchEvent(
            new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        data,
    )
    expect(page.locator("#prompt textarea")).to_have_value("small <i>red</i> circle")
    expect(page.locator(field("steps"))).to_have_value("3")


def test_errors_are_read_on_the_page(app, page, tmp_path):
    draw(page, "x", seed="minus one")
    expect(page.get_by_role("alert")).to_contain_text("must be a whole number")
    draw(page, "x", seed="1", steps=100000)
    expect(page.get_by_role("alert")).to_contain_text("at most 250 here")
    (tmp_path / "evil.png").write_bytes(b"<script>alert(1)</script>")
    page.locator("#restore input[type=file]").set_input_files(tmp_path / "evil.png")
    expect(page.get_by_role("alert")).to_contain_text("this is no PNG")
    draw(page, "y", seed=1, steps=2)
    expect(state(page, "done")).to_be_visible()


def paint(page):
    """A stroke across the canvas of the picture."""
    canvas = page.locator("#canvas canvas").first
    canvas.evaluate("element => element.scrollIntoView({block: 'center'})")
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 30, y)
    page.mouse.down()
    page.mouse.move(x + 30, y, steps=5)
    page.mouse.up()


def press(page, button):
    """Clicks without waiting for the page to stand still, which it may never do: the editor draws without a GPU."""
    page.locator(button).first.dispatch_event("click")


def draw_from(page, count):
    """Asks again where the page has not taken the picture yet, until there are that many."""
    for _ in range(PATIENCE // 1000):
        press(page, "#draw-from")
        page.wait_for_timeout(1000)
        if pictures(page).count() >= count:
            return
    pytest.fail("nothing was drawn from the picture")


def test_a_mask_is_painted_on_a_picture(app, page, tmp_path):
    Image.fromarray(np.full((64, 64, 3), (200, 30, 30), np.uint8)).save(tmp_path / "a.png")
    page.locator("#from-picture button").first.click()
    # Gradio's editor drops a file that comes before its canvas is there.
    expect(page.locator("#canvas canvas").first).to_be_visible()
    page.locator("#canvas input[type=file]").first.set_input_files(tmp_path / "a.png")
    page.locator("#prompt textarea").fill("blue square")
    page.locator(field("steps")).fill("3")
    before = drawn_by(app)
    draw_from(page, before + 1)
    press(page, "#canvas button[aria-label=Brush]")
    paint(page)
    draw_from(page, drawn_by(app) + 1)
    told = Image.open(newest(app)).info
    assert told["mask"] and told["from"] and told["strength"] == "0.6"


def drawn(app, page, prompt, button="#draw"):
    """Presses a button, and gives the picture when the page shows it."""
    before = drawn_by(app)
    page.locator("#prompt textarea").fill(prompt)
    press(page, button)
    expect(pictures(page)).to_have_count(before + 1)
    assert page.locator("#view").get_by_role("alert").count() == 0
    return pixels(newest(app))


def slide(page, name, scale):
    page.locator(".lora-scale", has_text=name).locator("input[type=number]").fill(str(scale))


def test_a_loras_slider_changes_the_picture_and_compiles_nothing(app, page, compilations):
    page.locator(field("steps")).fill("3")
    page.locator(field("seed")).fill("5")
    expect(page.locator(".lora-scale")).to_have_count(2)
    plain = drawn(app, page, "red square")
    compilations.clear()
    slide(page, "night", 1)
    strong = drawn(app, page, "red square")
    told = json.loads(Image.open(newest(app)).info[CHUNK])
    assert dict(told["loras"])["night"] == 1
    slide(page, "night", 0.5)
    weak = drawn(app, page, "red square")
    slide(page, "night", 0)
    slide(page, "alps", 1)
    other = drawn(app, page, "red square")
    slide(page, "alps", 0)
    again = drawn(app, page, "red square")
    assert not compilations
    np.testing.assert_array_equal(again, plain)
    assert min(np.abs(one - two).max() for one, two in itertools.combinations((plain, strong, weak, other), 2)) > 8


def test_edges_are_shown_and_followed(app, page, tmp_path):
    page.locator(field("steps")).fill("3")
    # The tiny model has trained for one step, and says about nothing without a LoRA.
    slide(page, "night", 1)
    free = drawn(app, page, "red square")
    page.locator("#control button").first.click()
    press(page, "#draw-control")
    expect(page.locator("#view").get_by_role("alert")).to_contain_text("there is no picture")
    square = np.zeros((64, 64, 3), np.uint8)
    square[16:48, 16:48] = 255
    Image.fromarray(square).save(tmp_path / "square.png")
    page.locator("#followed input[type=file]").set_input_files(tmp_path / "square.png")
    # When its edges are there, the server has the picture.
    expect(page.locator("#edges img")).to_be_visible()
    sent = page.request.get(page.locator("#edges img").evaluate("image => image.src")).body()
    edges = np.asarray(Image.open(io.BytesIO(sent)))
    assert edges.shape == (32, 32, 3) and 0 < (edges > 128).mean() < 0.5
    assert np.abs(drawn(app, page, "red square", "#draw-control") - free).max() > 8


def test_a_sheet_is_drawn(app, page):
    page.locator("#sheet button").first.click()
    before = drawn_by(app)
    page.locator(field("columns")).fill("1, 4")
    page.locator(field("rows")).fill("2, 3")
    page.locator("#prompt textarea").fill("red square")
    page.locator("#draw-sheet").click()
    expect(pictures(page)).to_have_count(before + 1)
    assert drawn_by(app) == before + 1


def test_programs_draw_over_http(app, tmp_path, monkeypatch):
    """As docs/app.md says, ten at once; and what is broken is told."""
    health = json.load(urllib.request.urlopen(f"{app.address}health"))
    assert health == {"alive": True, "waiting": 0}
    client = gradio_client.Client(app.address, verbose=False, download_files=str(tmp_path))
    counts, draw_each = [], app.studio.pipeline.draw_each
    monkeypatch.setattr(
        app.studio.pipeline,
        "draw_each",
        lambda request, *rest: (counts.append(request.count), draw_each(request, *rest))[1],
    )
    with app.gate.shut() as reached:
        first = client.submit("red square", num_steps=2, api_name="/draw")
        assert reached.wait(PATIENCE / 1000)
        jobs = [client.submit(f"red square {i}", seed=str(i), num_steps=3, api_name="/draw") for i in range(10)]
        ends = time.monotonic() + PATIENCE / 1000
        while app.studio.waiting < 10 and time.monotonic() < ends:
            time.sleep(0.05)
    drawn = [job.result(PATIENCE / 1000) for job in jobs]
    assert len(first.result(PATIENCE / 1000)) == 1 and [len(found) for found in drawn] == [1] * 10
    # As few calls as four pictures at a time allow.
    assert counts == [1, 4, 4, 2]
    (one,) = drawn[7]
    assert Image.open(one["picture"]).info["seed"] == "7" and one["settings"]["seed"] == 7
    assert np.asarray(Image.open(one["picture"])).shape == (32, 32, 3)
    with pytest.raises(Exception, match="num_steps = 1000: at most 250 here"):
        client.predict("x", num_steps=1000, api_name="/draw")
    # Files of this machine are not handed out.
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{app.address}gradio_api/file={command.__file__}")


@pytest.mark.parametrize(
    "name", ["../../evil.png", "..\\..\\evil.png", "/etc/evil.png", "<img src=x onerror=alert(1)>.png"]
)
def test_an_upload_stays_in_its_folder(name, app):
    sent = httpx.post(f"{app.address}gradio_api/upload", files={"files": (name, b"not a picture")})
    folder = app.studio.folder.parent
    if sent.is_success:
        (path,) = sent.json()
        assert pathlib.Path(path).resolve().is_relative_to(folder) and "<" not in path
    assert not list(folder.parent.glob("evil*")) and not pathlib.Path("/etc/evil.png").exists()


def test_an_upload_without_end_is_refused(app):
    """While it comes in: not when it is there."""
    before = set(app.studio.folder.parent.rglob("*"))
    sent = httpx.post(f"{app.address}gradio_api/upload", files={"files": ("a.png", b"\0" * (MAX_BYTES + 1))})
    assert sent.status_code == 413, sent.text
    left = [path for path in app.studio.folder.parent.rglob("*") if path.is_file() and path not in before]
    assert not left


def test_a_missing_checkpoint_is_told_and_no_setting_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "mine")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert command.main(["--checkpoint", str(tmp_path)]) == 2
    assert "error: " in capsys.readouterr().err
    assert os.environ["GRADIO_TEMP_DIR"] == "mine" and "HF_HUB_OFFLINE" not in os.environ
