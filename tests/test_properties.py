"""Whatever flags, files, run folders and environments hold: it works, or one line says what is wrong, and where.

A sample of each; ``-m slow`` tries 1,000.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import evaluate
import train
from configs import loader
from configs.command_line import UNFLAGGED, flag_of
from configs.errors import ConfigError
from configs.schema import AGENT_CONFIGS
from envs import EnvError, make_vec
from tests.training.test_train import SMALL

# Numbers at the edges of what floats, ints and memory hold, and what is none.
NUMBERS = [
    *("0", "1", "2", "3", "-1", "-0", "0.5", "1e-300", "1e300", "-1e300", "1e400", "nan", "inf", "-inf"),
    *("9" * 30, "1e19", "007", "1_000", "0x10", "1:30", "1/2", "٣", "", " ", "null", "true", "no"),
]
TEXT = st.text(max_size=12) | st.sampled_from(
    [*NUMBERS, "fire", "q", "keep", "../x", "a" * 5000, "\x00", "\n", "--seed"]
)
# Where a large number asks for hours, not for an error.
LASTING = {
    *("total_steps", "num_agents", "env.num_envs", "env.action_repeat", "eval.episodes", "eval.steps"),
    *(
        "eval.max_episode_steps",
        "eval.num_envs",
        "replay.replay_ratio",
        "replay.batch_size",
        "log.probe_size",
    ),
    *("replay.n_step", "replay.learning_starts"),
}
# Not of this machine, or minutes of compiling.
UNTRIED = {"device", "compile", "profile", "cuda_graphs", "branch_from"}


def options(algo, reset):
    return loader.options_of(loader.load(["--algo", algo, "--reset", reset])[0])


def told(code, error, *words):
    """A command ended well, or with one line that holds one of ``words``."""
    lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
    if code == 0:
        assert not lines, error
        return
    assert code in (1, 2) and len(lines) == 1 and lines[0].startswith("error: "), error
    assert not words or any(str(word) in lines[0] for word in words), (lines[0], words)


def quietly(command, argv):
    """Run a ``main``; return its exit code and what it wrote to the standard error."""
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
        code = command(argv)
    return code, error.getvalue()


def words_of(path):
    """How a message may name an option: as a path, as a flag, or by its last part."""
    return [path, flag_of(path), path.rpartition(".")[2]]


@st.composite
def flags(draw):
    algo = draw(st.sampled_from(list(AGENT_CONFIGS)))
    reset = draw(st.sampled_from(loader.resets()))
    paths = sorted(set(options(algo, reset)) - UNFLAGGED)
    chosen = draw(st.lists(st.sampled_from(paths), min_size=1, max_size=4, unique=True))
    values = [(path, draw(st.lists(TEXT, max_size=3) | TEXT.map(lambda t: [t]))) for path in chosen]
    return algo, reset, values


def flags_are_understood_or_named(_):
    @given(flags())
    def check(drawn):
        algo, reset, values = drawn
        argv = ["--algo", algo, "--reset", reset]
        for path, given_values in values:
            argv += [flag_of(path), *given_values]
        try:
            config, _ = loader.load(argv)
        except ConfigError as error:
            # What follows a flag may be a flag itself, or a word too many.
            words = [word for path, _ in values for word in words_of(path)]
            words += [
                word for _, texts in values for text in texts for word in (repr(text), text.strip()) if word
            ]
            assert len(str(error).splitlines()) == 1 and any(word in str(error) for word in words), str(error)
        else:
            assert loader.build(loader.flatten_config(config)) == config

    return check


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
KEYS = st.sampled_from(sorted({part for path in options("dqn", "fire") for part in path.split(".")})) | TEXT
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4)
)


@st.composite
def file_contents(draw):
    kind = draw(st.sampled_from(["bytes", "text", "tree", "edited"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "text":
        return draw(st.text("abc:-[]{}&*!|>'\"#%@ \n\t01.,?", max_size=60)).encode()
    if kind == "tree":
        return yaml.safe_dump(draw(TREES), allow_unicode=draw(st.booleans())).encode("utf-8", "surrogatepass")
    lines = loader.dump(loader.load([*SMALL["dqn"].split()])[0]).splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        name = lines[place].partition(":")[0]
        new = draw(
            st.sampled_from(["", lines[place] * 2, f"{name}:", " " + lines[place]])
            | TEXT.map(f"{name}: {{}}".format)
        )
        lines[place : place + draw(st.integers(0, 1))] = [new]
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def files_are_understood_or_named(tmp_path):
    path = tmp_path / "file.yaml"

    @given(file_contents())
    def check(content):
        path.write_bytes(content)
        try:
            config, _ = loader.load(["--config", str(path)])
        except ConfigError as error:
            names = [
                *loader.options_of(loader.load([])[0]),
                *(f"--{flag}" for flag in ("algo", "reset", "preset")),
            ]
            said = str(error)
            assert len(said.splitlines()) == 1 and (
                str(path) in said or any(name in said for name in names)
            ), said
        else:
            assert loader.build(loader.flatten_config(config)) == config

    return check


@st.composite
def small_runs(draw):
    algo = draw(st.sampled_from(["dqn", "td3"]))
    reset = draw(st.sampled_from(loader.resets()))
    known = options(algo, reset)
    chosen = draw(
        st.lists(
            st.sampled_from(sorted(set(known) - UNFLAGGED - UNTRIED)), min_size=1, max_size=3, unique=True
        )
    )
    argv = []
    for path in chosen:
        option = known[path]
        pool = [str(value) for value in option.choices or ()]
        if option.kind in (int, float):
            pool += ["0", "1", "2", "3", "-1"]
            pool += [] if path in LASTING else ["1e-30", "0.5", "0.999999", "1e9", "1e19", "1e30"]
        if option.kind is bool:
            pool += ["true", "false"]
        if option.kind is str and not option.choices:
            pool += ["", "q", "head", "plasticity/q/srank", "x y"]
        pool += ["null"] if option.nullable else []
        values = st.sampled_from(pool)
        argv += [
            flag_of(path),
            *draw(st.lists(values, max_size=3) if option.is_list else values.map(lambda v: [v])),
        ]
    return algo, reset, argv


def configurations_run_or_are_named(tmp_path):
    number = iter(range(10**9))

    @given(small_runs())
    def check(drawn):
        algo, reset, extra = drawn
        run_dir = tmp_path / str(next(number))
        argv = [
            *SMALL[algo].split(),
            "--total-steps",
            "90",
            "--eval.episodes",
            "1",
            "--eval.max-episode-steps",
            "20",
        ]
        argv += ["--reset", reset, "--reset.until", "80", *extra, "--run-dir", str(run_dir)]
        if "--num-agents" in extra:
            assume(extra[extra.index("--num-agents") + 1] in ("1", "2", "-1", "0"))
        code, error = quietly(train.main, argv)
        told(code, error)
        shutil.rmtree(run_dir, ignore_errors=True)

    return check


DAMAGES = ("gone", "empty", "cut", "flipped", "other bytes", "folder", "loop", "another file", "text")


@st.composite
def damages(draw):
    def damage():
        how = draw(st.sampled_from(DAMAGES))
        return how, draw(st.floats(0, 1)), draw(st.floats(0, 1)), draw(st.binary(max_size=80))

    return [damage() for _ in range(draw(st.integers(1, 2)))]


def damaged(run_dir, how, which, where, junk):
    files = sorted(path for path in run_dir.rglob("*") if path.is_file())
    if not files:
        return
    path = files[int(which * (len(files) - 1))]
    content, other = path.read_bytes(), files[int(where * (len(files) - 1))].read_bytes()
    place = int(where * len(content))
    path.unlink()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(content[:place])
    elif how == "flipped":
        path.write_bytes(
            content[:place] + bytes(255 - byte for byte in content[place : place + 8]) + content[place + 8 :]
        )
    elif how == "other bytes":
        path.write_bytes(junk)
    elif how == "text":
        path.write_bytes(content[:place] + junk + content[place:])
    elif how == "folder":
        path.mkdir()
    elif how == "loop":
        os.symlink(path, path)
    elif how == "another file":
        path.write_bytes(other)


def damaged_folders_are_read_or_named(tmp_path):
    base = tmp_path / "finished"
    assert quietly(train.main, [*SMALL["dqn"].split(), "--run-dir", str(base)])[0] == 0
    run_dir = tmp_path / "run"

    @given(damages(), st.booleans())
    def check(drawn, evaluating):
        shutil.rmtree(run_dir, ignore_errors=True)
        shutil.copytree(base, run_dir)
        for how in drawn:
            damaged(run_dir, *how)
        if evaluating:
            told(*quietly(evaluate.main, [str(run_dir), "--episodes", "1"]), run_dir)
        else:
            told(*quietly(train.main, [*SMALL["dqn"].split(), "--run-dir", str(run_dir)]), run_dir)

    return check


SPACES = st.sampled_from(
    [
        *(
            spaces.Discrete(3),
            spaces.Discrete(2, start=-1),
            spaces.MultiBinary(3),
            spaces.MultiDiscrete([2, 3]),
        ),
        *(
            spaces.Box(-1, 1, shape, dtype)
            for shape in ((3,), (2, 2), (), (0,))
            for dtype in (np.float32, np.float64, np.int64)
        ),
        *(
            spaces.Box(-np.inf, np.inf, (2,), np.float32),
            spaces.Box(0, 255, (4, 4, 3), np.uint8),
            spaces.Text(4),
        ),
        *(
            spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Box(-1, 1, (2,))}),
            spaces.Tuple((spaces.Discrete(2),)),
        ),
        *(spaces.Sequence(spaces.Discrete(2)), spaces.Dict({}), spaces.Box(-1e30, 1e30, (1,), np.float64)),
        *(None, 3, "Discrete", spaces.Graph(spaces.Discrete(2), None), spaces.OneOf((spaces.Discrete(2),))),
    ]
)
ODD = st.sampled_from(
    [
        *(
            None,
            0,
            1,
            2.5,
            True,
            "x",
            b"x",
            [],
            [1.0],
            (1, 2),
            {},
            {"a": 1},
            np.zeros(3, np.float32),
            np.array([1.0]),
        ),
        *(
            np.array(2),
            np.float32(1),
            np.nan,
            np.inf,
            1e300,
            1j,
            np.array(["a"]),
            np.zeros((2, 2)),
            object(),
            np.bool_(True),
        ),
        *(np.int64(3), -1, 10**400, np.array(None), np.datetime64(0, "s"), range(3), lambda: 0),
    ]
)
RAISED = st.sampled_from(
    [None, ValueError("no\nlines"), KeyError("x"), StopIteration(), OSError(2, "x"), RecursionError()]
)


@st.composite
def environments(draw):
    """What an environment declares and returns; ``keeps`` are the parts that keep the contract."""
    keeps = draw(st.sets(st.sampled_from(["obs", "reward", "terminated", "truncated", "info", "action"])))
    return {
        "observation_space": draw(SPACES),
        "action_space": spaces.Discrete(2) if "action" in keeps else draw(SPACES),
        "keeps": keeps,
        "odd": {name: draw(ODD) for name in ("obs", "reward", "terminated", "truncated", "info")},
        "raises": {
            name: draw(RAISED) if draw(st.integers(0, 4)) == 0 else None for name in ("make", "reset", "step")
        },
        "returned": draw(st.sampled_from([5, 5, 5, 4, 6, 0])),
    }


class OddEnv(gym.Env):
    """Does what ``environments`` has drawn."""

    def __init__(self, drawn):
        self.drawn = drawn
        self._fail("make")
        for name in ("observation_space", "action_space"):
            if drawn[name] is not None:
                setattr(self, name, drawn[name])

    def _fail(self, where):
        if (error := self.drawn["raises"][where]) is not None:
            raise error

    def _part(self, name):
        if name not in self.drawn["keeps"]:
            return self.drawn["odd"][name]
        if name == "obs":
            return self.observation_space.sample()
        return {"reward": 1.0, "terminated": False, "truncated": False, "info": {}}[name]

    def reset(self, *, seed=None, options=None):
        self._fail("reset")
        return self._part("obs"), self._part("info")

    def step(self, action):
        self._fail("step")
        parts = [self._part(name) for name in ("obs", "reward", "terminated", "truncated", "info")]
        return tuple((parts * 2)[: self.drawn["returned"]])


def environments_play_or_are_named(_):
    @given(environments(), st.sampled_from([1, 2]))
    def check(drawn, action_repeat):
        gym.register("Drawn-v0", OddEnv, kwargs={"drawn": drawn})
        try:
            env = make_vec("Drawn-v0", 2, action_repeat)
            env.reset(0)
            for _ in range(3):
                env.step(env.random_action())
        except EnvError as error:
            assert len(str(error).splitlines()) == 1 and "Drawn-v0" in str(error), str(error)
        finally:
            del gym.registry["Drawn-v0"]

    return check


# How many cases: a sample, and all.
PROPERTIES = {
    flags_are_understood_or_named: (15, 1000),
    files_are_understood_or_named: (12, 1000),
    environments_play_or_are_named: (20, 1000),
    configurations_run_or_are_named: (3, 1000),
    damaged_folders_are_read_or_named: (3, 1000),
}


def hold(make, count, tmp_path):
    rules = settings(
        max_examples=count,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    rules(make(tmp_path))()


@pytest.mark.parametrize("make", PROPERTIES, ids=lambda make: make.__name__)
def test_a_sample(make, tmp_path):
    hold(make, PROPERTIES[make][0], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("make", PROPERTIES, ids=lambda make: make.__name__)
def test_a_thousand(make, tmp_path):
    hold(make, PROPERTIES[make][1], tmp_path)
