"""Power cuts, replayed: whatever a disk may still hold at any moment, the run in it resumes and is the same.

A run is recorded: every call that changes the folder, and what each ``fsync`` made certain. From that follow the
states that a cut may leave (the model is POSIX's: a file's bytes are certain once it is synced, names once their folder
is). They are built anew, and the run is resumed in each.
"""

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from common import checkpoint, segments
from tests.training.test_kills import end, folders, require_equal, start
from tests.training.test_train import run
from training import loop

# How much of what no fsync has made certain is on the disk. "names": as journals do that order names, not bytes.
WORLDS = ("nothing", "names", "names and half of the bytes", "bytes")


class Disk:
    """What is in a folder, now and for certain.

    Attributes:
        moments: before each call, for each of ``WORLDS``, the files by path, None for a folder.
        promised: the env step of the newest checkpoint that was said to be saved by then, by run.
    """

    def __init__(self, root):
        self.root = root
        self.certain_bytes, self.certain_names = {}, {}  # by inode
        self.moments, self.promised, self._saved = [], [], {}
        self._held = {}  # open, so that no inode's number is used twice

    def watch(self, patch):
        """Record the calls; ``patch`` is pytest's monkeypatch."""

        def watched(call):
            def watching(*args, **kwargs):
                self._look()
                return call(*args, **kwargs)

            return watching

        for name in ("mkdir", "replace", "unlink", "rmdir"):
            patch.setattr(os, name, watched(getattr(os, name)))
        fsync, save = os.fsync, checkpoint.save

        def synced(descriptor):
            self._look()
            fsync(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path.is_dir():
                self.certain_names[self._inode(path)] = self._names(path)
            else:
                self.certain_bytes[self._inode(path)] = path.read_bytes()

        def saved(folder, kind, env_step, *args):
            path = save(folder, kind, env_step, *args)
            if kind == "step":
                self._saved[folder.parent.relative_to(self.root)] = env_step
            return path

        patch.setattr(os, "fsync", synced)
        patch.setattr(checkpoint, "save", saved)

    def _inode(self, path):
        number = path.lstat().st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_PATH)
        return number

    def _names(self, folder):
        return {
            entry.name: (self._inode(Path(entry.path)), entry.is_dir())
            for entry in os.scandir(folder)
            if not entry.name.startswith("events.out")
        }

    def _look(self):
        names, content = {}, {}
        for folder in (self.root, *(p for p in self.root.rglob("*") if p.is_dir())):
            names[self._inode(folder)] = self._names(folder)
        for path in self.root.rglob("*"):
            if path.is_file():
                content[self._inode(path)] = path.read_bytes()
        certain_names = {inode: self.certain_names.get(inode, {}) for inode in (*names, *self.certain_names)}
        certain_names[self._inode(self.root)] = self.certain_names.get(self._inode(self.root), {})
        certain = {inode: self.certain_bytes.get(inode, b"") for inode in (*content, *self.certain_bytes)}
        torn = {inode: _torn(certain[inode], now) for inode, now in content.items()}
        by_world = {
            "nothing": (certain_names, certain),
            "names": (names, certain),
            "names and half of the bytes": (names, {**certain, **torn}),
            "bytes": (certain_names, {**certain, **content}),
        }
        self.moments.append({world: self._files(*by_world[world]) for world in WORLDS})
        self.promised.append(dict(self._saved))

    def _files(self, names, content):
        files = {}

        def walk(inode, place):
            for name, (child, is_folder) in names.get(inode, {}).items():
                files[place / name] = None if is_folder else content.get(child, b"")
                if is_folder:
                    walk(child, place / name)

        walk(self._inode(self.root), Path())
        return files

    def states(self):
        """Return the different states, each with what was promised in it."""
        found = {}
        for moment, promised in zip(self.moments, self.promised, strict=True):
            for files in moment.values():
                digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()
                found[digest] = (files, promised)  # the latest promise is the strictest
        return list(found.values())

    def close(self):
        for descriptor in self._held.values():
            os.close(descriptor)


def _torn(certain, now):
    """What is certain and half of what was appended since; of a file written anew, half."""
    kept = len(certain) if now.startswith(certain) else 0
    return now[: (kept + len(now)) // 2]


def build(files, root):
    for path, content in files.items():
        if content is None:
            (root / path).mkdir(parents=True)
    for path, content in files.items():
        if content is not None:
            (root / path).write_bytes(content)


@pytest.fixture(scope="module", params=["alone", pytest.param("together", marks=pytest.mark.slow)])
def recorded(request, tmp_path_factory):
    """How many runs, the folders of the uninterrupted ones, and what a power cut may have left of them."""
    folder = tmp_path_factory.mktemp(request.param)
    run(folder / "imports", "dqn", "--total-steps", "62")
    (folder / "disk").mkdir()
    disk = Disk(folder / "disk")
    configs, run_dirs = folders(folder / "disk/run", request.param)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("SEGMENT_BYTES", "SMALLEST_BYTES"):  # of so small a replay there would be none
            patch.setattr(segments, name, 1_000)
        disk.watch(patch)
        loop.train_together(configs, run_dirs)
    states = disk.states()
    assert any(path.suffix == segments.SUFFIX for files, _ in states for path in files)
    disk.close()
    return request.param, run_dirs, states


def resume_in(recorded, tmp_path, chosen):
    company, uninterrupted, _ = recorded
    for number, (files, promised) in enumerate(chosen):
        root = tmp_path / str(number)
        root.mkdir()
        build(files, root)
        for run_dir, step in promised.items():
            held = checkpoint.find(root / run_dir / "checkpoints", "step")
            assert held and checkpoint.step_of(held[-1]) >= step, "a checkpoint that was saved is lost"
        assert end(start(root / "run", company)) == 0, sorted(files)
        require_equal(folders(root / "run", company)[1], uninterrupted)
        shutil.rmtree(root)


def test_a_sample_of_power_cuts(recorded, tmp_path):
    states, count = recorded[2], 4
    resume_in(recorded, tmp_path, [states[len(states) * (2 * i + 1) // (2 * count)] for i in range(count)])


@pytest.mark.slow
def test_power_cuts_at_every_moment(recorded, tmp_path):
    assert len(recorded[2]) > 100
    resume_in(recorded, tmp_path, recorded[2])
