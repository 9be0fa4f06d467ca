"""Every key and every reset is documented, and every reset has its YAML."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from fire.metrics.cheap import METRIC_KEYS
from fire.metrics.costly import DIAGNOSTIC_KEYS
from fire.options import OPTIONS
from fire.resets.registry import REGISTRY
from fire.resets.report import RESET_KEYS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page, keys", [("metrics.md", METRIC_KEYS), ("resets.md", RESET_KEYS)])
def test_documented_keys_are_the_keys(page: str, keys: tuple[str, ...]) -> None:
    text = (ROOT / "docs" / page).read_text()
    assert set(re.findall(r"^\| `((?:plasticity|reset)(?:_layers)?/[^`]*)`", text, re.MULTILINE)) == set(keys)


def test_documented_diagnostics_are_the_diagnostics() -> None:
    text = (ROOT / "docs" / "metrics.md").read_text()
    rare = text[text.index("## Rare") :]
    documented = {f"plasticity/<network>/{name}" for name in re.findall(r"^\| `([^`]*)`", rare, re.MULTILINE)}
    assert documented == set(DIAGNOSTIC_KEYS)


def test_every_reset_is_in_the_table_and_has_a_valid_yaml() -> None:
    text = (ROOT / "docs" / "resets.md").read_text()
    named = set()
    for path in sorted((ROOT / "configs" / "reset").glob("*.yaml")):
        content = path.read_text()
        assert content.startswith("# "), path
        options = dict(yaml.safe_load(content)["reset"])
        name = options.pop("strategy")
        for key in ("temperature", "normalizer"):
            options.pop(key, None)  # keys of the agent, beside the strategy's own
        OPTIONS[name](**options)
        named.add(path.stem)
    assert set(REGISTRY) <= named
    for name in REGISTRY:
        assert f"| `{name}` |" in text
