"""Distribution matching through the real loop: pairs that the teacher draws, three networks, stopped and resumed."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest
import torch
from lpips_files import HEADS, VGG, lpips_files
from PIL import Image
from resume_runs import finish, last_saved, load_arrays, start, wait_for
from tiny_run import read_metrics, tiny_config
from tiny_words import CAPTIONS, write_words_data

from pixart_jax.adapters.followed import FAKE
from pixart_jax.checkpoints.checkpoints import Checkpoints
from pixart_jax.cluster.ending import Ending
from pixart_jax.config import build_adapter, build_model, build_objective, check_config
from pixart_jax.config.local_paths import resolve_paths
from pixart_jax.conversion.runs import load_run
from pixart_jax.data.shards.feature_shards import ShardReader
from pixart_jax.data.word_encoder import FILES as WORD_ENCODER_FILES
from pixart_jax.devices.sharding import make_mesh
from pixart_jax.encoding.registry import LINEAR_AUTOENCODER_FILE
from pixart_jax.errors import InputError
from pixart_jax.generation.pipeline import TextToImage
from pixart_jax.generation.request import Request
from pixart_jax.models.params import parameter_shapes
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.training.inputs.distance import open_distance
from pixart_jax.training.inputs.opening import open_data
from pixart_jax.training.loop import train_and_evaluate
from pixart_jax.training.plan import open_plan
from tools import extract_features, inspect_data, teacher_pairs

PAIRS = ["--num-pairs", "6", "--batch-size", "2", "--pairs-per-shard", "4", "--num-steps", "2", "--seed", "3"]


def words_config(root, num_steps, **settings):
    config = tiny_config(root / "data")
    config.sample.every = 0
    config.train.update({"num_steps": num_steps, "log_every": 1, "checkpoint_every": 2, "ema_decay": 0.5})
    config.update_from_flattened_dict(settings)
    return config


def student_config(root, num_steps, **settings):
    config = words_config(root, num_steps, init_from=str(root / "teacher"))
    config.objective.update({"kind": "distribution_matching", "guidance": 2.0, "distance": "l2"})
    config.objective.update({"fake_updates": 2, "fake_learning_rate": 1e-3})
    config.data.pair_source = str(root / "pairs")
    config.optimizer.warmup_steps = 0
    config.sample.update({"sampler": "dmd", "num_steps": 1, "every": num_steps, "num_images": 2})
    config.update_from_flattened_dict(settings)
    return config


def draw_pairs(root, out, *more):
    arguments = ["--checkpoint", str(root / "teacher"), "--source", str(root / "data"), "--out", str(out)]
    return teacher_pairs.main([*arguments, *PAIRS, *more])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """data/, the run teacher/ on it, and pairs/ that it drew."""
    root = tmp_path_factory.mktemp("matching")
    write_words_data(root / "data", align_dim=6)
    train_and_evaluate(words_config(root, 2), str(root / "teacher"))
    assert draw_pairs(root, root / "pairs") == 0
    return root


def test_pairs_are_what_the_teacher_draws_of_their_noise(root):
    pairs, pipeline = ShardReader(root / "pairs"), TextToImage.from_checkpoint(root / "teacher")
    assert len(pairs) == 6 and len(pairs.manifest.shards) == 2 and pairs.manifest.latent_kind == "drawn"
    assert (pairs.manifest.align, pairs.manifest.align_dim) == ("none", 0)  # As opposed to the data's.
    assert [pair.caption for pair in (pairs[i] for i in range(6))] == [*CAPTIONS, *CAPTIONS[:2]]
    noises = np.stack([pairs[i].noise for i in range(6)]).astype(np.float32)
    assert len(np.unique(noises)) > 0.9 * noises.size and noises.std() == pytest.approx(1, abs=0.2)
    pair = pairs[4]
    request = Request(pair.caption, noise=noises[4:5], num_steps=2)
    drawn = pipeline.draw(request)[0].astype(int)
    (decoded,) = pipeline.parts.decode_latents(pair.latent_mean[None].astype(np.float32))
    # Stored in half precision, of a model that has learnt nothing, whose latents are large.
    assert np.abs(drawn - np.clip(127.5 * (decoded + 1), 0, 255)).mean() < 0.5 < drawn.std()


def test_pairs_have_the_encoders_of_their_captions(root, tmp_path, capsys):
    """So that all that reads data sets reads them, though nothing but the set is at hand."""
    source, pairs, alone = root / "data", root / "pairs", tmp_path / "pairs"
    files = [LINEAR_AUTOENCODER_FILE, *WORD_ENCODER_FILES]
    assert [(pairs / file).read_bytes() for file in files] == [(source / file).read_bytes() for file in files]
    shutil.copytree(pairs, alone)
    assert inspect_data.main([str(alone)]) == 0
    assert "decoded by the set's linear autoencoder" in capsys.readouterr().out


def test_a_teacher_that_holds_no_null_caption_has_its_encoders(weights, tmp_path):
    """As a Σ pipeline of diffusers, converted."""
    (tmp_path / "pictures").mkdir()
    for name, caption in (("0", "a red cat on a mat"), ("1", "small green circle")):
        picture = np.random.default_rng(int(name)).integers(0, 256, (256, 256, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{name}.png")
        (tmp_path / "pictures" / f"{name}.txt").write_text(caption)
    source = ["--source", str(tmp_path / "pictures"), "--checkpoint", str(weights), "--resolution", "256"]
    assert extract_features.main([*source, "--out", str(tmp_path / "data")]) == 0
    of = ["--checkpoint", str(weights), "--source", str(tmp_path / "data"), "--out", str(tmp_path / "pairs")]
    assert teacher_pairs.main([*of, "--num-pairs", "2", "--num-steps", "2", "--batch-size", "2"]) == 0
    pipeline, pair = TextToImage.from_checkpoint(weights), ShardReader(tmp_path / "pairs")[1]
    assert not pipeline.parts.has_null_text
    request = Request(pair.caption, noise=pair.noise[None].astype(np.float32), num_steps=2)
    drawn = pipeline.draw(request)[0].astype(int)
    (decoded,) = pipeline.parts.decode_latents(pair.latent_mean[None].astype(np.float32))
    assert np.abs(drawn - np.clip(127.5 * (decoded + 1), 0, 255)).mean() < 0.5 < drawn.std()


def test_processes_share_the_pairs(root, tmp_path, capsys):
    assert draw_pairs(root, tmp_path / "pairs", "--process-index", "1", "--process-count", "2") == 0
    assert "complete when the others are done" in capsys.readouterr().out
    assert draw_pairs(root, tmp_path / "pairs", "--seed", "4", "--process-count", "2") == 2
    assert "seed: 3, now 4" in capsys.readouterr().err
    assert draw_pairs(root, tmp_path / "pairs", "--process-count", "2") == 0
    for shard in ShardReader(root / "pairs").manifest.shards:
        assert (tmp_path / "pairs" / shard.file).read_bytes() == (root / "pairs" / shard.file).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--num-pairs", "0"], "--num-pairs must be at least 1"),
        (["--process-index", "2"], "--process-index 2 of --process-count 1"),
        (["--sampler", "lcm", "--num-steps", "51"], "--num-steps = 51"),
        (["--source", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_drawn_is_refused_first(root, tmp_path, capsys, arguments, said):
    assert draw_pairs(root, tmp_path / "pairs", *arguments) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_half_of_each_batch_is_pairs(root):
    config = student_config(root, 2)
    batch = next(open_data(config, batch_spec(config)).batches)
    assert batch["is_pair"].tolist() == 4 * [False, True]
    assert not batch["noise"][::2].any() and batch["noise"][1::2].all()
    pairs = ShardReader(root / "pairs")
    known = [pairs[i].latent_mean.astype(np.float32).sum() * pairs.manifest.latent_scale for i in range(6)]
    assert all(np.isclose(row.sum(), known, atol=1e-3).any() for row in batch["tokens"][1::2])
    # Two processes read the same global batch.
    shares = [open_data(config, batch_spec(config, 2), process_index=i, process_count=2).batches for i in range(2)]
    for name, rows in zip(batch, zip(*(next(share).values() for share in shares), strict=True), strict=True):
        np.testing.assert_array_equal(np.concatenate(rows), batch[name])


@pytest.fixture(scope="module")
def whole(root):
    return train_and_evaluate(student_config(root, 4), str(root / "whole")), root / "whole"


def test_it_goes_on_as_if_never_stopped(root, whole, tmp_path, compilations):
    train_and_evaluate(student_config(root, 3, **{"sample.every": 0}), str(tmp_path / "resumed"))
    # Of the turns neither is compiled by itself.
    assert compilations.count("jit(train_step)") == 1
    resumed = train_and_evaluate(student_config(root, 4), str(tmp_path / "resumed"))
    for one, other in zip(jax.tree.leaves(whole[0]), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(one, other)
    rows = [read_metrics(folder) for folder in (whole[1], tmp_path / "resumed")]
    assert rows[0] == rows[1] and all(row["fake"] > 0 for row in rows[0])
    assert [row["regression"] > 0 for row in rows[0]] == [True, False] * 2 and rows[0][2]["dm"] > 0


def test_sigkill(root, tmp_path):
    steps = 40
    config = tmp_path / "config.py"
    settings = student_config(root, steps, **{"sample.every": 0, "train.checkpoint_every": 5})
    config.write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({settings.to_dict()!r})\n"
    )
    clean, workdir = tmp_path / "clean", tmp_path / "run"
    finish(start(config, clean), clean)
    process = start(config, workdir)
    assert wait_for(lambda: last_saved(workdir) >= 10, process)
    process.kill()
    finish(process, workdir, -signal.SIGKILL)
    assert "going on from step" in finish(start(config, workdir), workdir)
    jax.tree.map(np.testing.assert_array_equal, load_arrays(workdir, steps), load_arrays(clean, steps))
    assert read_metrics(workdir) == read_metrics(clean)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Settings with which pictures are compared."""
    folder = lpips_files(tmp_path_factory)
    paths = {f"objective.lpips_{name}": str(folder / file) for name, file in (("vgg", VGG), ("heads", HEADS))}
    return {"objective.distance": "lpips", **paths, "sample.every": 0}


