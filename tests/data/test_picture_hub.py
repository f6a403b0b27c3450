"""Data sets of the hub, from one that this test serves, and without it from the cache."""

import io
import json
import os
import re
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Hub, serving
from picture_cases import tar

from pixart_jax.data.pictures.hub import _choose
from pixart_jax.data.pictures.layouts import split_of
from pixart_jax.errors import InputError

# The hub's client reads its settings when it is imported.
CALL = """
import json, sys
from pixart_jax.data.pictures import open_pictures
from pixart_jax.errors import InputError
found = []
for spec in sys.argv[1:]:
    try:
        source = open_pictures(spec)
        found.append([[source[i].key, source[i].data.decode(), source[i].captions[0][0]] for i in range(len(source))])
    except InputError as error:
        found.append(str(error))
print(json.dumps(found))
"""


def parquet(pictures):
    file = io.BytesIO()
    pq.write_table(pa.table({"image": pictures, "text": ["t"] * len(pictures)}), file)
    return file.getvalue()


REPOS = {
    "them/parquet": {
        "README.md": b"",
        "data/train-00000-of-00002.parquet": parquet([b"0", b"1"]),
        "data/train-00001-of-00002.parquet": parquet([b"2"]),
        "data/test-00000-of-00001.parquet": parquet([b"3"]),
    },
    "them/tars": {"a-000.tar": tar({"k.jpg": "4", "k.txt": "x"}), "a-001.tar": tar({"l.jpg": "5", "l.txt": "y"})},
    "them/folder": {"train/0.jpg": b"6", "train/metadata.csv": b"file_name,caption\n0.jpg,z\n", "test/1.jpg": b"7"},
    "them/code": {"script.py": b""},
    "them/gated": {"a.tar": b""},
    "them/down": {},
}
COMMITS = {"main": "a" * 40, "v1": "b" * 40}


class DataSets(Hub):
    def exists(self, repo):
        return repo in REPOS

    def revision(self, repo, revision):
        commit = COMMITS.get(revision, revision)
        return commit, REPOS[repo] if commit in COMMITS.values() else None

    def odd(self, repo, what, name):
        if repo == "them/down":
            return self.refuse(503, "")
        return self.refuse(403, "GatedRepo") if repo == "them/gated" and what == "resolve" else False


SPECS = ["hf:them/parquet", "hf:them/parquet:test", "hf:them/parquet@v1:validation", "hf:them/tars", "hf:them/folder"]


def test_data_sets_of_the_hub(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not re.match("HF_|.*PROXY", name.upper())}
    clean |= {"HF_HOME": str(tmp_path)}

    def call(address, *specs):
        command = [sys.executable, "-c", CALL, *specs]
        output = subprocess.run(
            command, env=clean | {"HF_ENDPOINT": address}, capture_output=True, text=True, check=True
        )
        return json.loads(output.stdout.splitlines()[-1]), output.stdout

    others = ["hf:them/code", "hf:them/gated", "hf:them/none", "hf:them/parquet/nowhere", "hf:nobody"]
    with serving(DataSets) as address:
        (whole, test, at_v1, tars, folder, *errors), printed = call(address, *SPECS, *others)
    start = "train-0000"
    assert whole == [[f"{start}{f}-of-00002/00000{r}", f"{2 * f + r}", "t"] for f, r in ((0, 0), (0, 1), (1, 0))]
    assert test == [["test-00000-of-00001/000000", "3", "t"]]
    assert "has the splits test, train; name one" in at_v1
    assert tars == [["k", "4", "x"], ["l", "5", "y"]] and folder == [["0.jpg", "6", "z"]]
    assert (
        "hf:them/parquet: 2 files, " in printed
        and Hub.asked["GET", "/datasets/them/folder/resolve/main/test/1.jpg"] == 0
    )
    for error, said in zip(
        errors,
        [
            "holds neither Parquet files, nor .tar files, nor pictures, but script.py; .*hf:them/code@refs/convert",
            r"them/gated is gated; accept its licence on .*/datasets/them/gated, then set HF_TOKEN",
            "there is no dataset them/none; correct it",
            "has no nowhere; it has README.md, data/test",
            "write hf:OWNER/NAME",
        ],
        strict=True,
    ):
        assert re.search(said, error), error
    # Without a network: what the cache holds, and one clear line for what it does not.
    (again, missing), printed = call("http://127.0.0.1:9", "hf:them/parquet", "hf:them/down")
    assert again == whole and "looking in the cache" in printed
    assert "is not in the cache and the hub cannot be reached" in missing and "check the network" in missing


def test_several_sets_in_one_repository():
    names = [f"{language}/{split}-00000-of-00001.parquet" for language in ("de", "en") for split in ("train", "test")]
    with pytest.raises(InputError, match="holds several sets: de, en; name one"):
        _choose("hf:a/b", names, "", "")
    assert _choose("hf:a/b/en", names, "en", "") == ("parquet", [names[2]], "en")
    assert _choose("hf:a/b/*", names, "*/*", "test") == ("parquet", [names[1], names[3]], "*/*")


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002-0123456789abcdef.parquet", "train"),
        ("data/my.split-00000-of-00002.parquet", "my.split"),
        ("default/validation/0000.parquet", "validation"),
        ("dev_1.parquet", "validation"),
        ("latest/strained.parquet", ""),
        ("train/test.parquet", "test"),
    ],
)
def test_splits(path, split):
    assert split_of(path) == split
