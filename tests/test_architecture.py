"""House rules that a machine can check: imports point one way, logged keys are documented, names do not clash."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fire.metrics.cheap import METRIC_KEYS
from fire.metrics.costly import DIAGNOSTIC_KEYS
from fire.resets.report import RESET_KEYS

ROOT = Path(__file__).parent.parent
COMMANDS = {"evaluate", "report", "sweep", "train"}
OURS = (
    "common",
    "configs",
    "fire",
    "envs",
    "agents",
    "training",
    "sweeps",
    "reports",
    "studies",
    *sorted(COMMANDS),
)
# docs/decisions.md explains what was added to the first sketch.
ALLOWED = {
    "common": {"common"},
    "configs": {"common", "configs", "fire.options", "fire.triggers", "fire.fields"},
    "fire": {"fire"},
    "envs": {"common", "configs", "envs"},
    "agents": {"common", "configs", "fire.network", "fire.resets.injection", "fire.regularizers", "agents"},
    "training": set(OURS) - COMMANDS - {"sweeps", "reports", "studies"},
    "sweeps": set(OURS) - COMMANDS - {"reports", "studies"},
    "studies": set(OURS) - COMMANDS - {"sweeps", "reports"},
    "reports": {"common", "configs", "envs", "training", "reports"},
    **{command: set(OURS) - COMMANDS - {"studies"} for command in COMMANDS},
}


def sources(package):
    path = ROOT / package
    return [ROOT / f"{package}.py"] if not path.is_dir() else sorted(path.rglob("*.py"))


def imported(path):
    """Full names of the modules that a file imports, relative ones made absolute."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= len(package), f"{path.relative_to(ROOT)} imports from above its package"
            above = package[: len(package) - node.level + 1] if node.level else ()
            yield ".".join((*above, *filter(None, [node.module])))


@pytest.mark.parametrize("package", OURS)
def test_imports_point_one_way(package):
    assert sources(package)
    for path in sources(package):
        for name in imported(path):
            if name.split(".")[0] in OURS:
                allowed = any(name == a or name.startswith(a + ".") for a in ALLOWED[package])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


def test_fire_names_nothing_of_ours_so_that_it_can_be_carried_away():
    for path in sources("fire"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for name in names:
                top = name.split(".")[0]
                assert top == "torch" or top in sys.stdlib_module_names, f"{path.relative_to(ROOT)}: {name}"


def test_the_schema_imports_nothing_of_ours_but_options():
    names = {name for name in imported(ROOT / "configs/schema.py") if name.split(".")[0] in OURS}
    assert names == {"fire.fields", "fire.options", "fire.triggers"}


def documented_keys():
    text = (ROOT / "docs/logged_keys.md").read_text()
    return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.MULTILINE))


def test_no_docstring_is_counted_on():
    """Under ``python -OO`` they are None."""
    for package in OURS:
        for path in (ROOT / package).rglob("*.py") if package not in COMMANDS else [ROOT / f"{package}.py"]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    assert "__doc__" not in (
                        getattr(node.value, "id", ""),
                        getattr(node.value, "attr", ""),
                    ), path


def test_every_metric_and_reset_key_is_documented_and_nothing_else():
    ours = {key for key in documented_keys() if key.startswith(("plasticity", "reset"))}
    assert ours == set(METRIC_KEYS) | set(DIAGNOSTIC_KEYS) | set(RESET_KEYS) | {
        "reset/<network>/recycled_units"
    }


def test_no_installed_package_needs_the_package_named_fire():
    """PyPI has a command-line package called fire; ours shadows it, so nothing here may depend on it."""
    for distribution in importlib.metadata.distributions():
        for requirement in distribution.requires or []:
            assert not re.match(r"fire([\s<>=!~;\[(]|$)", requirement) or "extra ==" in requirement, (
                f"{distribution.metadata['Name']} needs PyPI's fire"
            )


def test_the_loop_reads_in_one_sitting():
    assert len((ROOT / "training/loop.py").read_text().splitlines()) <= 180


@pytest.mark.parametrize(
    "command",
    [
        ["-c", "import train"],
        ["-m", "train", "--help"],
        ["-m", "evaluate", "--help"],
        ["-m", "sweep", "--help"],
    ],
)
def test_help_and_configuration_wait_for_no_heavy_import(command):
    """-v names every module as it is imported; PyTorch alone takes seconds."""
    process = subprocess.run(
        [sys.executable, "-v", *command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported_names = set(re.findall(r"^import '([^']+)'", process.stderr, flags=re.MULTILINE))
    assert "configs.errors" in imported_names
    assert not imported_names & {"torch", "gymnasium", "mujoco", "matplotlib", "tensorboard"}