def test_networks_that_compare_pictures_are_only_held(root, compared, tmp_path):
    # Of a weight beside which all that does not come through the decoder is nothing.
    more = {"objective.regression_weight": 1e6, "objective.fake_updates": 1, "data.batch_size": 2}
    config = student_config(root, 1, **compared, **more)
    with open_plan(config, tmp_path / "run", Ending()) as plan:
        assert set(plan.program.frozen) == {"teacher", "lpips", "decoder"}
    state = train_and_evaluate(config, str(tmp_path / "run"))
    (row,) = read_metrics(tmp_path / "run")
    assert 0 < row["regression"] < 5 and row["grad_norm"] > 1e3
    progress = Checkpoints(tmp_path / "run", read_only=True).directory / "1" / "progress" / "metadata"
    assert "conv5_3" not in progress.read_text() and not {"lpips", "decoder"} & set(state.params)
    heads = torch.load(compared["objective.lpips_heads"])
    heads["lin0.model.1.weight"] += 1
    torch.save(heads, tmp_path / "others.pth")
    others = {**compared, "objective.lpips_heads": str(tmp_path / "others.pth")}
    with pytest.raises(InputError, match="the weights that it began with, those of LPIPS"):
        train_and_evaluate(student_config(root, 2, **others, **more), str(tmp_path / "run"))


