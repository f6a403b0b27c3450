"""What the benchmarks refuse, before they measure anything."""

import pytest

from tools.bench.__main__ import main


@pytest.mark.parametrize(
    "options,message",
    [
        (["--what=train", "--rounds=0"], "--rounds=0"),
        (["--what=forward", "--peer=fast"], "--peer=fast"),
        (["--what=sample", "--batch-sizes=0"], "--batch-sizes=0"),
        (["--what=scaling", "--devices=2,1"], "--devices=2,1"),
        (["--what=scaling", "--peer=eager"], "--peer=eager: devices are compared with one another"),
        (["--what=checkpoint", "--peer=eager,compile"], "--peer=compile: saving has nothing to compile"),
        (["--what=sample", "--shortcuts", "--peer=eager"], "--peer=eager: --shortcuts are compared with"),
        (["--what=sample", "--shortcuts", "--vae=tiny"], "--vae=tiny: --shortcuts draw latents"),
        (["--what=train", "--config.data.batch_size=-1"], "config.data.batch_size"),
    ],
)
def test_options_that_cannot_be(options, message, capsys):
    assert main([*options, "--config=quickstart"]) == 2
    assert message in capsys.readouterr().err


def test_attention_refuses_what_it_does_not_know(capsys):
    assert main(["--what=attention", "--resolutions=100"]) == 2
    assert main(["--what=attention", "--config.model.depth=2"]) == 2
    assert "--resolutions=100" in capsys.readouterr().err


def test_encoders_have_no_peer(capsys):
    assert main(["--what=encoders", "--size=tiny", "--peer=eager"]) == 2
    assert "--peer=eager: encoders are compared with none; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["data", "convert", "checkpoint"])
def test_a_directory_that_cannot_be_written_to_is_refused(what, tmp_path, capsys):
    (tmp_path / "file").touch()
    options = ["--config=quickstart"] if what == "checkpoint" else []
    assert main([f"--what={what}", f"--directory={tmp_path / 'file' / 'deeper'}", *options]) == 2
    assert f"--directory {tmp_path}/file/deeper: {tmp_path}/file is no folder; name another" in capsys.readouterr().err
