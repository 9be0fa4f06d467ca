"""Segments: round trip, one file for equal content, damage, no hard links, nothing that is written in place."""

import errno
import os
import shutil
import sys

import numpy as np
import pytest
import torch

from common import checkpoint, segments
from common.checkpoint import CheckpointError

ROWS = 100
_opened: list[tuple[str, int]] = []
_watching: list[str] = []


def _note(event, arguments):
    if _watching and event == "open" and str(arguments[0]).startswith(_watching[0]):
        _opened.append((str(arguments[0]), arguments[2]))


sys.addaudithook(
    _note
)  # sees every open of this process, those of libraries too; it cannot be taken away again


@pytest.fixture
def opened(tmp_path):
    """Path and flags of all files opened below ``tmp_path``."""
    _opened.clear()
    _watching.append(str(tmp_path))
    yield _opened
    _watching.clear()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 256)
    monkeypatch.setattr(segments, "SMALLEST_BYTES", 64)


def state(rows=ROWS, seed=0):
    """Arrays as a replay buffer has them; more rows begin with the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "obs": torch.randn(ROWS * 4, 3, generator=generator)[:rows],
        "action": torch.randint(0, 9, (ROWS * 4,), generator=generator)[:rows],
        "terminated": (torch.rand(ROWS * 4, 2, generator=generator) < 0.5)[:rows],
        "half": torch.randn(ROWS * 4, 4, generator=generator).bfloat16()[:rows],
        "frames": [torch.full((80 + index,), index, dtype=torch.uint8) for index in range(rows // 20)],
        "array": np.arange(rows * 2.0).reshape(rows, 2),
        "few": torch.arange(4),
        "next_row": rows,
    }


def save(folder, step, part, others=()):
    return checkpoint.save(folder, "step", step, {"replay": part, "agent": part}, ["replay"], others)


def files_of(path):
    """Its segments: inode, links and content by name."""
    found = {each.name: each for each in path.glob("*.segment")}
    return {name: (p.stat().st_ino, p.stat().st_nlink, p.read_bytes()) for name, p in found.items()}


def assert_holds(path, part):
    loaded = checkpoint.load(path, ["replay", "agent"])
    for name in ("replay", "agent"):
        for key, value in part.items():
            given, found = (value, loaded[name][key]) if key == "frames" else ([value], [loaded[name][key]])
            for one, other in zip(given, found, strict=True):
                if isinstance(one, int):
                    assert one == other
                    continue
                assert type(one) is type(other) and one.dtype == other.dtype and one.shape == other.shape
                assert (
                    one.tobytes() == other.tobytes()
                    if isinstance(one, np.ndarray)
                    else torch.equal(one, other)
                )


def test_round_trip(tmp_path):
    path = save(tmp_path, 1, state())
    assert_holds(path, state())
    kept = torch.load(path / "replay.pt", weights_only=True)
    assert torch.equal(kept["few"], torch.arange(4))  # too small to be taken out
    sizes = [each.stat().st_size for each in path.glob("*.segment")]
    # 12 bytes a row of observations, 21 rows below 256 bytes.
    assert max(sizes) <= 256 and sizes.count(252) == ROWS // 21
    assert not any(each.stat().st_mode & 0o222 for each in path.glob("*.segment"))


def test_what_has_not_changed_is_one_file(tmp_path):
    first, second = save(tmp_path, 1, state(100)), save(tmp_path, 2, state(130))
    one, other = files_of(first), files_of(second)
    shared = set(one) & set(other)
    assert all(one[name][:2] == other[name][:2] == (one[name][0], 2) for name in shared)
    # Only the last segment of each array was not full, and the frames are the same but for a piece more.
    assert len(set(one) - shared) <= 5 and len(shared) > 10
    assert_holds(first, state(100))
    assert_holds(second, state(130))


def test_who_deletes_one_takes_nothing_from_the_other(tmp_path):
    for gone in (0, 1):
        folder = tmp_path / str(gone)
        paths = save(folder, 1, state(100)), save(folder, 2, state(130))
        shutil.rmtree(paths[gone])
        assert_holds(paths[1 - gone], state((100, 130)[1 - gone]))
        assert {links for _, links, _ in files_of(paths[1 - gone]).values()} == {1}


def test_another_runs_checkpoint_is_shared_too_and_never_written_to(tmp_path, opened):
    source = save(tmp_path / "source", 1, state(100))
    before = {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in source.iterdir()}
    opened.clear()
    branch = save(tmp_path / "branch", 2, state(130), [source])
    save(tmp_path / "branch", 2, state(140), [source])  # again at the same step
    checkpoint.prune(tmp_path / "branch", "step", keep=1)
    assert {each.name: (each.read_bytes(), each.stat().st_mtime_ns) for each in source.iterdir()} == before
    assert_holds(branch, state(140))
    shared = set(files_of(source)) & set(files_of(branch))
    assert shared and all(files_of(source)[name][0] == files_of(branch)[name][0] for name in shared)
    writing = [
        (p, flags) for p, flags in opened if flags & (os.O_WRONLY | os.O_RDWR) and p.endswith(".segment")
    ]
    # Exclusively: the call fails where there is a file, a shared one above all.
    assert writing and all(flags & os.O_EXCL for _, flags in writing)


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP])
def test_where_files_cannot_be_linked_each_has_its_own(number, tmp_path, monkeypatch):
    def refuse(source, destination):
        raise OSError(number, os.strerror(number), source)

    monkeypatch.setattr(os, "link", refuse)
    first, second = save(tmp_path, 1, state(100)), save(tmp_path, 2, state(130))
    assert {links for path in (first, second) for _, links, _ in files_of(path).values()} == {1}
    assert_holds(first, state(100))
    assert_holds(second, state(130))


def test_a_source_that_is_deleted_meanwhile_is_done_without(tmp_path, monkeypatch):
    source = save(tmp_path / "source", 1, state())
    link = os.link

    def late(one, other):
        shutil.rmtree(source, ignore_errors=True)
        link(one, other)

    monkeypatch.setattr(os, "link", late)
    assert_holds(save(tmp_path / "branch", 2, state(), [source]), state())


def test_what_a_kill_left_half_written_is_not_taken_for_whole(tmp_path):
    """A power cut may leave a segment's name without its content."""
    path = save(tmp_path, 1, state())
    for name in (".step_000000000002.partial", ".first.partial"):
        (tmp_path / name).mkdir()
        for each in path.glob("*.segment"):
            (tmp_path / name / each.name).write_bytes(b"")
        assert_holds(save(tmp_path, 2, state()), state())


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.chmod(0o644)
    file.write_bytes(content)


def _shorten(file):
    file.chmod(0o644)
    os.truncate(file, file.stat().st_size - 1)


def _lengthen(file):
    file.chmod(0o644)
    with file.open("ab") as more:
        more.write(bytes(1_000))


@pytest.mark.parametrize("damage", [_flip, _shorten, _lengthen, os.unlink])
def test_a_damaged_or_missing_segment_is_one_line(damage, tmp_path):
    path = save(tmp_path, 1, state())
    for file in sorted(path.glob("*.segment")):
        content = file.read_bytes()
        damage(file)
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load(path, ["replay"])
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
        file.unlink(missing_ok=True)
        file.write_bytes(content)
    assert_holds(path, state())


def test_checkpoints_from_before_there_were_segments_still_load(tmp_path):
    path = checkpoint.save(tmp_path, "step", 1, {"replay": state(), "agent": state()})
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 2', '"format_version": 1'))
    assert '"format_version": 1' in manifest.read_text() and not files_of(path)
    assert_holds(path, state())
