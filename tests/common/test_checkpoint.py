"""Checkpoints: round trip, retention, atomicity, damage, no pickled code."""

import errno
import json
import os
import stat
import threading
from pathlib import PurePosixPath

import numpy as np
import pytest
import torch

from common import checkpoint, files
from common.checkpoint import CheckpointError

STATE = {
    "tensor": torch.arange(6).reshape(2, 3),
    "array": np.array([[1.5, 2.5]], dtype=np.float64),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "big": 2**127 + 1,
    "nested": [{"x": (1, 2)}, "text", None, True, 0.1],
}


def test_round_trip_keeps_values_and_types(tmp_path):
    path = checkpoint.save(tmp_path, "step", 7, {"a": STATE})
    loaded = checkpoint.load(path, ["a"])
    assert loaded["env_step"] == 7
    a = loaded["a"]
    assert torch.equal(a["tensor"], STATE["tensor"])
    assert isinstance(a["array"], np.ndarray) and a["array"].dtype == np.float64
    assert np.array_equal(a["array"], STATE["array"]) and a["empty"].shape == (0, 3)
    assert a["big"] == 2**127 + 1
    assert a["nested"] == [{"x": [1, 2]}, "text", None, True, 0.1]


def test_keeps_the_newest_of_each_kind(tmp_path):
    checkpoint.save(tmp_path, "best", 1, {"a": {}})
    for step in (5, 40, 300):
        checkpoint.save(tmp_path, "step", step, {"a": {}})
    checkpoint.prune(tmp_path, "step", keep=2)
    assert [p.name for p in checkpoint.find(tmp_path, "step")] == ["step_000000000040", "step_000000000300"]
    assert len(checkpoint.find(tmp_path, "best")) == 1


def test_a_second_save_at_the_same_step_replaces_the_first(tmp_path):
    checkpoint.save(tmp_path, "best", 1, {"a": {"x": 1}})
    path = checkpoint.save(tmp_path, "best", 1, {"a": {"x": 2}})
    assert checkpoint.load(path, ["a"])["a"] == {"x": 2}
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_crash_between_the_two_renames_of_a_replacement_keeps_the_old_one(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "best", 1, {"a": {"x": 1}})
    rename, calls = os.replace, []

    def crash(source, destination):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt("killed here")
        rename(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt, match="killed here"):
            checkpoint.save(tmp_path, "best", 1, {"a": {"x": 2}})
    (survivor,) = checkpoint.find(tmp_path, "best")
    assert checkpoint.load(survivor, ["a"])["a"] == {"x": 1}


def test_discard_after_drops_only_later_ones(tmp_path):
    for step in (5, 40, 300):
        checkpoint.save(tmp_path, "best", step, {"a": {}})
    checkpoint.discard_after(tmp_path, "best", 40)
    checkpoint.prune(tmp_path, "best", keep=3)
    assert [int(p.name[-12:]) for p in checkpoint.find(tmp_path, "best")] == [5, 40]


def test_a_crash_before_the_rename_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "step", 1, {"a": {"x": 1}})

    def crash(*_):
        raise KeyboardInterrupt("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", crash)
        with pytest.raises(KeyboardInterrupt, match="killed here"):
            checkpoint.save(tmp_path, "step", 2, {"a": {"x": 2}})
    (survivor,) = checkpoint.find(tmp_path, "step")
    assert checkpoint.load(survivor, ["a"])["a"] == {"x": 1}
    checkpoint.save(tmp_path, "step", 3, {"a": {"x": 3}})
    checkpoint.prune(tmp_path, "step", keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000003"]


def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "step", 1, {"a": {"x": 1}})

    def full(_part, path):
        path.write_bytes(b"half")
        raise RuntimeError("unexpected pos 186048 vs 186000\nat inline_container.cc")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(
        CheckpointError, match=r"cannot write checkpoint .*MB were free: unexpected pos"
    ) as caught:
        checkpoint.save(tmp_path, "step", 2, {"a": {"x": 2}})
    assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000000000001"]


def test_damage_is_an_error_that_names_the_file(tmp_path):
    path = checkpoint.save(tmp_path, "step", 1, {"a": STATE})
    content = bytearray((path / "a.pt").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (path / "a.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pt is damaged"):
        checkpoint.load(path, ["a"])
    with pytest.raises(CheckpointError, match="no part 'b'"):
        checkpoint.load(path, ["b"])
    (path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.load(path, ["a"])


def test_another_format_version_is_refused(tmp_path):
    path = checkpoint.save(tmp_path, "step", 1, {"a": {}})
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 999}))
    with pytest.raises(CheckpointError, match="999"):
        checkpoint.load(path, ["a"])


