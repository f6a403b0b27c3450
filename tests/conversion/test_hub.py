"""A hub id becomes a local path with just what conversion reads, from a hub that this test serves, or one clear error.

The hub's client reads its settings when it is imported, so each call has a process of its own.
"""

import collections
import os
import pathlib
import re
import socket
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import safetensors.numpy
from hub_server import Hub, file_headers, serving

from pixart_jax.conversion.hub import fetch
from pixart_jax.conversion.sources import open_source
from pixart_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[2]
CALL = """
import resource, sys
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from pixart_jax.conversion.hub import fetch
from pixart_jax.errors import InputError
for source in sys.argv[3:]:
    try:
        result = str(fetch(source, encoders=sys.argv[2] == "True"))
    except InputError as error:
        result = f"error: {error}"
    print("", result, "", sep="\\0", end="")
"""
COMMITS = {"main": "a" * 40, "v1": "b" * 40}

# Of these a pipeline needs WANTED.
WANTED = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/added_tokens.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.bin",
]
UNWANTED = [
    ".gitattributes",
    "README.md",
    "images/example.png",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model-00001-of-00002.fp16.safetensors",
    "text_encoder/model.fp16-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.fp16.json",
    "text_encoder/pytorch_model-00001-of-00002.bin",
    "text_encoder/pytorch_model.bin.index.json",
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/deeper/config.json",
    "vae/diffusion_flax_model.msgpack",
    "vae/diffusion_pytorch_model.fp16.bin",
    "vae/model.onnx",
]
TOLD_AROUND = ["model_index.json", "vae/config.json", "scheduler/scheduler_config.json"]
TRANSFORMER = [name for name in WANTED if name.startswith("transformer/")] + TOLD_AROUND
TEXT_ENCODER = [name for name in WANTED if name.startswith(("text_encoder/", "tokenizer/"))]
T5 = ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "spiece.model"]
PEFT = ["adapter_model.bin", "adapter_config.json"]
PTH = ["PixArt-Sigma-XL-2-512-MS.pth", "old/PixArt[1].pth"]


def contents(names):
    return {name: f"the bytes of {name}".encode() for name in names}


def pipeline():
    """Of which the transformer can be opened."""
    files = contents(WANTED + UNWANTED)
    arrays = {"adaln_single.linear.weight": np.zeros((144, 24), np.float32)}
    files["transformer/diffusion_pytorch_model.safetensors"] = safetensors.numpy.save(arrays)
    files["transformer/config.json"] = b"{}"
    files["model_index.json"] = b'{"_class_name": "PixArtSigmaPipeline"}'
    files["vae/config.json"] = b'{"scaling_factor": 0.5}'
    files["scheduler/scheduler_config.json"] = b'{"_class_name": "DDIMScheduler"}'
    return files


