"""Every config of configs/: its docstring, its settings, and the stage that it starts from."""

import importlib
import pathlib
import re
import shlex

import pytest
from config_runs import PATHS, ROOT, read

from pixart_jax.config import check_config, default_config, flatten, read_config_file
from pixart_jax.config.declaration import ANY
from pixart_jax.config.defaults import SETTINGS
from pixart_jax.conversion.runs import describe_run
from pixart_jax.data.synthetic import SyntheticSamples
from pixart_jax.errors import InputError
from pixart_jax.training.advice import short_run
from pixart_jax.training.inputs.base import batch_spec
from pixart_jax.warm_start.transitions import Choices, plan_transition
from tools.extract_features import make_parser

SMALL = {"finetune_small_alpha", "finetune_small_sigma"}


def docstring(name):
    # Read, not imported: as it is on disk, but with its continued lines joined.
    return re.sub(r"\\\n\s*", "", PATHS[name].read_text().split('"""')[1])


def commands(text):
    """(module, arguments) of every command in a docstring."""
    for line in text.splitlines():
        if match := re.search(r"python -m (\S+) (.*)", line):
            yield match[1], shlex.split(match[2])


def test_there_is_a_config_for_every_stage():
    stages = {"stage1_256", "stage2_256", "stage3_256", "stage3_512", "stage3_1024"}
    sigma = {"sigma_256", "sigma_512", "sigma_1024", "sigma_2k", "sigma_4k"}
    assert stages | sigma | {"finetune_alpha_1024", "finetune_sigma_1024", "quickstart"} | SMALL <= PATHS.keys()


@pytest.mark.parametrize("name", PATHS)
def test_docstring_says_what_to_run_and_what_it_costs(name):
    text, config = docstring(name), read_config_file(str(PATHS[name]))
    wanted = ("Data", "Run", "Cost", "Expected")
    if not config.model.hidden_size:
        wanted += ("Hardware", "Batch")
        batch = re.search(r"^Batch: ([\d,]+)", text, re.M)[1]
        assert int(batch.replace(",", "")) == config.data.batch_size
        steps = re.search(r"([\d,]+) steps", text)[1]
        assert int(steps.replace(",", "")) == config.train.num_steps
    for field in wanted:
        assert re.search(rf"^{field}: ", text, re.M), f"{name}: no line {field}:"
    run = next(arguments for module, arguments in commands(text) if module == "pixart_jax.main")
    assert run[:2] == [f"--config=configs/{name}.py", f"--workdir=runs/{name}"]


@pytest.mark.parametrize("name", [*PATHS, "stages"])
def test_commands_name_what_exists(name):
    text = docstring(name) if name in PATHS else (ROOT / "pixart_jax" / "config" / "stages.py").read_text()
    known = flatten(default_config())
    for key in re.findall(r"--config\.([\w.]+)=", text):
        assert key in known, key
    for module, arguments in commands(text):
        assert importlib.util.find_spec(module), module
        if module == "tools.extract_features":
            args = make_parser().parse_args(arguments)
            source = read_config_file(str(PATHS[name])).data.source
            resolution = read_config_file(str(PATHS[name])).model.resolution
            assert resolution in args.resolution
            several = len(args.resolution) > 1
            assert pathlib.Path(source) == (args.out / str(resolution) if several else args.out)


@pytest.mark.parametrize("name", PATHS)
def test_settings_are_sound(name):
    config = read_config_file(str(PATHS[name]))
    check_config(config)
    # Chains end at an existing config, or at weights that the docstring converts.
    start = config.init_from
    assert not start or start.removeprefix("runs/") in PATHS or f" {start}" in docstring(name)


@pytest.mark.parametrize("name", PATHS)
def test_no_run_is_too_short_for_its_settings(name):
    assert short_run(read_config_file(str(PATHS[name]))) == []


@pytest.mark.parametrize("name", sorted(SMALL))
def test_tens_of_pictures_are_seen_about_a_hundred_times(name):
    small = read_config_file(str(PATHS[name]))
    assert 50 <= small.train.num_steps * small.data.batch_size / 60 <= 200
    assert small.sample.every <= small.train.num_steps / 5 and small.optimizer.warmup_steps < small.train.num_steps / 10
    # What is not about the number of pictures is as for many.
    large = read_config_file(str(PATHS[name.replace("small_", "") + "_1024"]))
    assert (small.model, small.init_from, small.init) == (large.model, large.init_from, large.init)
    assert small.optimizer.name == large.optimizer.name


