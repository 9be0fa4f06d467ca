"""Evaluation: episode accounting on CartPole, independence of the number of environments, the command."""

import json
import re
import shutil
from pathlib import Path

import gymnasium as gym
import imageio.v3 as imageio
import numpy as np
import pytest

import evaluate as evaluation
from configs import loader
from envs import make_vec
from training import loop
from training.evaluation import Evaluation, RandomPolicy, evaluate


class PushRight:
    def act_greedy(self, obs):
        return np.ones(len(obs), dtype=np.int64)


def test_returns_equal_a_plain_gymnasium_loop():
    """Constant pushes topple the pole after a number of steps that only the start decides; each step pays 1."""
    result = evaluate(PushRight(), make_vec("CartPole-v1", 1), 30, seed=0)
    env = gym.make("CartPole-v1")
    lengths = []
    for seed in range(300):
        env.reset(seed=seed)
        ended, length = False, 0
        while not ended:
            _, _, terminated, truncated, _ = env.step(1)
            ended, length = terminated or truncated, length + 1
        lengths.append(length)
    assert result.returns == tuple(float(length) for length in result.lengths)
    assert set(result.lengths) <= set(lengths)
    assert result.mean == pytest.approx(np.mean(lengths), abs=5 * np.std(lengths) / np.sqrt(30))


@pytest.mark.parametrize("num_envs", [1, 3, 4])
def test_every_environment_plays_a_fixed_share(num_envs):
    env = make_vec("CartPole-v1", num_envs)
    result = evaluate(RandomPolicy(env), env, 10, seed=3)
    assert len(result.returns) == 10
    again = evaluate(RandomPolicy(env), env, 10, seed=3)
    assert again == result
    assert evaluate(RandomPolicy(env), env, 10, seed=4) != result


def test_short_episodes_are_not_favoured():
    """With as many environments as episodes, each plays exactly one, however long the others take."""
    env = make_vec("CartPole-v1", 40)
    many = evaluate(RandomPolicy(env), env, 40, seed=0)
    # The random policy's mean is about 22 steps (standard deviation 12); the first 40 to finish would average far less.
    assert many.mean == pytest.approx(22, abs=5 * 12 / np.sqrt(40))


def test_summary_statistics():
    result = Evaluation((1.0, 2.0, 6.0), (10, 20, 30))
    assert (result.mean, result.mean_length) == (3.0, 20.0)
    assert result.stderr == pytest.approx(np.std([1, 2, 6], ddof=1) / np.sqrt(3))
    assert result.success_rate(2.0) == pytest.approx(2 / 3)
    low, high = result.interval
    assert 1.0 <= low < 3.0 < high <= 6.0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    argv = (
        "--algo dqn --env CartPole-v1 --preset quick --total-steps 300 --replay.learning-starts 100 "
        "--reset.every 0 --eval.episodes 2 --eval.every 200 --agent.hidden-widths 8 --num-threads 1"
    )
    config, _ = loader.load(argv.split())
    loop.train(config, folder)
    return folder


def test_command_prints_figures_and_writes_json(run_dir, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert (
        evaluation.main([str(run_dir), "--episodes", "5", "--checkpoint", "latest", "--json", str(path)]) == 0
    )
    figures = json.loads(path.read_text())
    assert figures["episodes"] == len(figures["returns"]) == 5
    assert figures["env_step"] == 300 and figures["random_score"] is None
    assert figures["mean_return"] == pytest.approx(np.mean(figures["returns"]))
    low, high = figures["interval_95"]
    assert low <= figures["mean_return"] <= high
    assert f"{figures['mean_return']:.2f}" in capsys.readouterr().out


def test_the_policy_beside_its_options_is_all_that_playing_needs(run_dir, tmp_path, capsys):
    (best,) = (run_dir / "checkpoints").glob("best_*")
    shutil.copytree(best, tmp_path / "checkpoints" / best.name)
    shutil.copy(run_dir / "config.yaml", tmp_path)
    tables = []
    for folder in (run_dir, tmp_path):
        assert evaluation.main([str(folder), "--episodes", "2"]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    (newest,) = (run_dir / "checkpoints").glob("step_*")
    assert (best / "agent.pt").stat().st_size < (newest / "agent.pt").stat().st_size / 2


def test_the_committed_policy_walks(capsys):
    """Whole steps, however the physics rounds on this processor: the random policy gets 4, the policy about 580."""
    folder = Path(__file__).parents[1] / "results/policies/h1-walk-laptop"
    assert evaluation.main([str(folder), "--episodes", "2"]) == 0
    assert float(re.search(r"mean_return +(\S+)", capsys.readouterr().out).group(1)) > 200


def test_command_needs_neither_the_precision_nor_the_compiler_of_the_updates(run_dir, tmp_path, monkeypatch):
    """A run trained in TensorFloat-32 on a GPU is evaluated on the CPU."""
    shutil.copytree(run_dir, tmp_path / "run")
    path = tmp_path / "run/config.yaml"
    text = path.read_text()
    for plain, other in (("precision: float32", "precision: tf32"), ("compile: false", "compile: true")):
        assert plain in text
        text = text.replace(plain, other)
    path.write_text(text)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert evaluation.main([str(tmp_path / "run"), "--episodes", "1"]) == 0


def test_command_changes_nothing_in_the_folder_of_a_run_that_may_be_writing(run_dir, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    (best,) = (folder / "checkpoints").glob("best_*")
    best.rename(best.with_name(f".{best.name}.replaced"))  # as between the two renames of a second save
    (folder / "checkpoints/.step_000000000310.partial").mkdir()
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert evaluation.main([str(folder), "--episodes", "1"]) == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_command_writes_a_video_of_the_first_episode(run_dir, tmp_path, name, capsys):
    path = tmp_path / name
    assert evaluation.main([str(run_dir), "--episodes", "1", "--video", str(path)]) == 0
    frames = imageio.imread(path)
    assert frames.ndim == 4 and frames.shape[-1] == 3
    played = int(re.search(r"(\d+) frames", capsys.readouterr().out).group(1))
    # GIF stores a picture that does not change as one longer frame.
    assert len(frames) == played if path.suffix == ".mp4" else 1 < len(frames) <= played
    assert np.asarray(frames[0]).std() > 1  # a picture, not a uniform field


@pytest.mark.parametrize(
    "argv, message",
    [
        (["missing"], "missing is no run folder"),
        (["RUN", "--episodes", "0"], "--episodes must be at least 1, got 0"),
        (["RUN", "--seed", "-1"], "--seed must be at least 0, got -1"),
        (["RUN", "--json", "no/such/folder.json"], "no folder no/such"),
        (["RUN", "--video", "clip.avi"], r"clip.avi: must end in .mp4 or .gif"),
    ],
)
def test_wrong_input_is_one_line(run_dir, argv, message, capsys):
    assert evaluation.main([str(run_dir) if a == "RUN" else a for a in argv]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
