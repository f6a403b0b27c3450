"""Settings and sources that name paths: home folders are found, URLs are refused."""

import pytest
from tiny_run import tiny_config

from pixart_jax.config import default_config
from pixart_jax.config.local_paths import resolve_paths
from pixart_jax.config.settings import flatten
from pixart_jax.data.pictures import open_pictures
from pixart_jax.errors import InputError
from pixart_jax.training.loop import train_and_evaluate

KEYS = ["init_from", "init.null_text", "data.source", "data.data_dir", "data.vae", "data.text_encoder", "eval.source"]
KEYS += ["eval.network_weights", "eval.reference", "eval.clip"]


@pytest.mark.parametrize("key", KEYS)
def test_a_url_is_refused_by_its_key(key, tmp_path):
    config = tiny_config(tmp_path)
    for url in ("gs://bucket/x", "s3://b/x", "https://host/x", "hf://them/x", "file:///x"):
        config.update_from_flattened_dict({key: url})
        with pytest.raises(InputError, match=rf"config\.{key} {url}: is a URL"):
            train_and_evaluate(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", KEYS)
def test_home_is_found(key, monkeypatch):
    monkeypatch.setenv("HOME", "/home/them")
    config = default_config()
    config.update_from_flattened_dict({key: "~/x"})
    resolve_paths(config)
    assert flatten(config)[key] == "/home/them/x"


@pytest.mark.parametrize(
    ("text", "resolved"),
    [
        ("~/a:0.5,~/b:2", "/home/them/a:0.5,/home/them/b:2"),
        ("classes:~/a", "classes:/home/them/a"),
        ("classes:/a", "classes:/a"),
        ("tfds:coco:train", "tfds:coco:train"),
        ("a~b/,./c/", "a~b/,./c/"),
        ("synthetic", "synthetic"),
    ],
)
def test_sources_keep_their_form(text, resolved, monkeypatch):
    monkeypatch.setenv("HOME", "/home/them")
    config = default_config()
    config.data.source = text
    resolve_paths(config)
    assert config.data.source == resolved


def test_prompts_that_mention_a_url_are_prompts():
    config = default_config()
    for text in ("a sign that says http://x", "~ a wave\na cat", "them/PixArt-α"):
        config.sample.prompts = text
        resolve_paths(config)
        assert config.sample.prompts == text
    config.sample.prompts = "gs://bucket/prompts.txt"
    with pytest.raises(InputError, match=r"config\.sample\.prompts gs://"):
        resolve_paths(config)


@pytest.mark.parametrize("spec", ["gs://bucket/x", "classes:s3://b/x", "https://host/00000.tar"])
def test_a_url_is_no_source_of_pictures(spec):
    with pytest.raises(InputError, match=r"the source .* is a URL"):
        open_pictures(spec)


def test_pictures_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    assert len(open_pictures("~/photos")) == 1
