"""Image data sets: scikit-learn's digits without a download, CIFAR-10, CIFAR-100 and Tiny ImageNet from a path.

Nothing is downloaded here; an error names the file and where it comes from.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from configs.errors import ConfigError

DATA_SETS = ("digits", "cifar10", "cifar100", "tiny_imagenet")
SOURCES = {
    "cifar10": "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "cifar100": "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
    "tiny_imagenet": "http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked",
}
MD5 = {  # of the archives, as torchvision checks them
    "cifar10": "c58f30108f718f92721af3b95e74349a",
    "cifar100": "eb9058c3a382ffc7106e4002c42a8d85",
}
CIFAR_FILES = {
    "cifar10": ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"], b"labels", 10),
    "cifar100": (["train"], ["test"], b"fine_labels", 100),
}
NUM_DIGITS_TEST = 500


@dataclass(frozen=True)
class ImageData:
    """Images (N, channels, side, side) uint8 and labels (N,) int64, to train and to test on.

    Attributes:
        mean, std: of the training images' channels, (channels, 1, 1) float32, for :meth:`normalised`.
    """

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: Tensor
    std: Tensor

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images as float32 with mean 0 and variance 1 in every channel of the training set."""
        return (images.float() - self.mean) / self.std

    def to(self, device: torch.device) -> ImageData:
        """The same data on another device."""
        moved = (self.images, self.labels, self.test_images, self.test_labels)
        images, labels, test_images, test_labels = (tensor.to(device) for tensor in moved)
        return ImageData(
            self.name,
            images,
            labels,
            test_images,
            test_labels,
            self.num_classes,
            self.mean.to(device),
            self.std.to(device),
        )


def load_images(name: str, path: Path | None) -> ImageData:
    """Return a data set of ``DATA_SETS``; ``path`` is its archive or folder, which digits do not need.

    Raises:
        ConfigError: no path, a missing or damaged file, another checksum.
    """
    if name == "digits":
        return _digits()
    if path is None:
        raise ConfigError(f"--dataset {name} needs --data PATH; get it from {SOURCES[name]}")
    if not path.exists():
        raise ConfigError(f"--data {path} does not exist; get {name} from {SOURCES[name]}")
    return _tiny_imagenet(path) if name == "tiny_imagenet" else _cifar(name, path)


def _image_data(
    name: str, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], num_classes: int
) -> ImageData:
    (images, labels), (test_images, test_labels) = train, test
    # In float64 channel by channel: 100,000 images as float32 at once would be gigabytes.
    channels = [images[:, channel].double() for channel in range(images.shape[1])]
    mean = torch.tensor([float(channel.mean()) for channel in channels])
    std = torch.tensor([float(channel.std(correction=0)) for channel in channels])
    shape = (-1, 1, 1)
    return ImageData(
        name, images, labels, test_images, test_labels, num_classes, mean.view(shape), std.view(shape)
    )


def _digits() -> ImageData:
    """8 x 8 images of digits, values 0 to 16; the last 500 of the 1,797, by other writers, are the test set."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            "--dataset digits needs scikit-learn: pip install -r requirements-studies.txt"
        ) from error
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.uint8).unsqueeze(1)
    labels = torch.tensor(data.target, dtype=torch.int64)
    cut = len(images) - NUM_DIGITS_TEST
    return _image_data("digits", (images[:cut], labels[:cut]), (images[cut:], labels[cut:]), 10)


def _cifar(name: str, path: Path) -> ImageData:
    train_files, test_files, key, num_classes = CIFAR_FILES[name]
    if path.is_file():
        _check_md5(name, path)
    parts = {
        file: _cifar_batch(content, key) for file, content in _read_cifar(path, [*train_files, *test_files])
    }
    train = [parts[file] for file in train_files]
    test = [parts[file] for file in test_files]
    return _image_data(name, _concatenated(train), _concatenated(test), num_classes)


def _check_md5(name: str, path: Path) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != MD5[name]:
        raise ConfigError(
            f"--data {path} has md5 {found}, {name} has {MD5[name]}; get it from {SOURCES[name]}"
        )


def _read_cifar(path: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files called ``names`` in an archive, or in a folder or the one inside it."""
    left = set(names)
    if path.is_file():
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    if name in left and (file := archive.extractfile(member)) is not None:
                        left.remove(name)
                        yield name, file.read()
        except (tarfile.TarError, EOFError, OSError) as error:
            raise ConfigError(f"--data {path} is no readable archive: {error}") from error
    else:
        for name in names:
            found = [path / name, *sorted(path.glob(f"*/{name}"))]
            if (file_path := next((each for each in found if each.is_file()), None)) is not None:
                left.remove(name)
                yield name, file_path.read_bytes()
    if left:
        raise ConfigError(f"--data {path} lacks {', '.join(sorted(left))}")


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of numpy arrays and runs nothing else: a pickle from the web is a program."""

    ALLOWED = frozenset(
        {
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it wants {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _cifar_batch(content: bytes, key: bytes) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32) and labels of one file: a pickle with ``data``, (N, 3072), and lists of labels."""
    try:
        entries = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
        images = np.asarray(entries[b"data"], dtype=np.uint8).reshape(-1, 3, 32, 32)
        labels = np.asarray(entries[key], dtype=np.int64)
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
    except (
        pickle.UnpicklingError,
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        IndexError,
    ) as error:
        raise ConfigError(f"--data: a file is no CIFAR batch: {error}") from error
    return torch.from_numpy(images.copy()), torch.from_numpy(labels)


def _concatenated(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def _tiny_imagenet(path: Path) -> ImageData:
    """``train/<class>/images/*.JPEG``, ``val/images`` and ``val/val_annotations.txt``; classes as in ``wnids.txt``."""
    root = next((each for each in (path, path / "tiny-imagenet-200") if (each / "wnids.txt").is_file()), None)
    if root is None:
        raise ConfigError(
            f"--data {path} holds no wnids.txt, so it is not Tiny ImageNet; get it from {SOURCES['tiny_imagenet']}"
        )
    classes = {name: index for index, name in enumerate((root / "wnids.txt").read_text().split())}
    train = [
        (file, index)
        for name, index in classes.items()
        for file in sorted((root / "train" / name / "images").glob("*.JPEG"))
    ]
    annotations = root / "val" / "val_annotations.txt"
    if not annotations.is_file():
        raise ConfigError(f"--data {path} lacks val/val_annotations.txt")
    lines = [line.split("\t") for line in annotations.read_text().splitlines()]
    test = [(root / "val" / "images" / line[0], classes[line[1]]) for line in lines]
    if not train or not test:
        raise ConfigError(f"--data {path} has {len(train)} training and {len(test)} validation images")
    return _image_data("tiny_imagenet", _read_pictures(train), _read_pictures(test), len(classes))


def _read_pictures(files: list[tuple[Path, int]]) -> tuple[Tensor, Tensor]:
    images = np.empty((len(files), 3, 64, 64), dtype=np.uint8)
    for place, (path, _) in enumerate(files):
        with path.open("rb") as file:
            images[place] = _picture(path, file)
    return torch.from_numpy(images), torch.tensor([label for _, label in files])


def _picture(path: Path, file: BinaryIO) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError  # comes with matplotlib

    try:
        pixels = np.asarray(Image.open(file).convert("RGB"))  # some are grey
    except (UnidentifiedImageError, OSError) as error:
        raise ConfigError(f"{path} is no picture") from error
    if pixels.shape != (64, 64, 3):
        raise ConfigError(f"{path} has {pixels.shape[1]} x {pixels.shape[0]} pixels instead of 64 x 64")
    return pixels.transpose(2, 0, 1)
