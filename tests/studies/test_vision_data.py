"""Data sets from archives in the published formats, and which images the protocols put into their chunks."""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from configs.errors import ConfigError
from studies.vision import data as vision_data
from studies.vision.data import load_images
from studies.vision.protocols import chunk_of, portions, score


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did its only kind of string, which is what CIFAR's files hold."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (as in the class it extends)

    def save_string(self, value):
        content = value.encode() if isinstance(value, str) else value
        short = len(content) < 256
        self.write(b"U" + bytes([len(content)]) if short else b"T" + struct.pack("<i", len(content)))
        self.write(content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(entries):
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(entries)
    return stream.getvalue().replace(b"numpy._core", b"numpy.core")  # the name of that time


def cifar_files(name, rng):
    """Content by file name, and the images (N, 3, 32, 32) and labels by file name."""
    train, test, key, classes = vision_data.CIFAR_FILES[name]
    contents, truth = {}, {}
    for file in [*train, *test]:
        images = rng.integers(256, size=(4, 3, 32, 32), dtype=np.uint8)
        labels = rng.integers(classes, size=4).tolist()
        entries = {
            "batch_label": file,
            "data": images.reshape(4, -1),
            "filenames": ["a.png"] * 4,
            key.decode(): labels,
        }
        if name == "cifar100":
            entries["coarse_labels"] = [0] * 4
        contents[file] = python2_pickle(entries)
        truth[file] = images, labels
    return contents, truth


def write_archive(path, contents):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("packed", [True, False])
def test_cifar_from_an_archive_and_from_a_folder(tmp_path, monkeypatch, name, packed):
    contents, truth = cifar_files(name, np.random.default_rng(0))
    path = tmp_path
    if packed:
        path = tmp_path / "cifar.tar.gz"
        monkeypatch.setitem(vision_data.MD5, name, write_archive(path, dict(reversed(contents.items()))))
    else:
        (tmp_path / "inner").mkdir()
        for file, content in contents.items():
            (tmp_path / "inner" / file).write_bytes(content)
    data = load_images(name, path)
    train, test, _, classes = vision_data.CIFAR_FILES[name]
    assert np.array_equal(data.images.numpy(), np.concatenate([truth[file][0] for file in train]))
    assert data.labels.tolist() == [label for file in train for label in truth[file][1]]
    assert np.array_equal(data.test_images.numpy(), truth[test[0]][0])
    assert data.num_classes == classes
    normalised = data.normalised(data.images).double()
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        normalised.std((0, 2, 3), correction=0), torch.ones(3).double(), atol=1e-5, rtol=0
    )


def test_an_archive_with_another_checksum_is_refused(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    found = write_archive(path, {})
    with pytest.raises(ConfigError, match=f"md5 {found}, cifar10 has c58f30108f718f92721af3b95e74349a"):
        load_images("cifar10", path)


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("ran",))

    contents, _ = cifar_files("cifar10", np.random.default_rng(0))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "test_batch").write_bytes(pickle.dumps({"data": Evil()}, protocol=2))
    with pytest.raises(ConfigError, match="no CIFAR batch: it wants __builtin__"):
        load_images("cifar10", tmp_path)


@pytest.mark.parametrize(
    "name, path, message",
    [
        ("cifar10", None, "--dataset cifar10 needs --data PATH; get it from https"),
        ("cifar100", "missing", "does not exist"),
        ("cifar10", ".", "lacks data_batch_1, data_batch_2"),
        ("tiny_imagenet", ".", "holds no wnids.txt"),
    ],
)
def test_missing_data_is_one_line(tmp_path, name, path, message):
    with pytest.raises(ConfigError, match=message) as error:
        load_images(name, path and tmp_path / path)
    assert "\n" not in str(error.value)


