"""DreamBooth's batches: half of the subject, half of its class, each source in its own order; a run on them."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny_pipeline import TEXT_DIM
from tiny_run import read_metrics, tiny_config, write_data

from pixart_jax.config import check_config, default_config
from pixart_jax.errors import InputError
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.loop import train_and_evaluate


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """subject/ of five pictures without captions, and class/ of four with; no two of one size."""
    root = tmp_path_factory.mktemp("dreambooth")
    for name, count in (("subject", 5), ("class", 4)):
        (root / name).mkdir()
        for i in range(count):
            size = 66 + 3 * i + (50 if name == "class" else 0)
            Image.new("RGB", (size, size), (40 * i, 90, 200)).save(root / name / f"{i}.png")
            if name == "class":
                (root / name / f"{i}.txt").write_text("a photo of a dog", encoding="utf-8")
    return root


def config_of(folders, weights, **data):
    config = default_config()
    config.model.update({"hidden_size": 24, "depth": 1, "num_heads": 2, "text_dim": TEXT_DIM, "max_text_tokens": 32})
    config.data.update({"online": True, "source": str(folders / "subject"), "prior_source": str(folders / "class")})
    config.data.update({"caption": "a photo of sks dog", "vae": f"{weights}/vae", "batch_size": 4})
    config.data.update({"text_encoder": f"{weights}/text_encoder", "text_drop_prob": 0.0, **data})
    config.optimizer.update({"learning_rate": 1e-3, "warmup_steps": 1})
    config.train.update({"num_steps": 2, "log_every": 1, "checkpoint_every": 2, "min_snr_gamma": 5.0})
    config.sample.every = 0
    return config


def opened(config):
    return open_data(config, batch_spec(config))


def sides(batch):
    """Pixels along a side of each row's picture."""
    return batch["image_size"][:, 0].astype(int).tolist()


def test_half_of_each_batch_is_the_class(folders, weights):
    config = config_of(folders, weights)
    batches = opened(config).batches
    first = [next(batches) for _ in range(5)]
    for batch in first:
        assert batch["is_prior"].tolist() == [False, True, False, True]
        assert all(side < 90 for side in sides(batch)[::2]) and all(side >= 116 for side in sides(batch)[1::2])
        # The subject's caption is one for all, and another one than the class's.
        assert (batch["text"][0] == batch["text"][2]).all() and (batch["text"][0] != batch["text"][1]).any()
    # Each source is seen whole in its own epochs: five subjects in five halves of two rows, four of the class in two.
    subjects, classes = ([side for batch in first for side in sides(batch)[start::2]] for start in (0, 1))
    assert sorted(subjects) == sorted(2 * [66 + 3 * i for i in range(5)])
    assert sorted(classes[:4]) == [116 + 3 * i for i in range(4)]

    state, expected = json.loads(json.dumps(batches.get_state())), next(batches)
    batches.close()
    again = opened(config).batches
    again.set_state(state)
    found = next(again)
    again.close()
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)


def test_shards_are_halves_too(tmp_path):
    """Of two sets of shards, as of two folders of pictures."""
    first, second = write_data(tmp_path / "subject"), write_data(tmp_path / "class")
    config = tiny_config(first)
    config.data.update({"prior_source": str(second), "batch_size": 4})
    config.train.update({"num_steps": 2, "log_every": 1})
    batches = opened(config).batches
    batch = next(batches)
    batches.close()
    assert batch["is_prior"].tolist() == [False, True, False, True]
    train_and_evaluate(config, str(tmp_path / "run"))
    rows = read_metrics(tmp_path / "run")
    assert [row["loss"] for row in rows] == pytest.approx([row["subject"] + row["prior"] for row in rows], rel=1e-5)


def test_a_run_reports_both_losses(folders, weights, tmp_path, compilations):
    config = config_of(folders, weights)
    train_and_evaluate(config, str(tmp_path))
    assert compilations.count("jit(train_step)") == 1
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert row["loss"] == pytest.approx(row["subject"] + row["prior"], rel=1e-5) and np.isfinite(row["loss"])


def test_what_does_not_fit_is_refused(folders, weights):
    for changes, said in [
        ({"batch_size": 5}, "config.data.batch_size = 5: half of each process's batch"),
        ({"prior_source": str(folders / "none")}, "none"),
        ({"caption": ""}, "not one of 5 items could be used: 5 caption-missing"),
        ({"source": f"classes:{folders}"}, "one caption for all is for a folder"),
        ({"online": False, "text_encoder": "", "caption": "", "vae": "", "source": "synthetic"}, "data.prior_source"),
    ]:
        with pytest.raises(InputError, match=said):
            next(opened(config_of(folders, weights, **changes)).batches)
    for key, value, said in [("snr_loss", True, "train.min_snr_gamma"), ("prior_weight", 0.5, "train.prior_weight")]:
        config = config_of(folders, weights, **({"prior_source": ""} if key == "prior_weight" else {}))
        config.train[key] = value
        with pytest.raises(InputError, match=said):
            check_config(config)
