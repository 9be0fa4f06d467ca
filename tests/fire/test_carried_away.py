"""The folder ``fire/`` alone, under another name and without the repository, as someone would copy or install it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]

WITHOUT_TORCH = """
import sys
import borrowed
from borrowed import fields, options, triggers
assert "torch" not in sys.modules
assert options.OPTIONS["fire"]().scale == "paper"
"""

WITH_TORCH = """
import copy, sys
import torch
from torch import nn
import borrowed

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5), nn.ReLU(), nn.Linear(5, 2))
report = borrowed.fire_(net)
assert [layer.layer for layer in report.layers] == ["0", "3", "5"]
values = torch.linalg.svdvals(net[3].weight.detach())
torch.testing.assert_close(values, torch.full((5,), (5 / 36) ** 0.5))

def build(generator):
    fresh = copy.deepcopy(net)
    for parameter in fresh.parameters():
        nn.init.normal_(parameter, generator=generator)
    return fresh

slot = borrowed.NetworkSlot(
    module=net,
    optimizer=torch.optim.Adam(net.parameters()),
    build=build,
    initial=lambda: copy.deepcopy(net),
    forward=net,
    loss=lambda batch: net(batch).square().mean(),
)
batch = torch.randn(8, 1, 5, 5)
for name in borrowed.REGISTRY:
    reset = borrowed.make_reset(name, borrowed.options.OPTIONS[name]())
    borrowed.reset_networks({"net": slot}, reset, batch, torch.Generator().manual_seed(1))
assert "plasticity/net/dormant_ratio" in borrowed.measure({"net": slot}, batch)
assert set(borrowed.__all__) <= set(dir(borrowed)) and all(hasattr(borrowed, n) for n in borrowed.__all__)
assert not any(name.split(".")[0] in ("fire", "common", "configs", "agents") for name in sys.modules)
"""


def test_a_copy_of_the_folder_works_under_another_name(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "fire", tmp_path / "borrowed", ignore=shutil.ignore_patterns("__pycache__"))
    for script in (WITHOUT_TORCH, WITH_TORCH):
        process = subprocess.run(  # -I: neither the repository nor the environment's paths
            [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{script}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr


def test_pip_installs_every_package_of_the_folder() -> None:
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "fire").rglob("__init__.py")}
    assert set(setup["packages"]) == {".".join(("fire_reset", *folder.parts[1:])) for folder in folders}
    assert setup["package-dir"] == {"fire_reset": "fire"}
