"""Prepared TensorFlow datasets as sources of pictures, and every kind of source in threads and other processes."""

import io
import json
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import grain
import numpy as np
import pytest
from picture_cases import fill, one, outcomes, tar
from PIL import Image

from pixart_jax.data.pictures import open_pictures
from pixart_jax.errors import InputError


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    import tensorflow_datasets as tfds

    directory = tmp_path_factory.mktemp("tfds")
    features = tfds.features

    def store(dataset, fields, items):
        # Not `store_as_tfds_dataset`, which needs TensorFlow.
        class Stored(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            name, VERSION = dataset, tfds.core.Version("1.0.0")

            def _info(self):
                fields_of = features.FeaturesDict(fields)
                return tfds.core.DatasetInfo(builder=self, features=fields_of, disable_shuffling=True)

            def _split_generators(self, _):
                return {"train": enumerate(items)}

            def _generate_examples(self):
                raise NotImplementedError

        Stored(data_dir=str(directory), file_format="array_record").download_and_prepare()

    texts = [["a", "b"], ["c", " "], [""], []]
    captions = features.Sequence({"id": features.Scalar(np.int64), "text": features.Text()})
    store(
        "captioned",
        {"image": features.Image(), "captions": captions, "thumbnail": features.Image()},
        [
            {"image": io.BytesIO(jpeg(i)), "thumbnail": jpeg(0), "captions": [{"id": 1, "text": t} for t in text]}
            for i, text in enumerate(texts)
        ],
    )
    label = features.ClassLabel(names=["cat", "dog"])
    store(
        "labelled", {"image": features.Image(), "label": label}, [{"image": jpeg(i), "label": 1 - i} for i in (0, 1, 2)]
    )
    pixels = features.Tensor(shape=(4, 5, 3), dtype=np.uint8)
    store(
        "pixels",
        {"image": pixels, "text": features.Text()},
        [{"image": np.full((4, 5, 3), 9, np.uint8), "text": "nine"}],
    )
    store("plain", {"image": features.Image()}, [{"image": jpeg(0)}])
    store("sound", {"text": features.Text()}, [{"text": "t"}])
    return str(directory)


def jpeg(level):
    file = io.BytesIO()
    Image.fromarray(np.full((9, 7, 3), 20 * level, np.uint8)).save(file, "JPEG")
    return file.getvalue()


def test_tensorflow_datasets(tfds_dir):
    source = open_pictures("tfds:captioned", data_dir=tfds_dir)
    assert list(outcomes(source).values()) == [(("a", 0.5), ("b", 0.5)), one("c"), "caption-empty", "caption-missing"]
    assert source[1].data == jpeg(1) and source[1].key == "captioned/train/000000001"
    source = open_pictures("tfds:labelled:1.0.0:train[:2]", data_dir=tfds_dir)
    assert (source.class_names, list(outcomes(source).values())) == (("cat", "dog"), [1, 0])
    whole = open_pictures("tfds:labelled", data_dir=tfds_dir)
    assert list(outcomes(whole).values()) == [1, 0, "caption-missing"]  # -1 is no label
    assert whole.fingerprint() != source.fingerprint()
    (picture,) = (open_pictures("tfds:pixels", data_dir=tfds_dir)[0],)
    assert picture.captions == one("nine") and (np.asarray(Image.open(io.BytesIO(picture.data))) == 9).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tfds:nowhere", "Dataset nowhere not found. To prepare"),
        ("tfds:captioned:2.0.0", "not found"),
        ("tfds:captioned:test", "Unknown split 'test'"),
        ("tfds:captioned:train[9:]", "incompatible with 4 examples"),
        ("tfds:captioned:train[:0%]", "0 length. To prepare"),
        ("tfds:mnist", "file_format='array_record'"),
        ("tfds:", "write tfds:NAME"),
        ("tfds:a b", "write tfds:NAME"),
        ("tfds:plain", "a ClassLabel in label or labels; it has image"),
        ("tfds:sound", "needs a feature image"),
    ],
)
def test_tensorflow_datasets_that_will_not_do(tfds_dir, spec, message):
    with pytest.raises(InputError) as caught:
        open_pictures(spec, data_dir=tfds_dir)
    assert spec in str(caught.value) and message in str(caught.value)


def test_a_missing_file_of_a_tensorflow_dataset(tfds_dir, tmp_path):
    shutil.copytree(f"{tfds_dir}/labelled", tmp_path / "labelled")
    file = next((tmp_path / "labelled").rglob("*.array_record*"))
    source = open_pictures("tfds:labelled", data_dir=str(tmp_path))
    file.unlink()
    assert set(outcomes(source).values()) == {"unreadable"}
    with pytest.raises(InputError, match=rf"1 of its 1 files are not there, the first is .*{file.name}"):
        open_pictures("tfds:labelled", data_dir=str(tmp_path))


READ = """
import pickle, sys
for source in pickle.load(open(sys.argv[1], "rb")):
    print(repr(source[0]))
"""


def test_sources_in_threads_and_in_other_processes(tfds_dir, tmp_path):
    files = {f"{i}.{extension}": f"{i} {extension}" for i in range(40) for extension in ("png", "txt")}
    records = [{"path": f"{i}.png", "prompt": f"{i} txt"} for i in range(40)]
    root = fill(tmp_path, files | {"list.json": json.dumps(records), "x.tar": tar(files)})
    sources = [open_pictures(f"{root}{name}") for name in ("", "/list.json", "/x.tar")]
    for source in sources:
        with ThreadPoolExecutor(8) as pool:
            pictures = list(pool.map(lambda i, source=source: source[i], list(range(40)) * 5))
        for picture in pictures:
            number = picture.key.removesuffix(".png")
            assert (picture.data, picture.captions) == (f"{number} png".encode(), one(f"{number} txt"))
        assert grain.MapDataset.source(source).shuffle(seed=0)[0].key
    labelled = open_pictures("tfds:labelled", data_dir=tfds_dir)
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(lambda i: labelled[i], [0, 1] * 50))
    assert all(p.data == jpeg(i % 2) and p.label == 1 - i % 2 for i, p in enumerate(pictures))
    (tmp_path / "pickle").write_bytes(pickle.dumps([*sources, labelled]))
    command = [sys.executable, "-c", READ, str(tmp_path / "pickle")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.stdout.splitlines() == [repr(source[0]) for source in [*sources, labelled]], process.stderr