def test_the_student_alone_is_averaged_exported_and_drawn(root, whole):
    state, workdir = whole
    assert FAKE in state.params and FAKE not in state.ema_params
    saved = Checkpoints(workdir, read_only=True)
    progress = json.loads((saved.directory / "4" / "progress" / "metadata").read_text())
    assert "teacher" not in json.dumps(progress["arrays"]) and f"{FAKE}/t_block" in json.dumps(progress["arrays"])
    shapes = parameter_shapes(build_model(student_config(root, 4)))
    for ema, params in ((True, state.ema_params), (False, state.params)):
        weights = load_run(workdir, ema=ema)
        assert set(weights.paths) == set(shapes) and weights.stored.sampler == "dmd"
        np.testing.assert_array_equal(weights.read("x_embedder/kernel"), params["x_embedder"]["kernel"])
        pipeline = TextToImage.from_checkpoint(workdir, ema=ema)
        manner = pipeline.manner(Request("x"))
        assert (manner.sampler, manner.num_steps, manner.guidance) == ("dmd", 1, "none")
        assert pipeline("red square").std() > 0
    assert (workdir / "samples.png").exists()


def test_what_cannot_be_matched_is_refused(root):
    for settings, said in [
        ({"init_from": ""}, "config.init_from"),
        ({"adapter.kind": "lora"}, "config.adapter.kind"),
        ({"sample.sampler": "lcm"}, "config.sample.sampler"),
        ({"sample.num_steps": 2}, "config.sample.num_steps"),
        ({"objective.kind": "consistency", "sample.sampler": "lcm"}, "config.data.pair_source"),
        ({"data.prior_source": "x"}, "config.data.prior_source"),
    ]:
        with pytest.raises(InputError, match=said):
            check_config(student_config(root, 2, **settings))
    check_config(student_config(root, 2, **{"train.min_snr_gamma": 5.0}))
    for settings, said in [
        ({"data.pair_source": str(root / "data")}, "config.data.pair_source .* holds pictures, but no noise"),
        (
            {"data.batch_size": 3},
            "config.data.batch_size .* half of each process's batch is of config.data.pair_source",
        ),
        ({"data.source": "synthetic"}, "config.data.pair_source .* synthetic data are of one kind"),
    ]:
        config = student_config(root, 2, **settings)
        with pytest.raises(InputError, match=said):
            open_data(config, batch_spec(config))


def test_pictures_that_cannot_be_compared_are_refused(root, compared, tmp_path):
    config = student_config(root, 2, **compared)
    with pytest.raises(InputError, match="only a training run opens the networks"):
        build_objective(config, build_adapter(config, build_model(config)))
    manifest = json.loads((root / "pairs" / "manifest.json").read_text())
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "manifest.json").write_text(
        json.dumps(manifest | {"bucket_histogram": {"16x64": 2, "32x32": 4}})
    )
    for settings, said in [
        ({"data.pair_source": ""}, "config.objective.distance"),
        ({"objective.lpips_vgg": ""}, "config.objective.lpips_vgg"),
        ({"objective.distance": "l2"}, "config.objective.lpips_vgg .* only the distance 'lpips' reads it"),
        ({"objective.lpips_vgg": "gs://x"}, "config.objective.lpips_vgg"),
        ({"objective.lpips_heads": str(tmp_path)}, "no such file; name lpips/weights/v0.1/vgg.pth"),
        ({"data.pair_source": str(tmp_path / "mixed")}, "config.data.pair_source .* are of 16x64, 32x32"),
    ]:
        config = student_config(root, 2, **compared | settings)
        with pytest.raises(InputError, match=said):
            check_config(config)
            resolve_paths(config)
            open_distance(config, make_mesh())
