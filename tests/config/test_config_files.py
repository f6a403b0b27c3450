"""What people write as a config, and what may become of a run's config.json: one error, which says where and what."""

import json

import pytest

from pixart_jax.config import default_config, flatten, load_config, read_config_file
from pixart_jax.errors import InputError
from pixart_jax.main import parse_flags
from pixart_jax.training.record import record_config

HEAD = "from pixart_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"


@pytest.mark.parametrize(
    "text,message",
    [
        ("def get_config(:\n", r"line 1: SyntaxError: invalid syntax; there stands: def get_config\(:"),
        (f"{HEAD}   return config\n", r"line 6: SyntaxError: unindent"),
        (
            f"{HEAD}    config.train.num_steps = steps\n",
            "line 6: NameError: name 'steps' is not defined; there stands",
        ),
        (f"{HEAD}    1 / 0\n", "line 6: ZeroDivisionError: division by zero"),
        (f"{HEAD}    open('/nowhere/x')\n", "line 6: FileNotFoundError: "),
        (f"import nonesuch\n{HEAD}", "line 1: No module named 'nonesuch'; start where it lies, or install it"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3"),
        ("\0", "SyntaxError: source code"),
        (
            f"{HEAD}    config.train.num_steps = 1e5\n",
            "line 6: num_steps = 100000.0: must be of type int; there",
        ),
        (f"{HEAD}    config.train.update(num_steps='7')\n", "line 6: num_steps = 7: must be of type int"),
        (f"{HEAD}    config.train = 5\n", "line 6: train = 5: is a section: set the keys in it"),
        (f"{HEAD}    config.dtype = None\n    return config\n", r"line 6: config\.dtype = None: must be of type str"),
        (HEAD, r"get_config\(\) returns nothing; let it begin with .* and end with `return config`"),
        (f"{HEAD}    return config.to_dict()\n", r"get_config\(\) returns a dict, and no config"),
        ("def get_config(kind):\n    return kind\n", r"TypeError: get_config\(\) missing 1"),
        ("config = 1\n", r"has no get_config\(\)"),
        (
            "from ml_collections import ConfigDict as C\n\n\ndef get_config():\n    return C({'train': {'lr': 1}})\n",
            r"line 5: unknown config key config\.train\.lr",
        ),
        (
            "from ml_collections import ConfigDict\nget_config = ConfigDict\n",
            r"config\.seed is missing; begin with default_",
        ),
    ],
)
def test_what_a_config_file_fails_of_is_one_error(text, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}(, |: ){message}"):
        read_config_file(str(path))


@pytest.mark.parametrize(
    "lines,number,key,near",
    [
        ("config.data.sorce = 'x'", 6, "data.sorce", "data.source"),
        (
            "config.train.update(\n        {\n            'ema_decai': 0.5,\n        }\n    )",
            8,
            "train.ema_decai",
            "train.ema_decay",
        ),
        ("config.optimizer.came.b4 = 0.5", 6, "optimizer.came.b4", "optimizer.came.b3"),
        ("config.trian.num_steps = 5", 6, "trian.num_steps", "train.num_steps"),
        ("config.unlock()\n    config.sample.evry = 5", 7, "sample.evry", "sample.every"),
        ("config.sead = 5", 6, "sead", "seed"),
    ],
)
def test_a_wrong_key_has_its_line_and_the_nearest(lines, number, key, near, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{HEAD}    {lines}\n    return config\n")
    message = rf"^{path}, line {number}: unknown config key config\.{key}; did you mean config\.{near}\?"
    with pytest.raises(InputError, match=message):
        read_config_file(str(path))


@pytest.mark.parametrize("name", ["config.json", "config.yaml", "config"])
def test_a_config_of_another_language(name, tmp_path):
    (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=r"not a Python file; name a Python file \(\*\.py\) with a get_config\(\)"):
        read_config_file(str(tmp_path / name))


@pytest.mark.parametrize("given", [["--config={}"], ["--config", "{}"], ["-config", "{}"]])
def test_a_config_may_follow_a_blank(given, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"{HEAD}    config.trian.num_steps = 5\n")
    with pytest.raises(InputError, match=r"mine\.py, line 6: "):  # It was read.
        parse_flags(["main", *(part.format(path) for part in given), "--workdir", "run"])


def test_no_config_is_missing():
    with pytest.raises(InputError, match="--config is missing"):
        parse_flags(["main", "--workdir=run", "--config"])
    with pytest.raises(InputError, match="--config is empty"):
        parse_flags(["main", "--workdir=run", "--config="])


def damaged(kind):
    """A run's config.json that something happened to."""
    config = default_config().to_dict()
    text = json.dumps(config)
    changes = {
        "type": {"model": config["model"] | {"depth": "2"}},
        "float for int": {"model": config["model"] | {"depth": 2.0}},
        "bool for int": {"model": config["model"] | {"depth": True}},
        "null": {"dtype": None},
        "section": {"model": 5},
        "list": {"model": [1]},
        "object": {"seed": {"a": 1}},
        "range": {"model": config["model"] | {"position_scale": -1.0}},
        "choice": {"sample": config["sample"] | {"sampler": "none"}},
        "key": {"modem": config["model"]},
    }
    texts = {
        "empty": "",
        "cut": text[: len(text) // 2],
        "no object": "[]",
        "nan": text.replace("4.5", "NaN"),
        "infinity": text.replace("4.5", "1e999"),
        "deep": "[" * 100_000,
    }
    return texts[kind] if kind in texts else json.dumps(config | changes[kind])


DAMAGE = [
    "empty", "cut", "no object", "nan", "infinity", "deep", "type", "float for int", "bool for int", "null", "section",
    "list", "object", "range", "choice", "key",
]  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_is_one_error_and_no_obstacle(kind, tmp_path, caplog):
    """To those that read a run's model from it; the run itself has its config from the command."""
    path = tmp_path / "config.json"
    path.write_text(damaged(kind))
    with pytest.raises(InputError, match=rf"{path}.*give the command of the run again, which writes it anew"):
        load_config(tmp_path)
    record_config(tmp_path, default_config(), 7)
    assert "IS DAMAGED; it is kept as" in caplog.text
    assert (tmp_path / "config.json.damaged").read_text() == damaged(kind)
    assert flatten(load_config(tmp_path)) == flatten(default_config())


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\0{")
    with pytest.raises(InputError, match=r"config\.json is damaged"):
        load_config(tmp_path)


def test_what_an_older_version_did_not_know_has_its_default(tmp_path):
    config = default_config()
    config.seed, config.train.num_steps = 5, 7
    values = config.to_dict()
    del values["train"]["ema_warmup"], values["mesh"], values["optimizer"]["came"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert flatten(load_config(tmp_path)) == flatten(config)
