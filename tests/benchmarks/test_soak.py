"""benchmarks/soak.py: it sees what grows, and what a process holds."""

import mmap
import os
import threading
from pathlib import Path

import pytest

from benchmarks.soak import Sample, judge, sample

STEADY = [Sample(100 * i, 0.5 * i, 0.2 * i, 10**9, 20, 3) for i in range(1, 42)]


def test_a_program_that_stays_as_it_began_stays():
    verdict = judge(STEADY)
    assert verdict.stays and verdict.memory == 0 and verdict.time_per_step == pytest.approx(0)


@pytest.mark.parametrize(
    "change",
    [
        lambda i, s: s._replace(memory=s.memory + 10**6 * i),  # 3 % by the end
        lambda i, s: s._replace(descriptors=s.descriptors + i // 30),
        lambda i, s: s._replace(threads=s.threads + (i == 35)),
        lambda i, s: s._replace(seconds=s.seconds * (1 + i / 400)),
    ],
)
def test_what_grows_is_found(change):
    assert not judge([change(i, each) for i, each in enumerate(STEADY)]).stays


def test_a_processor_that_slows_down_is_not_the_programs_fault():
    seconds, work, slower = 0.0, 0.0, []
    for i, each in enumerate(STEADY):
        seconds, work = seconds + 0.5 * (1 + i / 40), work + 0.2 * (1 + i / 40)
        slower.append(each._replace(seconds=seconds, work=work))
    assert judge(slower).stays


def test_the_first_quarter_may_grow():
    assert judge(
        [s._replace(memory=s.memory - max(0, 10**8 - 10**7 * i)) for i, s in enumerate(STEADY)]
    ).stays


def test_too_few_windows():
    with pytest.raises(ValueError, match="at least 8 windows are needed, got 7"):
        judge(STEADY[:8])


def test_fixed_work_is_counted_apart():
    begin = sample(0, 0.0).seconds
    assert sample(0, 1.0).seconds - begin < -0.5


def test_a_sample_counts_what_is_open():
    before = sample(0, 0.0)
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    opened = os.open(Path(__file__), os.O_RDONLY)
    held = mmap.mmap(-1, 50_000_000)  # new pages, whatever memory the process keeps
    for page in range(0, len(held), mmap.PAGESIZE):  # no second copy, which an allocator might keep
        held[page] = 1
    after = sample(1, 0.0)
    os.close(opened)
    ended.set()
    thread.join()
    assert after.descriptors == before.descriptors + 1 and after.threads == before.threads + 1
    assert len(held) * 0.8 < after.memory - before.memory < len(held) * 1.5
    assert after.seconds >= before.seconds
