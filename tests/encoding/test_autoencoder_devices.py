"""Several devices decode and encode together what one does: whole pictures, strips of one, tiles of large ones; and
look at pictures."""

from tiny_run import ROOT, run_python


def test_eight_devices_make_what_one_makes(weights):
    printed = run_python(ROOT / "tests" / "autoencode_on_devices.py", weights / "vae", devices=8)
    assert printed.splitlines() == [
        "a picture in eight strips",
        "three pictures in two strips",
        "a picture that eight do not divide",
        "nine pictures whole",
        "eighteen tiles of two pictures",
        "nine tiles of one",
        "tiles to latents",
        "features of eleven pictures",
    ]