def test_objects_that_need_pickled_code_do_not_load(tmp_path):
    path = checkpoint.save(tmp_path, "step", 1, {"a": {"x": PurePosixPath("a")}})
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(path, ["a"])


def test_looking_for_checkpoints_changes_nothing(tmp_path):
    checkpoint.save(tmp_path, "best", 1, {"a": {"x": 1}})
    os.replace(tmp_path / "best_000000000001", tmp_path / ".best_000000000001.replaced")  # in mid-save
    (tmp_path / ".best_000000000002.partial").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    path, state = checkpoint.load_newest(tmp_path, ["best", "step"], ["a"])
    assert state["a"] == {"x": 1} and checkpoint.step_of(path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    checkpoint.save(tmp_path, "best", 2, {"a": {"x": 2}})  # the writer puts everything right
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best_000000000001", "best_000000000002"]


def test_a_checkpoint_that_vanishes_while_it_is_read_is_passed_over(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(tmp_path, "step", step, {"a": {"x": step}})
    load, seen = torch.load, []

    def slow(file, **options):
        if not seen:
            seen.append(file)
            checkpoint.save(tmp_path, "step", 3, {"a": {"x": 3}})
            checkpoint.prune(tmp_path, "step", keep=1)
        return load(file, **options)

    monkeypatch.setattr(torch, "load", slow)
    path, state = checkpoint.load_newest(tmp_path, ["step"], ["a"])
    assert state == {"env_step": 3, "a": {"x": 3}} and path.name == "step_000000000003"


def test_a_damaged_newest_checkpoint_is_an_error_for_readers_too(tmp_path):
    for step in (1, 2):
        path = checkpoint.save(tmp_path, "step", step, {"a": {"x": step}})
    (path / "a.pt").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load_newest(tmp_path, ["step"], ["a"])


def test_a_reader_beside_a_writer_hinders_neither(tmp_path):
    """Some 60 saves, some at the step of the one before, while another thread reads without a pause."""
    checkpoint.save(tmp_path, "best", 0, {"a": {"x": 0}})
    stop, failures, reads = threading.Event(), [], []

    def read():
        newest = 0
        while not stop.is_set():
            try:
                _, state = checkpoint.load_newest(tmp_path, ["best", "step"], ["a"])
                assert state["env_step"] == state["a"]["x"] >= newest
                newest = state["env_step"]
                reads.append(newest)
            except Exception as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(1, 60):
        step = index // 3
        checkpoint.save(tmp_path, "best", step, {"a": {"x": step}})
        checkpoint.prune(tmp_path, "best", keep=1)
    stop.set()
    reader.join()
    assert not failures and len(set(reads)) > 3


def test_a_file_system_that_cannot_sync_folders_is_one_warning(tmp_path, monkeypatch, caplog):
    sync = os.fsync

    def only_files(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(descriptor)

    files.warn_once.cache_clear()
    monkeypatch.setattr(os, "fsync", only_files)
    for step in (1, 2):
        path = checkpoint.save(tmp_path, "step", step, {"a": {"x": step}})
    assert checkpoint.load(path, ["a"])["a"] == {"x": 2}
    assert len(caplog.records) == 1


@pytest.mark.parametrize("call", ["mkdir", "write_text"])
def test_a_full_disk_at_the_folder_or_the_manifest_is_one_line(call, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, "step", 1, {"a": {"x": 1}})

    def full(self, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), call, full)
        with pytest.raises(CheckpointError, match=r"cannot write checkpoint .*No space left on device"):
            checkpoint.save(tmp_path, "step", 2, {"a": {"x": 2}})
    assert [path.name for path in tmp_path.iterdir()] == ["step_000000000001"]


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", "[" * 100_000, '{"format_version": 1}', "\xff",
                                  '{"format_version": 1, "env_step": "x", "sha256": {}}',
                                  '{"format_version": 1, "env_step": 1, "sha256": [1]}'])  # fmt: skip
def test_an_edited_manifest_is_one_line(text, tmp_path):
    path = checkpoint.save(tmp_path, "step", 1, {"a": {"x": 1}})
    (path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path, ["a"])
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
