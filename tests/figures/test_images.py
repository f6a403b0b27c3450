"""Grids, captions, false colours, PNG files and loss curves."""

import numpy as np
import pytest
from PIL import Image, ImageFont

from pixart_jax.errors import InputError, NotFinite
from pixart_jax.figures.curves import loss_curve_png, noise_levels_png, trailing_mean
from pixart_jax.figures.images import false_colour, image_grid, labelled_grid, save_png, to_uint8, wrap_caption


def colours(count, height=8, width=12):
    """Tiles of one colour each, none of them white."""
    values = np.arange(1, count + 1, dtype=np.uint8)[:, None, None, None] * 20
    return np.broadcast_to(values, (count, height, width, 3)).copy()


@pytest.mark.filterwarnings("error")
def test_to_uint8():
    assert to_uint8(np.array([-9.0, -1.0, 0.0, 1.0, 9.0], np.float32)).tolist() == [0, 0, 128, 255, 255]
    for number in (np.nan, np.inf, -np.inf):
        with pytest.raises(NotFinite, match="holds NaN or infinity"):
            to_uint8(np.float32([0.0, number]))
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(to_uint8(levels.astype(np.float32) / 127.5 - 1), levels)


def test_image_grid_places_tiles_row_by_row():
    tiles = colours(5)
    grid = image_grid(tiles, columns=3, padding=2)
    assert grid.shape == (2 * 10 + 2, 3 * 14 + 2, 3) and grid.dtype == np.uint8
    np.testing.assert_array_equal(grid[2:10, 2:14], tiles[0])
    np.testing.assert_array_equal(grid[2:10, 30:42], tiles[2])
    np.testing.assert_array_equal(grid[12:20, 16:28], tiles[4])
    assert (grid[12:20, 30:42] == 255).all() and (grid[:2] == 255).all() and (grid[:, 14:16] == 255).all()
    # Everything that is not a tile is white.
    assert (grid != 255).sum() == tiles.size


def test_image_grid_without_padding_is_a_reshape():
    tiles = np.random.default_rng(0).integers(0, 255, (6, 4, 5, 3)).astype(np.uint8)
    expected = tiles.reshape(2, 3, 4, 5, 3).transpose(0, 2, 1, 3, 4).reshape(8, 15, 3)
    np.testing.assert_array_equal(image_grid(tiles, columns=3, padding=0), expected)


@pytest.mark.parametrize(
    ("images", "columns"), [(colours(2).astype(np.float32), 1), (colours(2)[0], 1), (colours(0), 1), (colours(2), 0)]
)
def test_image_grid_refuses(images, columns):
    with pytest.raises(InputError, match="image_grid"):
        image_grid(images, columns)


def test_labelled_grid_keeps_tiles_and_draws_captions():
    tiles = colours(4, 32, 40)
    entries = [(tiles[:2], "red apple"), (tiles[2:], "")]
    grid = labelled_grid(entries, columns=2, padding=4)
    entry_width = 2 * 42 + 2
    assert grid.shape[1] == 2 * (entry_width + 4) + 4
    np.testing.assert_array_equal(grid[6:38, 6:46], tiles[0])
    np.testing.assert_array_equal(grid[6:38, 48:88], tiles[1])
    np.testing.assert_array_equal(grid[6:38, entry_width + 8 + 2 :][:, :40], tiles[2])
    below = grid[40:]
    ink = np.nonzero((below[:, : entry_width + 4] < 100).any(axis=2))[1]
    assert len(ink) > 30 and abs(np.mean([ink.min(), ink.max()]) - (4 + entry_width / 2)) < 4  # centred
    assert (below[:, entry_width + 8 :] == 255).all()  # the empty caption's absence


def test_labelled_grid_takes_single_tiles_and_long_captions():
    tile = colours(1, 32, 40)[0]
    short, long = (labelled_grid([(tile, caption)]) for caption in ("apple", "apple " * 40))
    assert short.shape[0] < long.shape[0] and short.shape[1] == long.shape[1]
    assert (long < 100).sum() > (short < 100).sum() > (labelled_grid([(tile, "")]) < 100).sum()


