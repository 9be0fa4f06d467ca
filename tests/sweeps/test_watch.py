"""What a person sees of a sweep, and what it knows of runs at work."""

import io
from unittest import mock

from rich.console import Console

from sweeps.checks import inspect
from sweeps.estimate import estimate
from sweeps.programs import kind_of
from sweeps.progress import RunProgress
from sweeps.queue import PROCESS_BYTES, Limits, Queue
from sweeps.state import Journal
from sweeps.watch import Watch, duration
from tests.sweeps.sweep_cases import BASE, plan, sweep_here

SCALARS = "env_step,key,value\n100,rollout/ep_rew_mean,12.5\n100,time/total_timesteps,100.0\n"
EVALUATIONS = "env_step,when,mean_return\n0,random_policy,9.0\n"


def queue_of(folder, text, workers=2, memory=None):
    runs = plan(folder, text).runs
    limits = Limits(workers, 1, memory)
    (folder / "out").mkdir(exist_ok=True)
    everything = {run.name: run for run in runs}
    demands = inspect(runs, "here", False)
    return Queue(runs, everything, folder / "out", demands, set(), limits, Journal(folder / "out"), Watch())


def test_progress_reads_on_and_knows_the_speed(tmp_path, monkeypatch):
    now = [50.0]
    monkeypatch.setattr("sweeps.progress.time.monotonic", lambda: now[0])
    progress = RunProgress(tmp_path, 1_000)
    progress.update()  # nothing there yet
    (tmp_path / "scalars.csv").write_text(SCALARS)
    (tmp_path / "evaluations.csv").write_text(EVALUATIONS)
    progress.update()
    assert (progress.env_step, progress.mean_return, progress.evaluation) == (100, 12.5, None)
    assert progress.speed is None and progress.seconds_left is None
    with (tmp_path / "scalars.csv").open("a") as file:
        file.write("300,rollout/ep_rew_mean,20.0\n300,time/total_timesteps,300.0\n400,time/total_timest")
    with (tmp_path / "evaluations.csv").open("a") as file:
        file.write("250,periodic,15.0\nnonsense\n")
    now[0] = 54.0
    progress.update()
    assert (progress.env_step, progress.mean_return, progress.evaluation) == (300, 20.0, 15.0)
    assert progress.speed == 50.0 and progress.seconds_left == 14.0
    (tmp_path / "scalars.csv").write_text(SCALARS)  # a run that goes on from an earlier checkpoint
    progress.update()
    assert progress.env_step == 100 and progress.speed is None


def test_the_table_shows_every_run_and_the_lines_every_start_and_end(tmp_path, started, monkeypatch):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120, height=40, color_system=None)
    monkeypatch.setattr("sweeps.session.Watch", lambda: Watch(console))
    (tmp_path / "out/reset=full/seed0").mkdir(parents=True)
    (tmp_path / "out/reset=full/seed0/letter.txt").touch()
    assert sweep_here(tmp_path, BASE + "grid: {reset: [none, full]}\n") == 1
    shown = output.getvalue()
    for words in (
        "reset=none/seed0 starts",
        "reset=none/seed0 is finished",
        "reset=full/seed0 FAILED: error:",
    ):
        assert words in shown
    table = shown[shown.rindex("steps/s") :]
    assert [line.split()[:3] for line in table.splitlines()[1:3]] == [
        ["reset=full/seed0", "FAILED", "0"],
        ["reset=none/seed0", "finished", "200"],
    ]


def test_the_time_left_comes_from_the_speeds_seen(tmp_path):
    queue = queue_of(tmp_path, BASE + "grid: {seed: {count: 4}}\n")
    watch = Watch()
    assert watch.seconds_left(queue) is None
    for run, steps in (("seed0", 150), ("seed1", 50)):  # one that runs evenly, one that has begun slowly
        watch._kinds[run] = kind_of(queue.waiting[0])
        watch._progress[run] = RunProgress(tmp_path, 200)
        watch._progress[run].seen_steps, watch._progress[run].seen_seconds = steps, 10.0
    assert watch.seconds_left(queue) == 4 * 200 / 10 / 2
    assert "0 of 4 runs finished" in watch.summary(queue)
    assert [duration(s) for s in (None, 40, 720, 3 * 3600, 90 * 3600)] == [
        "?",
        "40 s",
        "12 min",
        "3.0 h",
        "3.8 days",
    ]


def test_no_more_is_started_than_memory_holds(tmp_path, started):
    """Two observations of four float32, an action of 8 bytes, a reward of 4, two flags: 46 bytes a transition."""
    text = BASE.replace("total_steps: 200", "total_steps: 100_000_000, replay.replay_capacity: 10_000_000")
    queue = queue_of(tmp_path, text + "grid: {seed: {count: 3}}\n", workers=3, memory=2_000_000_000)
    needed = [queue.bytes_of(program) for program in queue.waiting]
    assert needed == [PROCESS_BYTES + 46 * 10_000_000] * 3
    lines = "\n".join(line for line in estimate_without_speed(queue))
    assert "memory: at most 1.9 GB of 2.0 GB available, 2 programs at a time" in lines
    assert (
        "disk: at most 2.8 GB of" in lines
    )  # three newest checkpoints, and three more that are just being written


def estimate_without_speed(queue):
    with mock.patch("sweeps.estimate._hours", return_value=[]):
        return estimate(queue)
