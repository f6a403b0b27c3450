"""Real pictures for the tests, offline: crops of the photographs that scikit-image and scikit-learn bring along.

python tests/photographs.py FOLDER 3000   # for a longer look at tools.extract_features
"""

import pathlib
import sys

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image

# What is in them, for captions; the others of scikit-image are test patterns.
PHOTOGRAPHS = {
    "astronaut.png": "an astronaut in an orange suit before a flag",
    "brick.png": "a brick wall",
    "camera.png": "a man with a camera on a tripod",
    "chelsea.png": "a tabby cat",
    "coffee.png": "a cup of coffee on a wooden table",
    "coins.png": "old Greek coins",
    "grass.png": "grass from above",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "many galaxies in deep space",
    "ihc.png": "tissue under a microscope",
    "moon.png": "the surface of the moon",
    "motorcycle_left.png": "a motorcycle in a workshop",
    "retina.jpg": "the retina of an eye",
    "rocket.jpg": "a rocket on its launch pad",
    "china.jpg": "a Chinese temple",
    "flower.jpg": "a pink flower",
}


def crop_photographs(folder: pathlib.Path, count: int, seed: int = 0) -> None:
    """Writes `count` crops with captions: ratios from 1:4 to 4:1, one in four a PNG, one in eight lying on its side."""
    packages = (skimage, "data"), (sklearn.datasets, "images")
    folders = [pathlib.Path(package.__file__).parent / folder for package, folder in packages]
    photographs = {
        caption: Image.open(next(path / name for path in folders if (path / name).exists())).convert("RGB")
        for name, caption in PHOTOGRAPHS.items()
    }
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        caption = list(photographs)[i % len(photographs)]
        photograph = photographs[caption]
        ratio = 4 ** rng.uniform(-1, 1)  # height / width
        largest = min(photograph.width, photograph.height / ratio)
        width = rng.uniform(0.6, 1) * largest
        size = (max(64, round(width)), max(64, round(width * ratio)))
        left, top = (rng.uniform(0, max(0, side - length)) for side, length in zip(photograph.size, size, strict=True))
        crop = photograph.crop((int(left), int(top), int(left) + size[0], int(top) + size[1]))
        exif = Image.Exif()
        if i % 8 == 7:
            crop, exif[0x0112] = crop.transpose(Image.Transpose.ROTATE_90), 6
        crop.save(folder / f"{i:05d}.{'png' if i % 4 == 3 else 'jpg'}", exif=exif)
        view = "tall" if ratio > 1.5 else "wide" if ratio < 0.67 else "square"
        (folder / f"{i:05d}.txt").write_text(f"A {view} photograph of {caption}.\n")


if __name__ == "__main__":
    crop_photographs(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