REPOS = {
    "them/pipeline": pipeline(),
    "them/t5": contents([*T5, "flax_model.msgpack", "tf_model.h5"]),
    "them/collection": contents([*PTH, "README.md", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"]),
    "them/gated": contents(PTH),
    "them/lora": contents([*PEFT, "README.md", "pytorch_lora_weights.safetensors"]),
    "them/fp16": contents([*TRANSFORMER, "text_encoder/config.json", "text_encoder/model.fp16.safetensors"]),
    "them/twice": contents([*T5, "pytorch_model.bin"]),
    "them/pictures": contents(["1.png", "config.json"]),
    "them/html": {},
    "them/down": {},
    "them/large": contents(["x.pth"]),
    "them/short": contents(["x.pth"]),
}
TOKEN = "hf_of_a_test"


class Served(Hub):
    """Those repositories; v1 of each has `at v1` at the end of each file."""

    asked: ClassVar = collections.Counter()

    def revision(self, repo, revision):
        commit = COMMITS.get(revision, revision)
        if commit not in COMMITS.values() or repo not in REPOS:
            return commit, None
        ending = b" at v1" if commit == COMMITS["v1"] else b""
        return commit, {name: data + ending for name, data in REPOS[repo].items()}

    def exists(self, repo):
        return repo in REPOS

    def odd(self, repo, what, name):
        if repo == "them/down":
            return self.refuse(503, "")
        if repo == "them/html":
            return self.answer(b"<html>please log in</html>")
        if repo == "them/gated" and what == "resolve" and self.headers["authorization"] != f"Bearer {TOKEN}":
            return self.refuse(403, "GatedRepo")
        if repo == "them/short" and what == "resolve" and self.command == "GET":
            return self.answer(REPOS[repo][name][:-1], file_headers(REPOS[repo][name], COMMITS["main"]))
        return False

    def size(self, repo, data):
        return 10**15 if repo == "them/large" else len(data)


@pytest.fixture(scope="module")
def endpoint():
    with serving(Served) as address:
        yield address


@pytest.fixture
def call(endpoint, tmp_path):
    """Calls fetch; returns what it printed, and what it returned or "error: " and the message; of several calls a list
    of these."""
    Served.asked.clear()
    clean = {name: value for name, value in os.environ.items() if not re.match("HF_|.*PROXY", name.upper())}
    clean |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}

    def run(*sources, encoders=True, limit=0, **settings):
        process = subprocess.run(
            [sys.executable, "-c", CALL, str(limit), str(encoders), *sources],
            cwd=tmp_path,
            env=clean | settings,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert process.returncode == 0, process.stderr
        *parts, _ = process.stdout.split("\0")
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        return pairs if len(pairs) > 1 else pairs[0]

    return run


def downloaded(repo):
    """How often each file of a repository was downloaded."""
    names = {f"/{repo}/resolve/{commit}/{name}": name for commit in COMMITS.values() for name in REPOS[repo]}
    return {names[path]: count for (method, path), count in Served.asked.items() if method == "GET" and path in names}


def check_files(folder, repo, names, suffix=b""):
    """That a folder holds these files of a repository and no others."""
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert found == {name: REPOS[repo][name] + suffix for name in names}


# What a pipeline's files say of its transformer.
SAID = {"family": "sigma", "latent_scale": 0.5, "drawing": {"prediction": "eps", "flow_shift": 1.0}}


def test_a_pipeline(call, tmp_path):
    printed, result = call("them/pipeline")
    path = pathlib.Path(result)
    assert path.is_relative_to(tmp_path / "home") and path.name == COMMITS["main"]
    check_files(path, "them/pipeline", WANTED)
    assert downloaded("them/pipeline") == dict.fromkeys(WANTED, 1)
    size = f"{sum(len(REPOS['them/pipeline'][name]) for name in WANTED) / 1e3:.1f} kB"
    assert printed == f"them/pipeline: 13 files, {size}, of which {size} to download\n" and size == "14.4 kB"
    source = open_source(path)
    assert source.format.name == "diffusers" and source.pipeline == SAID


def test_a_pipeline_without_its_encoders(call):
    _, result = call("them/pipeline", encoders=False)
    check_files(pathlib.Path(result), "them/pipeline", TRANSFORMER)


def test_a_folder_of_a_pipeline(call):
    """With what the pipeline tells about it."""
    _, result = call("them/pipeline/transformer/")
    check_files(pathlib.Path(result).parent, "them/pipeline", TRANSFORMER)
    assert open_source(result).pipeline == SAID


@pytest.mark.parametrize(
    "source,below,names",
    [
        ("them/t5", "", T5),
        ("them/pipeline/text_encoder", "text_encoder", TEXT_ENCODER),
        ("them/collection/vae", "vae", ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]),
        (f"them/collection/{PTH[0]}", PTH[0], PTH[:1]),
        (f"them/collection/{PTH[1]}", PTH[1], PTH[1:]),
        ("them/lora", "", PEFT),
        ("them/lora/pytorch_lora_weights.safetensors", "pytorch_lora_weights.safetensors",
         ["pytorch_lora_weights.safetensors", "adapter_config.json"]),
        ("them/pipeline/transformer/diffusion_pytorch_model.bin", "transformer/diffusion_pytorch_model.bin",
         ["transformer/diffusion_pytorch_model.bin", "transformer/config.json", *TOLD_AROUND]),
    ],
)  # fmt: skip
def test_one_model(source, below, names, call):
    _, result = call(source)
    snapshot = result.removesuffix(f"/{below}")
    assert pathlib.Path(snapshot).name == COMMITS["main"] and pathlib.Path(result).exists()
    check_files(pathlib.Path(snapshot), "/".join(source.split("/")[:2]), names)


@pytest.mark.parametrize("revision", ["v1", COMMITS["v1"]])
def test_a_revision(revision, call):
    _, result = call(f"them/collection@{revision}/vae")
    assert pathlib.Path(result).parent.name == COMMITS["v1"]
    names = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    check_files(pathlib.Path(result).parent, "them/collection", names, b" at v1")


def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_nothing_is_downloaded_twice(call):
    _, first = call("them/pipeline")
    Served.asked.clear()
    printed, again = call("them/pipeline")
    assert again == first and not downloaded("them/pipeline")
    assert "of which 0.0 kB to download" in printed
    # A hub that refuses, one that never answers, and none at all.
    refuses = {"HF_ENDPOINT": f"http://127.0.0.1:{closed_port()}"}
    with socket.create_server(("127.0.0.1", 0)) as mute:
        hangs = {"HF_ENDPOINT": f"http://127.0.0.1:{mute.getsockname()[1]}", "HF_HUB_ETAG_TIMEOUT": "1"}
        for settings in (refuses, hangs, {"HF_HUB_OFFLINE": "1"}):
            Served.asked.clear()
            printed, again = call("them/pipeline", **settings)
            assert again == first and not Served.asked
            assert "the hub cannot be reached" in printed and "looking in the cache" in printed


def test_what_a_cache_without_lists_holds(call, tmp_path):
    """As other tools leave it that have downloaded one file."""
    _, first = call(f"them/collection/{PTH[0]}")
    for path in (tmp_path / "home/hub").glob("*/trees/*"):
        path.unlink()
    assert call(f"them/collection/{PTH[0]}", HF_HUB_OFFLINE="1")[1] == first


def test_half_a_pipeline_in_the_cache(call):
    call("them/pipeline/transformer")
    _, error = call("them/pipeline", HF_HUB_OFFLINE="1")
    assert error.startswith("error: them/pipeline: the hub cannot be reached, and the cache holds only part of it")


def test_a_token(call):
    _, error = call(f"them/gated/{PTH[0]}")
    assert error.startswith("error: them/gated is gated; accept its licence on http://127.0.0.1:")
    assert error.endswith("/them/gated, then set HF_TOKEN to a token of your account")
    _, result = call(f"them/gated/{PTH[0]}", HF_TOKEN=TOKEN)
    assert pathlib.Path(result).read_bytes() == REPOS["them/gated"][PTH[0]]


ERRORS = {
    "them/nothing": ["them/nothing: no such file or folder, and as a hub id there is no model", "set HF_TOKEN"],
    "weights/alpha.pth": ["weights/alpha.pth: no such file or folder, and as a hub id there is no model weights/alpha"],
    "them--us/nothing": ["no such file or folder, and as a hub id there is no model them--us/nothing"],
    "them/t5@v9": ["them/t5 has no branch, tag or commit v9"],
    "them/down": ["no such file or folder", "the hub cannot be reached: Server error '503", "check the network"],
    "them/html": ["them/html: http://127.0.0.1:", "does not answer as a hub does; check the proxy"],
    "them/large/x.pth": [" has room for ", "1,000,000.0 GB are to be downloaded; make room, or set HF_HOME"],
    "them/short/x.pth": ["them/short/x.pth: the download broke off: Consistency check failed", "run it again"],
    "them/fp16": ["them/fp16/text_encoder has no weights in a form", "; name them/fp16/transformer to have"],
    "them/twice": ["holds weights twice, pytorch_model.bin and the shards of pytorch_model.bin.index.json"],
    "them/pictures": ["them/pictures holds no weights that can be converted"],
    "them/pipeline/README.md": ["them/pipeline/README.md is no file of weights, which end with .pth, .pt, .bin"],
}


def test_errors(call):
    for (_, error), (source, messages) in zip(call(*ERRORS), ERRORS.items(), strict=True):
        assert error.startswith("error: ") and "\n" not in error, (source, error)
        assert all(message in error for message in messages), error
    assert not any(map(downloaded, REPOS.keys() - {"them/short"}))


def test_no_network(call):
    sources = ["them/pipeline", "weights/alpha.pth"]
    results = call(*sources, HF_ENDPOINT=f"http://127.0.0.1:{closed_port()}")
    for source, (_, error) in zip(sources, results, strict=True):
        assert error.startswith(f"error: {source}: no such file or folder, and as a hub id it is not in the cache and ")
        assert "the hub cannot be reached: [Errno 111] Connection refused; correct the path, or check" in error


def test_several_models_are_listed(call):
    (_, several), (_, absent), (_, revision) = call("them/collection", "them/collection/x.pth", "them/collection@v1")
    names = [
        "  them/collection/PixArt-Sigma-XL-2-512-MS.pth (0.0 kB)",
        "  them/collection/old/PixArt[1].pth (0.0 kB)",
        "  them/collection/vae (0.1 kB)",
    ]
    assert several.splitlines() == ["error: them/collection is not one model; name one of these:", *names]
    assert absent.splitlines() == ["error: them/collection/x.pth is not there; name one of these:", *names]
    assert "\n  them/collection@v1/vae (0.1 kB)" in revision


def test_a_full_disk(call):
    """A limit to the size of files behaves as one."""
    _, error = call(f"them/collection/{PTH[0]}", limit=16)
    assert error.endswith("/hub cannot be written: File too large; make room, or set HF_HOME to another folder"), error


def test_local_paths_are_returned_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/alpha").write_bytes(b"")
    (tmp_path / "weights/link").symlink_to("nowhere")
    for path in ("weights", "weights/", "weights/alpha", "./weights/alpha", str(tmp_path), "weights/link"):
        assert fetch(path) == pathlib.Path(path)


@pytest.mark.parametrize("source", ["x.pth", "./a/b", "/a/b", "~/a/b", "../a/b", "a//b"])
def test_what_can_only_be_a_path(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^.*: no such file or folder, and not a hub id like owner/name$"):
        fetch(source)


@pytest.mark.parametrize("source", ["http://host/a/b", "gs://bucket/model", "s3://bucket/x.pth"])
def test_a_url_is_told_to_be_one(source):
    with pytest.raises(InputError, match=rf"^the source {source}: is a URL; name a local path: copy it, or mount the"):
        fetch(source)


def test_a_path_that_cannot_be_looked_at():
    with pytest.raises(InputError, match=r"^x+ cannot be read: File name too long$"):
        fetch("x" * 300)
