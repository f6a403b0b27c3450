"""The benchmark of conversion runs every direction and reports what it cost; never how fast it should be."""

import json

from tools.bench.__main__ import main


def test_every_direction(capsys, tmp_path):
    assert main(["--what=convert", "--size=S/2", f"--directory={tmp_path / 'new'}"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["from"], row["to"]) for row in rows] == [
        ("model.pth", "orbax"), ("ours", "pixart"), ("ours", "diffusers"), ("transformer", "orbax"),
    ]  # fmt: skip
    for row in rows:
        assert row["seconds"] > 0
        # Python and the weights, once at least; the peak is looked at, and may be missed by a little.
        assert row["model_bytes"] < row["peak_bytes"] < 1.1 * row["resident_bytes"]
    assert not list((tmp_path / "new").iterdir())