def test_position_scales_and_text_are_the_references():
    def of(name):
        model = read_config_file(str(PATHS[name])).model
        return model.position_scale, model.max_text_tokens

    assert [of(f"stage3_{n}") for n in (256, 512, 1024)] == [(1, 120), (1, 120), (2, 120)]
    assert [of(f"sigma_{n}") for n in (256, 512, 1024, "2k", "4k")] == [(s, 300) for s in (0.5, 1, 2, 4, 8)]


@pytest.mark.parametrize("name", [n for n in PATHS if read_config_file(str(PATHS[n])).init_from.startswith("runs/")])
def test_a_stage_can_start_from_the_one_before(name):
    """At full size, by names and shapes."""
    before = read_config_file(str(PATHS[name])).init_from.removeprefix("runs/")
    source, target = describe(before), describe(name)
    choices = read(name, {}).init
    transition = plan_transition(
        source, target, Choices(choices.reparameterize, choices.unconditional, choices.kv_compress, seed=0)
    )
    fresh = {row.path for row in transition.rows if row.action == "made"}
    copied = {row.path for row in transition.rows if row.action == "copied"}
    assert {"x_embedder/kernel", "t_embedder/mlp_0/kernel"} <= copied and any("attn" in path for path in copied)
    if name in ("stage2_256", "mini_stage2"):
        assert any("cross_attn" in path for path in fresh)
    elif name in ("stage3_1024", "fast_alpha_1024", "mini_stage3"):
        assert fresh and all(path.startswith(("csize_embedder", "ar_embedder")) for path in fresh)
    else:
        assert all("y_embedding" in path for path in fresh)


def describe(name):
    config = read(name, {})
    return describe_run(config, SyntheticSamples(batch_spec(config), config.model.resolution).manifest, {})


@pytest.mark.parametrize("key", ["sample.guidance_scale", "model.position_scale", "optimizer.learning_rate"])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), 1e39])
def test_numbers_are_finite(key, number):
    config = default_config()
    section, name = key.split(".")
    config[section][name] = number
    with pytest.raises(InputError, match=rf"config.{key} = .*: must be a finite number that float32 can hold"):
        check_config(config)


# Each with a number below its range and one above.
OUT_OF_RANGE = {
    "model.hidden_size": (-1, 2**31),
    "model.depth": (-1, 2**31),
    "model.num_heads": (-16, 2**40),
    "model.patch_size": (-2, 2**20),
    "model.latent_channels": (0, 2**31),
    "model.resolution": (-256, 2**20),
    "model.text_dim": (0, 2**31),
    "model.max_text_tokens": (0, 2**31),
    "model.num_classes": (-1, 2**31),
    "model.position_scale": (0.0, 1e30),
    "model.kv_compress_ratio": (0, 2**31),
    "model.kv_compress_from": (-1, 2**31),
    "data.batch_size": (0, 2**63),
    "train.num_steps": (0, 2**31),
    "optimizer.eps": (-1.0, 1e-50),
    "data.caption_cleaning": ("", "gamma"),
    "eval.metrics": ("fid", "kid,kid"),
    "eval.num_pictures": (1, 2**31),
    "eval.network": ("", "inception"),
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in OUT_OF_RANGE.items() for value in values])
def test_what_no_model_has_is_refused_by_the_key_s_own_range(key, value):
    config = default_config()
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(InputError, match=rf"config.{key} = {re.escape(repr(value))}: must "):
        check_config(config)


def test_every_number_and_choice_has_a_range():
    without = {key for key, setting in flatten(SETTINGS).items() if setting.range is ANY}
    numbers = {key for key in without if isinstance(flatten(SETTINGS)[key].default, int | float)}
    switches = {key for key in without if isinstance(flatten(SETTINGS)[key].default, bool)}
    assert numbers - switches == {"sample.guidance_scale"}
