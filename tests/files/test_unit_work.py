"""Units that are whole or absent, whatever is made of them."""

import json

import pytest

from pixart_jax.errors import InputError
from pixart_jax.files.unit_work import Skipped, work_through


class Squares:
    """The squares of numbers, two a unit, of which some cannot be used."""

    num_items, items_per_unit = 5, 2

    def __init__(self, bad=(), recipe="squares", changed=()):
        self.bad, self.recipe, self.changed, self.made = set(bad), {"what": recipe}, set(changed), []

    def make(self, number, items, work):
        self.made.append(number)
        return {"squares": [i * i for i in items if i not in self.bad]}, self.still_skipped(items)

    def still_skipped(self, items):
        return [Skipped(str(i), "bad", "it is bad", i) for i in items if i in self.bad]

    def digest(self, items):
        return str([(i, i in self.changed) for i in items])

    def assemble(self, made, work):
        squares = [square for unit in made for square in unit["squares"]]
        if not squares:
            raise InputError(f"nothing: {made.reasons()}")
        (work / "ready").mkdir(exist_ok=True)
        (work / "ready" / "squares.json").write_text(json.dumps(squares))
        return work / "ready"


def test_processes_share_it_and_the_last_one_publishes(tmp_path):
    tallies = []
    assert not work_through(Squares(), tmp_path / "out", process_index=1, process_count=2, report=tallies.append)
    assert [(t.units, t.total_units, t.items, t.total_items) for t in tallies] == [(1, 1, 2, 2)]
    rest = Squares()
    assert work_through(rest, tmp_path / "out", process_count=2)
    assert rest.made == [0, 2]
    assert json.loads((tmp_path / "out" / "squares.json").read_text()) == [0, 1, 4, 9, 16]
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["recipe.json", "skipped.jsonl", "squares.json"]
    with pytest.raises(InputError, match="exists already"):
        work_through(Squares(), tmp_path / "out")


def test_what_changed_or_was_mended_is_made_again(tmp_path):
    with pytest.raises(InputError, match=r"nothing: \{'bad': 5\}"):
        work_through(Squares(bad=range(5)), tmp_path / "out")
    mended = Squares(bad=range(4), changed=[0])
    assert work_through(mended, tmp_path / "out")
    assert mended.made == [0, 2]  # The items of unit 1 are as bad as they were.
    assert [json.loads(line)["key"] for line in (tmp_path / "out" / "skipped.jsonl").open()] == ["0", "1", "2", "3"]


def test_a_damaged_unit_is_made_again_and_another_recipe_refused(tmp_path):
    assert not work_through(Squares(), tmp_path / "out", process_index=1, process_count=2)
    (tmp_path / ".out.incomplete" / "units" / "000001.json").write_text("{")
    with pytest.raises(InputError, match="what: 'squares', now 'cubes'"):
        work_through(Squares(recipe="cubes"), tmp_path / "out")
    again = Squares()
    assert work_through(again, tmp_path / "out")
    assert again.made == [0, 1, 2]