@pytest.mark.parametrize(
    "sizes",
    [
        [(128, 512), (512, 128), (256, 256), (192, 336), (336, 192), (144, 448), (448, 144), (240, 272)],
        [(1024, 256), (256, 1024)] * 4,
        [(64, 64)] * 9 + [(32, 128)] * 3,
    ],
)
@pytest.mark.parametrize("per_entry", [1, 2])
def test_a_page_of_mixed_ratios_is_mostly_pictures(sizes, per_entry):
    tiles = [np.full((*size, 3), 20 + i, np.uint8) for i, size in enumerate(sizes)]
    page = labelled_grid([([tile] * per_entry, "") for tile in tiles], columns=round(len(sizes) ** 0.5))
    # Every picture whole, and a third of the page white at most.
    for i, tile in enumerate(tiles):
        assert (page == 20 + i).all(axis=2).sum() == per_entry * tile[..., 0].size
    assert (page == 255).all(axis=2).mean() < 0.4


@pytest.mark.parametrize(("side", "columns"), [(64, 8), (256, 4), (1024, 2)])
def test_captions_can_be_read_on_a_page_of_any_size(side, columns):
    """Seen at 1500 pixels across, a letter is at least 8 pixels high."""
    entry = (colours(2, side, side), "X")
    page = labelled_grid([entry] * columns, columns=columns, heading="")
    ink = np.nonzero((page[side + 6 :] < 100).any(axis=(1, 2)))[0]
    assert (ink.max() - ink.min() + 1) * min(1, 1500 / page.shape[1]) >= 8


