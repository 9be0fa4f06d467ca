"""YAML files: decimal numbers, one place for a key, nothing that refers to another place; every text survives."""

import pytest
import yaml

from configs import loader
from configs.errors import ConfigError

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))


def load_file(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return loader.load(["--config", str(path)])[0]


@pytest.mark.parametrize(
    "content, message",
    [
        ("seed: 1\ntotal_steps: 9000\nseed: 2\n", "line 3: key 'seed' stands there twice"),
        ("agent: {critic_width: 8}\nagent: {actor_width: 8}\n", "line 2: key 'agent' stands there twice"),
        ("reset:\n  every: 1\n  every: 1\n", "line 3: key 'every' stands there twice"),
        (
            "agent.critic_width: 8\nagent: {critic_width: 8}\n",
            "option 'agent.critic_width' stands there twice",
        ),
        (b"branch_from: \xe9t\xe9\n", "is not UTF-8 text"),
        ("seed: 1\n".encode("utf-16"), "is not UTF-8 text"),
        (BOMB, "line 1: anchors, aliases and tags are not supported"),
        ("&a {env: *a}", "line 1: anchors, aliases and tags"),
        ("env: &a\n  atari: *a\n", "line 1: anchors, aliases and tags"),
        ("seed: !!int 010", "anchors, aliases and tags"),
        ("seed: !!int abc", "anchors, aliases and tags"),
        ("seed: !!python/name:os.system ''", "anchors, aliases and tags"),
        ("seed: {}", r"seed must be int, got \{\}"),
        ("reset: {at: {}}", r"reset.at must be a list of int, got \{\}"),
        ("sede: {}", "unknown option 'sede'"),
        ("a: " + "[" * 5000, "is nested too deeply"),
        ("? [seed]\n: 1", "line 1: a key must be text"),
        ("seed: 1:30", "seed must be int, got '1:30'"),
        ("replay: {replay_ratio: 1:30.5}", "replay_ratio must be float, got '1:30.5'"),
        ("seed: 0x10", "seed must be int, got '0x10'"),
        ("seed: 0b10", "seed must be int, got '0b10'"),
        (f"seed: {'9' * 5000}", "seed must be int, got '999"),
        ("replay: {replay_ratio: .inf}", "replay_ratio must be a finite number, got inf"),
        ("replay: {replay_ratio: .nan}", "replay_ratio must be a finite number, got nan"),
        ("reset: {until: -5}", "reset.until must be at least 0, got -5"),
        ("seed: 1\n---\nseed: 2\n", r"is not valid YAML \(line 2\): but found another document"),
        ("seed: [1\nagent: 3", r"is not valid YAML \(line 2\)"),
        ("seed: \x00", "is not valid YAML: unacceptable character"),
    ],
)
def test_what_is_refused_is_one_line_naming_the_file(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_file(tmp_path / "wrong.yaml", content)
    assert "wrong.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_integers_are_decimal(tmp_path):
    config = load_file(tmp_path / "own.yaml", "seed: 010\ntotal_steps: 0089_000\nreset: {at: [07, 1_0]}\n")
    assert (config.seed, config.total_steps, config.reset.at) == (10, 89_000, (7, 10))


def test_empty_sections_and_files_set_nothing(tmp_path):
    plain = loader.load([])[0]
    assert load_file(tmp_path / "own.yaml", "agent: {}\nreset:\n  trigger:\nenv: {atari: {}}\n") == plain
    assert load_file(tmp_path / "own.yaml", "# nothing\n") == plain
    assert load_file(tmp_path / "own.yaml", b"\xef\xbb\xbfseed: 0\n") == plain  # a byte order mark


def test_the_option_named_null_may_be_written_plainly(tmp_path):
    assert load_file(tmp_path / "own.yaml", "reset: {null: zero}").reset.options.null == "zero"


@pytest.mark.parametrize(
    "text",
    ["null?", "~", "yes", "010", "089", "1e5", "-.5", "1:30", "1:30.5", "0x10", ".inf", "0.5", "1_000", "2026-01-01",
     "x # y", "a: b", "- a", "", " a ", "été", "a\nb", "a\u2028b", "\t", "<<", "=", "&a", "*a", "!x", "'", '"', "{a",
     "[a", "@a", "%a", "`", "? a", "---", "...", "x" * 300, "x y " * 90],
)  # fmt: skip
def test_every_text_survives_writing_and_reading(tmp_path, text):
    config = loader.build(
        {"algo": "sac", "reset.strategy": "fire", "branch_from": text, "reset.networks": (text,)}
    )
    path = tmp_path / "config.yaml"
    written = loader.dump(config)
    path.write_text(written)
    assert loader.read_config(path) == config
    assert len(written.splitlines()) == len(
        loader.dump(loader.load([])[0]).splitlines()
    )  # one line an option
    elsewhere = yaml.safe_load(written)  # and any other reader of YAML finds it
    assert (elsewhere["branch_from"], elsewhere["reset"]["networks"]) == (text, [text])
