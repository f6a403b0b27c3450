"""Damaged weights, a full disk and a kill -9: one clear error and nothing left behind, from the command line's face."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest
import safetensors.torch
import torch
from conversion.test_diffusers import SIGMA, make_transformer
from conversion.test_encoders import make_pipeline
from conversion.test_sources import Payload
from golden_cases import GOLDEN
from models.t5_cases import TINY, reference_model

from tools.convert import main

ROOT = pathlib.Path(__file__).parents[2]
# What a .pth does not tell.
HINTS = ["--num-heads=2", "--family=sigma"]
T5, VAE, TRANSFORMER = "model.safetensors", "diffusion_pytorch_model.safetensors", "transformer"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One of each, undamaged: a pipeline, whose T5 is in several files, a T5 in one, and transformers in both."""
    folder = tmp_path_factory.mktemp("whole")
    make_pipeline(folder / "pipeline")
    shutil.copytree(folder / "pipeline/vae", folder / "vae")
    shutil.copytree(folder / "pipeline/text_encoder", folder / "sharded_t5")
    reference_model(TINY).save_pretrained(folder / "t5")
    shutil.copytree(folder / "pipeline/transformer", folder / "transformer")
    make_transformer(**SIGMA).save_pretrained(folder / "sharded_transformer", max_shard_size="300KB")
    assert (folder / "sharded_transformer/diffusion_pytorch_model.safetensors.index.json").exists()
    shutil.copyfile(GOLDEN / "sigma_plain.pth", folder / "x.pth")
    return folder


@pytest.fixture
def damaged(whole, tmp_path):
    """Makes a copy of one of them that can be damaged."""

    def copy(name):
        top = pathlib.Path(name).parts[0]
        if (whole / top).is_dir():
            shutil.copytree(whole / top, tmp_path / top, symlinks=True)
        else:
            shutil.copyfile(whole / top, tmp_path / top)
        return tmp_path / name

    return copy


def options(source):
    return HINTS if source.suffix == ".pth" else ["--family=sigma"] if "transformer" in source.name else []