@pytest.mark.parametrize("caption", ["smiling cat with heart-eyes", "woman in lotus position", "one two three four"])
def test_a_short_caption_is_whole_below_a_small_picture(caption):
    font = ImageFont.load_default(11)
    lines = wrap_caption(caption, 66, font.getlength, 4)
    assert " ".join(lines) == caption
    page, three = (labelled_grid([(colours(1, 64, 64)[0], caption)], caption_lines=n) for n in (4, len(lines)))
    assert np.array_equal(page, three)  # All lines have their room.


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_entries_of_one_size_stay_in_their_order(columns):
    tiles = colours(5, 32, 40)
    page = labelled_grid([(tile, "") for tile in tiles], columns=columns)
    found = [tuple(np.argwhere((page == tile[0, 0]).all(axis=2))[0] // 34) for tile in tiles]
    assert found == sorted(found) and len({row for row, _ in found}) == -(-5 // columns)


@pytest.mark.parametrize("heading", ["real | drawn", "step 3", "x"])
def test_a_heading_stands_above_all(heading):
    entries = [(colours(2, 32, 40), "")]
    plain, page = labelled_grid(entries), labelled_grid(entries, heading=heading)
    above = page.shape[0] - plain.shape[0]
    np.testing.assert_array_equal(page[above + 4 :], plain[4:])
    assert above > 0 and (page[: above + 4] < 100).any()


def test_labelled_grid_refuses_what_is_no_picture():
    with pytest.raises(InputError, match=r"got float32\[8, 12, 3\]"):
        labelled_grid([(colours(1)[0].astype(np.float32), "b")])
    with pytest.raises(InputError, match="at least one"):
        labelled_grid([])


@pytest.mark.parametrize(
    ("caption", "lines"),
    [
        ("", []),
        ("red apple", ["red apple"]),
        ("smiling face with eyes", ["smiling", "face with", "eyes"]),
        ("one two three four five six", ["one two", "three four", "five six"]),
        ("one two three four five six seven", ["one two", "three four", "five si..."]),
        ("extraterrestrial alien", ["extraterre", "strial", "alien"]),
        ("a counterrevolutionary's extraterrestrial", ["a", "counterrev", "olution..."]),
    ],
)
def test_wrap_caption(caption, lines):
    assert wrap_caption(caption, width=10, measure=len, max_lines=3) == lines
    assert all(len(line) <= 10 for line in lines)


def test_false_colour():
    latents = np.random.default_rng(0).normal([5.0, -3.0, 0.0, 99.0], [2.0, 0.1, 1.0, 9.0], (4, 16, 16, 4))
    colour = false_colour(latents)
    assert colour.shape == (4, 16, 16, 3) and colour.dtype == np.float32
    assert np.abs(colour).max() == 1.0  # some values lie beyond 2.5 standard deviations
    np.testing.assert_allclose(colour.mean(axis=(0, 1, 2)), 0, atol=0.02)
    np.testing.assert_allclose(colour.std(axis=(0, 1, 2)), 0.4, atol=0.02)
    changed = latents.copy()
    changed[..., 3] = 0
    np.testing.assert_array_equal(false_colour(changed), colour)


def test_false_colour_of_few_channels_and_of_a_constant():
    grey = false_colour(np.random.default_rng(0).normal(size=(2, 4, 4, 1)))
    np.testing.assert_array_equal(grey[..., 0], grey[..., 2])
    assert not false_colour(np.full((1, 4, 4, 3), 7.0)).any()


def test_save_png_round_trip_with_text(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    path = tmp_path / "new" / "picture.png"
    save_png(path, image, {"prompt": "a blue ♥", "seed": "3"})
    with Image.open(path) as opened:
        assert opened.text == {"prompt": "a blue ♥", "seed": "3"}
        np.testing.assert_array_equal(np.asarray(opened), image)
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    save_png(path, colours(1)[0])
    before = path.read_bytes()

    def broken(self, file, **options):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", broken)
    with pytest.raises(InputError, match=r"picture.png cannot be written \(disk full\); make room"):
        save_png(path, colours(2)[1])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), colours(2)])
def test_save_png_refuses(tmp_path, image):
    with pytest.raises(InputError, match="to_uint8"):
        save_png(tmp_path / "picture.png", image)
    assert not list(tmp_path.iterdir())


def test_trailing_mean():
    steps = [10, 20, 30, 40]
    np.testing.assert_allclose(trailing_mean(steps, [4, 2, 6, 8], 20), [4, 3, 4, 7])
    np.testing.assert_allclose(trailing_mean(steps[:3], [4, 2, 6], 1000), [4, 3, 4])
    np.testing.assert_allclose(trailing_mean(steps[:3], [4, 2, 6], 0), [4, 2, 6])
    np.testing.assert_allclose(trailing_mean([7], [4], 5), [4])


@pytest.mark.parametrize(
    "extra", [{131: 9.0}, {131: 9.0, 132: 0.1, 133: 12.0}, {201: 5.0, 202: 5.0}, {99: 0.01, 101: 3.0}]
)
def test_points_of_few_steps_are_no_spikes(extra):
    """Where a run stopped, went on or ended, a point is the mean of few steps, and counts for as few."""
    points = dict.fromkeys(range(10, 201, 10), 1.0) | extra
    steps = sorted(points)
    mean = trailing_mean(steps, [points[step] for step in steps], 50)
    assert max(abs(mean - 1)) < 0.45 and max(abs(np.array([*extra.values()]) - 1)) > 0.9


def curve_pixels(tmp_path, **arguments):
    path = tmp_path / "curve.png"
    loss_curve_png(path, **arguments)
    assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


def one_panel(losses):
    return [{"mse": losses}]


def test_loss_curve_draws_what_it_is_given(tmp_path):
    steps = np.arange(50)
    falling, rising = np.exp(-steps / 10), np.exp(steps / 10)
    pictures = [
        curve_pixels(tmp_path, steps=steps, panels=one_panel(falling)),
        curve_pixels(tmp_path, steps=steps, panels=one_panel(rising)),
        curve_pixels(tmp_path, steps=steps, panels=one_panel(falling), smoothing=0.2),
        curve_pixels(tmp_path, steps=steps, panels=[{"mse": falling}, {"vlb": rising}]),
        curve_pixels(tmp_path, steps=steps, panels=one_panel(falling - 0.5)),  # negative: a linear axis
    ]
    assert [picture.shape for picture in pictures] == [(450, 800, 3)] * 3 + [(600, 800, 3), (450, 800, 3)]
    for number, picture in enumerate(pictures):
        assert all(not np.array_equal(picture, other) for other in pictures[:number])


def pixels_of(picture, colour):
    return np.all(np.abs(picture.astype(int) - colour) < 12, axis=2)


def test_loss_curve_axis_is_logarithmic_where_it_can_be(tmp_path):
    blue = (31, 119, 180)
    steps = np.arange(200)
    losses = np.exp(-steps / 40)
    bend = {}
    for name, values in (("log", losses), ("linear", losses - 0.2)):
        curve = pixels_of(curve_pixels(tmp_path, steps=steps, panels=one_panel(values)), blue)
        curve[:60, 600:] = False  # the legend's sample of the line
        columns = np.nonzero(curve.any(axis=0))[0]
        first, middle, last = (
            np.nonzero(curve[:, column])[0].mean()
            for column in (columns[0], (columns[0] + columns[-1]) // 2, columns[-1])
        )
        bend[name] = abs(middle - (first + last) / 2)
    assert bend["log"] < 5 < 50 < bend["linear"]  # an exponential is straight on a logarithmic axis alone


def test_loss_curve_keeps_the_raw_curve_faintly(tmp_path):
    losses = np.random.default_rng(0).uniform(1, 2, 50)
    faint = (199, 221, 236)  # a quarter of the line's blue over white
    raw, smoothed = (
        curve_pixels(tmp_path, steps=np.arange(50), panels=one_panel(losses), smoothing=n) for n in (0, 0.2)
    )
    assert pixels_of(smoothed, faint).sum() > pixels_of(raw, faint).sum() + 500


@pytest.mark.parametrize("small", [1e-3, 1e-4, 1e-5])
def test_a_short_run_is_no_flat_line_beside_a_small_term(small, tmp_path):
    """Each panel has a scale of its own: the loss falls by a twentieth, and its curve by half of the panel."""
    steps, losses = [5, 10, 15, 20], [1.05, 1.04, 1.01, 1.0]
    picture = curve_pixels(tmp_path, steps=steps, panels=[{"mse": losses}, {"vb": [small * x for x in losses]}])
    for colour in ((31, 119, 180), (255, 127, 14)):
        found = pixels_of(picture, colour)
        found[:, 620:] = False  # the legend
        rows = np.nonzero(found.any(axis=1))[0]
        assert rows.max() - rows.min() > 80


@pytest.mark.parametrize(
    "arguments",
    [
        {"steps": [], "panels": [{"mse": []}]},
        {"steps": [1, 2], "panels": [{"mse": [1.0]}]},
        {"steps": [1], "panels": []},
        {"steps": [1], "panels": [{"mse": [1.0]}, {}]},
        {"steps": [1], "panels": [{"mse": [1.0]}], "smoothing": 1.5},
    ],
)
def test_loss_curve_refuses(tmp_path, arguments):
    with pytest.raises(InputError, match="loss_curve_png"):
        loss_curve_png(tmp_path / "curve.png", **arguments)


def test_noise_levels_have_a_curve_each(tmp_path):
    steps = [0, 10, 20]
    picture = {}
    for timesteps in ((50,), (50, 950)):
        noise_levels_png(tmp_path / "eval.png", steps, {t: [1, 0.5 + t / 1000, 0.4] for t in timesteps})
        picture[timesteps] = np.asarray(Image.open(tmp_path / "eval.png").convert("RGB"))
    purple, green = (71, 17, 99), (157, 217, 58)  # the map's dark and light end
    assert pixels_of(picture[50,], purple).sum() > 100 and pixels_of(picture[50,], green).sum() < 20
    assert pixels_of(picture[50, 950], purple).sum() > 100 and pixels_of(picture[50, 950], green).sum() > 100
    with pytest.raises(InputError, match="noise_levels_png"):
        noise_levels_png(tmp_path / "eval.png", [], {50: []})
