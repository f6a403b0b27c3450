import pytest

from pixart_jax.errors import InputError
from pixart_jax.training.inputs.base import parse_sources


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", [("a,b", 1.0)]),
        ("x:12", [("x:12", 1.0)]),
        ("x:12:3,a\\,b:2", [("x:12", 3.0), ("a,b", 2.0)]),
        ("x\\:12,plain:2", [("x:12", 1.0), ("plain", 2.0)]),
        ("none:0.5,C:/data", [("none", 0.5), ("C:/data", 1.0)]),
        ("both\\:3", [("both:3", 1.0)]),
    ],
)
def test_a_source_may_hold_commas_and_colons(tmp_path, monkeypatch, text, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b", "x:12", "plain", "both", "both:3"):
        (tmp_path / name).mkdir()
    assert parse_sources(text) == expected
    with pytest.raises(InputError, match=r"both:3 may be the folder of this name, or both with a weight"):
        parse_sources("both:3")