def test_tiny_imagenet_folder(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    (root / "val" / "images").mkdir(parents=True)
    (root / "wnids.txt").write_text("n02\nn01\n")
    for index, name in enumerate(("n02", "n01")):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        mode, colour = ("L", 90) if index else ("RGB", (200, 30, 30))  # some of the real ones are grey
        Image.new(mode, (64, 64), colour).save(folder / f"{name}_0.JPEG")
    Image.new("RGB", (64, 64), (200, 30, 30)).save(root / "val" / "images" / "val_0.JPEG")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn01\t0\t0\t63\t63\n")
    data = load_images("tiny_imagenet", tmp_path)
    assert data.labels.tolist() == [0, 1] and data.test_labels.tolist() == [1] and data.num_classes == 2
    colours = data.images.float().mean((2, 3))
    expected = torch.tensor([[200.0, 30, 30], [90, 90, 90]])
    torch.testing.assert_close(colours, expected, atol=4, rtol=0)  # JPEG rounds
    (root / "wnids.txt").write_text("n02\nn01\nn03\n")
    Image.new("RGB", (32, 64)).save(root / "val" / "images" / "val_0.JPEG")
    with pytest.raises(ConfigError, match="32 x 64 pixels instead of 64 x 64"):
        load_images("tiny_imagenet", tmp_path)


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", None)


def test_warm_start_is_a_tenth_and_then_everything(digits):
    first, second = portions("warm_start", digits, 0)
    assert len(first.train) == 130 and sorted(second.train.tolist()) == list(range(1297))
    assert first.epochs_factor == 10 and second.epochs_factor == 1
    assert set(first.train.tolist()) < set(second.train.tolist())
    other = portions("warm_start", digits, 1)[0]
    assert set(first.train.tolist()) != set(other.train.tolist())
    assert chunk_of(first, digits, 3, 100).num_updates == 3 * 10 * 2


def test_continual_adds_a_tenth_each_time(digits):
    chunks = portions("continual", digits, 0)
    sizes = [len(chunk.train) for chunk in chunks]
    assert (
        len(chunks) == 10
        and sizes[-1] == 1297
        and all(128 <= b - a <= 131 for a, b in itertools.pairwise(sizes))
    )
    assert all(set(a.train.tolist()) < set(b.train.tolist()) for a, b in itertools.pairwise(chunks))


def test_class_incremental_tests_on_the_classes_seen(digits):
    chunks = portions("class_incremental", digits, 0)
    assert len(chunks) == 10  # digits have no more classes
    for index, chunk in enumerate(chunks):
        seen = set(digits.labels[chunk.train].tolist())
        assert len(seen) == index + 1 and set(digits.test_labels[chunk.test].tolist()) == seen
        assert len(chunk.train) == int(torch.isin(digits.labels, torch.tensor(sorted(seen))).sum())


def test_an_epoch_holds_every_image_once(digits):
    portion = portions("warm_start", digits, 0)[0]
    chunk = chunk_of(portion, digits, 1, 50)
    batches = chunk.batches(torch.Generator().manual_seed(0))
    epochs = [[next(batches) for _ in range(3)] for _ in range(2)]
    expected = digits.normalised(digits.images[portion.train]).flatten(1)
    for epoch in epochs:
        images = torch.cat([images for images, _ in epoch]).flatten(1)
        assert [len(labels) for _, labels in epoch] == [44, 43, 43]
        assert sorted(images.tolist()) == sorted(expected.tolist())
    assert not torch.equal(epochs[0][0][0], epochs[1][0][0])


def test_score_counts(digits):
    class Seven(torch.nn.Module):
        def forward(self, images):
            return 30 * torch.nn.functional.one_hot(torch.full((len(images),), 7), 10).float()

    rows = torch.arange(len(digits.labels))
    accuracy, loss = score(Seven(), digits, digits.images, digits.labels, rows)
    share = float((digits.labels == 7).double().mean())
    assert accuracy == pytest.approx(share) and loss == pytest.approx(30 * (1 - share), rel=1e-5)
