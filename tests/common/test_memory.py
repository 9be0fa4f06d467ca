"""Available memory on a faked machine: the smaller of what the system and the control group leave."""

from pathlib import Path

import pytest
import torch

from common import memory

CPU = torch.device("cpu")


def fake(monkeypatch, tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)


VERSION_2 = {
    "memory.max": "3000000000\n",
    "memory.current": "2500000000\n",
    "memory.stat": "anon 1\ninactive_file 400000000\n",
}
VERSION_1 = {
    "memory/memory.limit_in_bytes": "3000000000\n",
    "memory/memory.usage_in_bytes": "2500000000\n",
    "memory/memory.stat": "rss 1\ntotal_inactive_file 400000000\n",
}


@pytest.mark.parametrize("files", [VERSION_2, VERSION_1])
def test_a_control_group_limits_what_is_available(files, monkeypatch, tmp_path):
    fake(monkeypatch, tmp_path, files)
    if Path("/proc/meminfo").exists():
        assert memory.available_memory(CPU) == 900_000_000


def test_without_a_limit_it_is_what_the_system_calls_available(monkeypatch, tmp_path):
    fake(
        monkeypatch,
        tmp_path,
        {"memory.max": "max\n", "memory.current": "1\n", "memory.stat": "inactive_file 1\n"},
    )
    if not Path("/proc/meminfo").exists():
        pytest.skip("no /proc")
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    expected = int(lines["MemAvailable"].split()[0]) * 1024
    assert memory.available_memory(CPU) == pytest.approx(expected, rel=0.2)


def test_freed_memory_is_kept_without_changing_results():
    x = torch.arange(1_000_000.0)
    memory.keep_freed_memory()
    assert torch.equal(x * 2, x + x)