def check_refused(source, message, capsys):
    """That one error says what `message` matches, and that only the source is there."""
    before = sorted(source.parent.rglob("*"))
    capsys.readouterr()
    assert main([str(source), str(source.parent / "new/parents/target"), *options(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("error: ") == 1, error
    assert re.search(message, error), error
    assert sorted(source.parent.rglob("*")) == before


def cut(name, at):
    """The first `at` bytes of a file, or all but the last; name "" is the source itself."""

    def change(source):
        path = source / name
        path.write_bytes(path.read_bytes()[:at])

    return change


def text(name, content):
    return lambda source: (source / name).write_bytes(content)


def folder(name):
    def change(source):
        (source / name).unlink(missing_ok=True)
        (source / name).mkdir()

    return change


def arrays(name, edit):
    """The arrays of a safetensors file, changed by what `edit` returns: name to tensor, or None to leave it out."""

    def change(source):
        found = safetensors.torch.load_file(source / name)
        found |= edit(found)
        kept = {key: tensor for key, tensor in found.items() if tensor is not None}
        safetensors.torch.save_file(kept, source / name, metadata={"format": "pt"})

    return change


def configured(name, **changes):
    def change(source):
        path = source / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def as_torch(name, value=None, **settings):
    """PyTorch's file in place of the safetensors: of their arrays, or of what `value` makes of them."""

    def change(source):
        found = {}
        for path in source.glob("*.safetensors*"):
            if path.suffix == ".safetensors":
                found |= safetensors.torch.load_file(path)
            path.unlink()
        torch.save(value(found) if value else found, source / name, **settings)

    return change


def extra(_):
    return {"mystery.weight": torch.zeros(3)}


def misshapen(key):
    return lambda found: {key: torch.zeros(*(size + 1 for size in found[key].shape))}


def one_less(found):
    return {min(found): None}


UNET = "UNet2DConditionModel"
NORM, QUANT, PROJ = "encoder.final_layer_norm.weight", "quant_conv.weight", "proj_out.bias"
SHARD = "model-00003-of-00007.safetensors"
LAST_SHARD = "diffusion_pytorch_model-00004-of-00004.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "name,change,message",
    [
        # Files cut short.
        ("t5", cut(T5, 5), r"t5/model\.safetensors is damaged, or no safetensors file: .*header too small"),
        ("t5", cut(T5, 100), r"t5/model\.safetensors is damaged, or no safetensors file: .*header length"),
        ("t5", cut(T5, -4), r"t5/model\.safetensors is damaged, or no safetensors file: .*not fully covered"),
        ("t5", cut(T5, 0), r"t5/model\.safetensors is damaged, or no safetensors file: "),
        ("sharded_t5", cut(SHARD, -4), rf"sharded_t5/{SHARD} is damaged, or no safetensors file: .*not fully covered"),
        ("vae", cut(VAE, 100), r"vae/diffusion_pytorch_model\.safetensors is damaged"),
        ("vae", cut(VAE, -4), r"vae/diffusion_pytorch_model\.safetensors is damaged"),
        ("transformer", cut(VAE, 100), r"transformer/diffusion_pytorch_model\.safetensors is damaged"),
        ("sharded_transformer", cut(LAST_SHARD, -4), rf"sharded_transformer/{LAST_SHARD} is damaged"),
        ("pipeline", cut(f"text_encoder/{SHARD}", -4), rf"(?s)text_encoder/{SHARD} is damaged.*\nwith --no-encoders"),
        ("pipeline", cut(f"vae/{VAE}", 100), r"(?s)vae/diffusion_pytorch_model\.safetensors is damaged.*--no-encoders"),
        ("pipeline", cut(f"transformer/{VAE}", -4), r"transformer/diffusion_pytorch_model\.safetensors is damaged"),
        ("x.pth", cut("", -3000), r"x\.pth is damaged, or no PyTorch file"),
        ("x.pth", cut("", 3000), r"x\.pth is damaged, or no PyTorch file"),
        ("x.pth", cut("", 0), r"x\.pth is damaged, or no PyTorch file"),
        # Something else than a file of that kind.
        ("x.pth", text("", b"<html>please log in</html>"), r"x\.pth is (refused|damaged)"),
        ("x.pth", folder(""), r"x\.pth is neither a model of ours"),
        ("t5", text(T5, b"version https://git-lfs\noid sha256:1\nsize 2\n"), r"t5/model\.safetensors is damaged"),
        ("t5", folder(T5), r"t5/model\.safetensors is damaged, or no safetensors file"),
        ("t5", folder("config.json"), r"t5 is neither a model of ours"),
        ("vae", folder(VAE), r"vae/diffusion_pytorch_model\.safetensors is damaged"),
        ("transformer", folder("config.json"), r"transformer/config\.json is damaged or cannot be read: .*directory"),
        ("sharded_t5", folder(INDEX), rf"sharded_t5/{INDEX} is damaged or cannot be read: .*directory"),
        # JSON.
        ("t5", text("config.json", b"{"), r"t5/config\.json is damaged or cannot be read"),
        ("t5", text("config.json", b"[]"), r"t5/config\.json is damaged: it should hold a JSON object"),
        ("vae", text("config.json", b""), r"vae/config\.json is damaged or cannot be read"),
        ("vae", text("config.json", b"\xff\xfe{}"), r"vae/config\.json is damaged or cannot be read"),
        ("transformer", text("config.json", b'"x"'), r"transformer/config\.json is damaged: it should hold a JSON"),
        ("sharded_t5", text(INDEX, b"[]"), rf"sharded_t5/{INDEX} is damaged: it should hold a JSON object"),
        ("pipeline", text("model_index.json", b"{"), r"pipeline/model_index\.json is damaged or cannot be read"),
        ("pipeline", text("model_index.json", b"[]"), r"pipeline/model_index\.json is damaged: it should hold a JSON"),
        # Arrays that do not fit.
        ("t5", arrays(T5, extra), r"t5: the checkpoint does not fit the model:\n  no parameter takes: mystery\.weight"),
        ("t5", arrays(T5, misshapen(NORM)), r"t5: .*:\n  wrong shape: final_layer_norm/scale is \(21,\), the"),
        ("vae", arrays(VAE, extra), r"vae: .*:\n  no parameter takes: mystery\.weight"),
        ("vae", arrays(VAE, misshapen(QUANT)), r"vae: .*:\n  wrong shape: quant_conv/kernel is \("),
        ("transformer", arrays(VAE, extra), r"transformer: .*:\n  no parameter takes: mystery\.weight"),
        ("transformer", arrays(VAE, misshapen(PROJ)), r"transformer: .*:\n  wrong shape: final_layer/linear/bias is"),
        ("sharded_transformer", arrays(LAST_SHARD, one_less), r"former: .*:\n  (incomplete|not filled): "),
        ("pipeline", arrays(f"vae/{VAE}", extra), r"pipeline/vae: .*:\n  no parameter takes: mystery\.weight"),
        # Other architectures.
        ("t5", configured("config.json", model_type="bert"), r"t5 is neither a model of ours"),
        ("vae", configured("config.json", _class_name=UNET), r"vae/.* holds neither a PixArt nor a DiT"),
        ("transformer", configured("config.json", _class_name=UNET), rf"transformer is a {UNET}, not"),
        ("pipeline", configured("text_encoder/config.json", model_type="bert"), r"text_encoder/config.json: not the"),
        ("pipeline", configured("vae/config.json", _class_name="VQModel"), r"pipeline/vae: .*VQModel' is not"),
    ],
)  # fmt: skip
def test_damaged(name, change, message, damaged, capsys):
    source = damaged(name)
    change(source)
    check_refused(source, message, capsys)


def every(convert):
    return lambda found: {key: convert(tensor) for key, tensor in found.items()}


def no_weights_but_a_folder(source):
    (source / T5).unlink()
    (source / "pytorch_model.bin").mkdir()


FP8 = every(lambda tensor: tensor.to(torch.float8_e4m3fn))
INT8 = every(lambda tensor: tensor.to(torch.int8))


@pytest.mark.parametrize(
    "name,change,message",
    [
        # Quantised.
        ("t5", arrays(T5, FP8), r"t5/model\.safetensors: .*F8_E4M3"),
        ("t5", arrays(T5, INT8), r"t5/model\.safetensors: .*I8"),
        ("t5", as_torch("pytorch_model.bin", FP8), r"t5/pytorch_model\.bin: .*float8_e4m3fn"),
        ("t5", as_torch("pytorch_model.bin", INT8), r"t5/pytorch_model\.bin: .*int8"),
        ("t5", as_torch("pytorch_model.bin", every(torch.Tensor.to_sparse)), r"t5/pytorch_model\.bin: .*sparse"),
        # Not what their files should hold.
        ("t5", as_torch("pytorch_model.bin", lambda _: {0: torch.zeros(3)}), r"pytorch_model\.bin holds no state dict"),
        ("t5", no_weights_but_a_folder, r"t5/pytorch_model\.bin cannot be read: Is a directory"),
        ("t5", configured("config.json", model_type=["t5"]), r"t5 is neither a model of ours"),
        ("sharded_t5", configured(INDEX, weight_map=["x"]), rf"sharded_t5/{INDEX} is damaged: weight_map"),
        ("transformer", configured("config.json", interpolation_scale="two"), r"\.json: interpolation_scale = 'two'"),
        ("transformer", configured("config.json", interpolation_scale=-1), r"config\.json: interpolation_scale = -1"),
        ("transformer", configured("config.json", caption_channels="x"), r"config\.json: caption_channels = 'x'"),
        ("transformer", configured("config.json", out_channels="x"), r"config\.json: out_channels = 'x'"),
        ("pipeline/transformer", configured("../vae/config.json", scaling_factor="x"), r"\.json: scaling_factor = 'x'"),
    ],
)  # fmt: skip
def test_contents_that_are_not_weights(name, change, message, damaged, capsys):
    source = damaged(name)
    change(source)
    check_refused(source, message, capsys)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["t5", "vae", "transformer"])
def test_a_pickle_in_a_folder_does_not_run(name, zipped, damaged, tmp_path, capsys):
    source, ran = damaged(name), tmp_path / "ran"
    file = "pytorch_model.bin" if name == "t5" else "diffusion_pytorch_model.bin"
    as_torch(file, lambda found: found | {"mystery": Payload(ran)}, _use_new_zipfile_serialization=zipped)(source)
    check_refused(source, rf"{name}/{file} is refused, because it asks to run posix.mkdir", capsys)
    assert not ran.exists()


@pytest.mark.parametrize("name", ["sharded_t5", "sharded_transformer"])
def test_several_pytorch_files(name, damaged, tmp_path, capsys):
    """The form of PixArt-α's own T5; one that is not there is named."""
    source, stem = damaged(name), "pytorch_model" if name == "sharded_t5" else "diffusion_pytorch_model"
    weight_map = {}
    for path in sorted(source.glob("*-of-*.safetensors")):
        torch.save(found := safetensors.torch.load_file(path), source / f"{path.stem}.bin")
        weight_map |= dict.fromkeys(found, f"{path.stem}.bin")
    for path in source.glob("*.safetensors*"):
        path.unlink()
    (source / f"{stem}.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert main([str(source), str(tmp_path / "target"), *options(source)]) == 0
    (source / min(weight_map.values())).unlink()
    shutil.rmtree(tmp_path / "target")
    check_refused(source, rf"{stem}\.bin\.index\.json names files that are not there: .*-00001-of", capsys)


# Before the command that follows, what a process may write to one file at most.
LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def start(source, target, *more, limit=None):
    """The tool in a process of its own."""
    before = [] if limit is None else ["-c", LIMITED, str(limit)]
    return subprocess.Popen(
        [sys.executable, *before, "-m", "tools.convert", str(source), str(target), *options(source), *more],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "name,to,limit,cause",
    [
        ("transformer", "orbax", 100_000, "File too large"),
        ("transformer", "pixart", 100_000, "File too large"),
        ("transformer", "diffusers", 100_000, "File too large"),
        ("pipeline", "orbax", 20_000, "File too large"),
    ],
)
def test_a_full_disk(name, to, limit, cause, whole, tmp_path):
    """A limit to the size of files behaves as one."""
    process = start(whole / name, tmp_path / "new/parents/target", f"--to={to}", limit=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    # Orbax and TensorStore log what they have met, too, from threads of their own and so in the middle of our line.
    line = rf"error: {re.escape(str(tmp_path))}/new/parents/target cannot be written: .*{cause}"
    assert len(re.findall(line, errors)) == 1, errors
    assert not os.listdir(tmp_path)


def test_a_killed_conversion(tmp_path):
    """Leaves no DST, and does not stand in the way of the next."""
    config = {"num_attention_heads": 4, "attention_head_dim": 64, "num_layers": 12, "cross_attention_dim": 256}
    make_transformer(**SIGMA | config).save_pretrained(tmp_path / "transformer")
    size = (tmp_path / "transformer/diffusion_pytorch_model.safetensors").stat().st_size
    target, incomplete = tmp_path / "models/target", tmp_path / "models/.target.incomplete"
    process = start(tmp_path / "transformer", target)
    while not incomplete.exists() and process.poll() is None:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -9, errors
    assert os.listdir(target.parent) == [incomplete.name]
    assert main([str(tmp_path / "transformer"), str(target), "--family=sigma"]) == 0
    assert os.listdir(target.parent) == [target.name] and sorted(os.listdir(target)) == ["model.json", "params"]
    assert sum(path.stat().st_size for path in target.rglob("*") if path.is_file()) > size > 40e6


@pytest.mark.parametrize(
    ("source", "file", "index"),
    [
        ("sharded_transformer", "diffusion_pytorch_model.safetensors", None),
        ("transformer", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
        (
            "pipeline/transformer",
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        ),
        ("sharded_t5", "model.safetensors", None),
        ("t5", "model.safetensors", "model.safetensors.index.json"),
        ("vae", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_weights_that_a_folder_holds_twice_are_refused(source, file, index, damaged, capsys):
    """A model saved again in another form: diffusers and transformers differ in which they take."""
    folder = damaged(source)
    if index:
        (folder / index).write_text('{"weight_map": {"a": "a-00001-of-00001.safetensors"}}', encoding="utf-8")
    else:
        shutil.copyfile(next(folder.glob("*-00001-of-*.safetensors")), folder / file)
    check_refused(folder, rf"holds weights twice, {file} and the shards of {file}\.index\.json", capsys)
