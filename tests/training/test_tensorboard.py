"""What TensorBoard is given, read back by its own readers from small runs."""

import contextlib
import io
import itertools
import re
import time

import imageio.v3 as imageio
import numpy as np
import pytest
from PIL import Image, ImageSequence
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.context import RequestContext
from tensorboard.data import server_ingester
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import metadata
from tensorboard.util import grpc_util

from common.seeding import stream_seed
from common.video import CLIP_FRAMES, Clip
from configs import loader
from envs import make_evaluation_env
from tests.training.test_train import RESETS, SMALL, run, run_interrupted, table
from training import trainer
from training.dashboard import CHARTS, FIRST_COLUMNS, SCORES, layout
from training.evaluation import RandomPolicy, evaluate
from training.summary import reset_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was interrupted between its resets and went on."""
    path = tmp_path_factory.mktemp("tensorboard") / "dqn"
    run_interrupted(path, "dqn", 120)
    return path


@pytest.fixture(scope="module")
def events(folder):
    return EventAccumulator(str(folder), size_guidance={"histograms": 0, "tensors": 0, "scalars": 0}).Reload()


@pytest.fixture(scope="module")
def shown(folder):
    """Returns the points that TensorBoard's data server gives its page, by tag."""
    try:
        server = server_ingester.get_server_binary()
    except server_ingester.NoDataServerError as error:
        pytest.skip(str(error))
    local = grpc_util.ChannelCredsType.LOCAL
    ingester = server_ingester.SubprocessServerDataIngester(
        server, str(folder), reload_interval=1, channel_creds_type=local, samples_per_plugin={"scalars": 0}
    )
    ingester.start()

    def points(read, plugin):
        found = read(RequestContext(), experiment_id="", plugin_name=plugin, downsample=1000)
        return found.get(".", {})

    last = int((folder / "evaluations.csv").read_text().splitlines()[-1].split(",")[0])
    for _ in range(100):  # it reads in the background
        scalars = points(ingester.data_provider.read_scalars, "scalars")
        if any(point.step == last for point in scalars.get("eval/mean_reward", [])):
            break
        time.sleep(0.1)
    histograms = points(ingester.data_provider.read_tensors, "histograms")
    values = {tag: [(each.step, each.value) for each in found] for tag, found in scalars.items()}
    return values | {tag: [(each.step, each.numpy) for each in found] for tag, found in histograms.items()}


def test_the_first_screen_has_at_most_twelve_cards_and_layers_are_apart(events):
    """TensorBoard opens the first two groups by name; SAC's and Atari's further cards are three."""
    tags = events.Tags()["scalars"] + events.Tags()["histograms"]
    groups = sorted({tag.split("/")[0] for tag in tags})
    assert groups[:2] == ["eval", "eval_interval"]
    assert sum(tag.startswith(("eval/", "eval_interval/")) for tag in tags) <= 12 - 3
    for tag in events.Tags()["scalars"]:
        assert (tag.split("/")[0] in ("plasticity_layers", "reset_layers")) == (tag.count("/") == 3), tag


def test_the_dashboard_has_a_chart_for_what_is_logged_and_no_empty_one(events):
    newest = events.Tensors("custom_scalars__config__")[-1]
    found = Layout.FromString(newest.tensor_proto.string_val[0])
    assert [category.title for category in found.category] == ["learning", "plasticity", "resets"]
    scalars = events.Tags()["scalars"]
    for category in found.category:
        for chart in category.chart:
            patterns = list(chart.multiline.tag)
            for series in chart.margin.series:
                assert {series.value, series.lower, series.upper} <= set(scalars)
                patterns.append(re.escape(series.value) + "$")
            for pattern in patterns:
                matched = [tag for tag in scalars if re.match(pattern, tag)]
                assert 1 <= len(matched) <= 6 and not any("layers" in tag for tag in matched), pattern
    titles = {chart.title for category in found.category for chart in category.chart}
    assert "critic loss" in titles and "policy: share of equal greedy actions" in titles
    assert "actor loss" not in titles and "policy: KL of before from after" not in titles


def test_every_chart_has_its_place_once_its_keys_are_logged():
    alternatives = r"\(critic_\)\?|\(before\|after\)|\(value_correlation\|feature_cka\)"
    keys = {re.sub(alternatives, "", key) for chart in CHARTS for key in chart.keys}
    keys = {key.replace("[^/]+", "net") for key in keys}
    keys |= {"reset/net/dfi_any_scale_before", "reset/net/feature_cka"}
    found = layout(keys)
    assert list(found) == ["learning", "plasticity", "resets", "tasks"]
    assert sum(map(len, found.values())) == len(CHARTS)
    assert layout(()) == {}


def test_an_interval_is_logged_with_its_three_curves(shown, folder):
    rows = np.genfromtxt(folder / "evaluations.csv", delimiter=",", names=True, dtype=None, encoding="utf-8")
    rows = [row for row in rows if row["when"] != "random_policy"]
    columns = {
        "mean_return": "eval/mean_reward",
        "low_95": "eval_interval/low_95",
        "high_95": "eval_interval/high_95",
    }
    after = [*rows[1:], None]
    steps = [
        row["env_step"] - (other is not None and other["env_step"] == row["env_step"])
        for row, other in zip(rows, after, strict=True)
    ]
    assert len(set(steps)) == len(rows) > len({row["env_step"] for row in rows})
    for column, key in columns.items():
        values = [pytest.approx(row[column], rel=1e-6) for row in rows]
        assert shown[key] == list(zip(steps, values, strict=True))


def test_the_run_is_a_row_of_the_table_of_hyperparameters(events):
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    options = metadata.parse_session_start_info_plugin_data(content).hparams
    assert options["algo"].string_value == "dqn" and options["env.id"].string_value == "CartPole-v1"
    assert options["agent.hidden_widths"].string_value == "16" and options["reset.every"].number_value == 80
    assert not [path for path in options if path.startswith(("log.", "eval.", "device"))]
    content = events.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    scores = {info.name.tag for info in metadata.parse_experiment_plugin_data(content).metric_infos}
    assert scores == set(SCORES) <= set(events.Tags()["scalars"])
    # The server sorts them by this mark, then by name.
    columns = metadata.parse_experiment_plugin_data(content).hparam_infos
    assert {info.name for info in columns} == set(options)
    assert tuple(sorted(info.name for info in columns if info.differs)) == FIRST_COLUMNS


def test_tensorboard_shows_what_was_right_before_a_reset_and_right_after_it(shown, folder):
    for record in reset_records(folder):
        step = record["env_step"]
        keys = [key for key in record["before"] if key.startswith("plasticity/")]
        assert len(keys) > 5
        for key in keys:
            points = dict(shown[key])
            assert points[step - 1] == pytest.approx(record["before"][key], rel=1e-6)
            assert points[step] == pytest.approx(record["after"][key], rel=1e-6)
        spectra = {at: histogram[histogram[:, 2] > 0, 1] for at, histogram in shown["spectrum/q/hidden1"]}
        # A multiple of an isometry, of the norm of 16 x 4 weights of variance 2 / (4 + 16): Glorot and Bengio 2010.
        assert spectra[step] == pytest.approx([(16 * 4 * 0.1 / 4) ** 0.5], rel=0.25)
        assert spectra[step - 1] != pytest.approx(spectra[step])


def test_resets_are_marked_in_words(events, folder):
    marks = events.Tensors("resets/text_summary")
    assert [mark.step - due in range(3) for mark, due in zip(marks, RESETS, strict=True)] == [True, True]
    for index, (mark, record) in enumerate(zip(marks, reset_records(folder), strict=True), 1):
        text = mark.tensor_proto.string_val[0].decode()
        assert f"**Reset {index}**" in text and "fire (every)" in text
        for side in ("before", "after"):
            assert f" {record[side]['mean_return']:.4g} |" in text
            assert f" {record[side]['plasticity/q/dfi_any_scale']:.4g} |" in text
        assert f"q: greedy_agreement | {record['report']['reset/q/greedy_agreement']:.4g} |" in text


def test_each_matrix_has_a_spectrum(events):
    assert sorted(events.Tags()["histograms"]) == ["spectrum/q/hidden1", "spectrum/q/output"]


@pytest.mark.parametrize("limit, flags", [(0.0, ()), (1e9, ("--log.histograms", "false"))])
def test_spectra_of_large_networks_are_left_out_and_so_are_unwanted_ones(limit, flags, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "CHEAP_SPECTRA", limit)
    run(tmp_path, "dqn", *flags, "--total-steps", "100")
    assert EventAccumulator(str(tmp_path)).Reload().Tags()["histograms"] == []


def test_an_episode_moves_before_and_after_each_reset_and_no_number_does(tmp_path):
    run(tmp_path / "plain", "dqn")
    run(tmp_path / "filmed", "dqn", "--log.video", "true")
    assert table(tmp_path / "filmed/scalars.csv") == table(tmp_path / "plain/scalars.csv")
    events = EventAccumulator(str(tmp_path / "filmed"), size_guidance={"images": 0}).Reload()
    resets = [record["env_step"] for record in reset_records(tmp_path / "filmed")]
    steps = {tag: [event.step for event in events.Images(tag)] for tag in events.Tags()["images"]}
    around = {"video/before_reset": resets, "video/after_reset": resets}
    assert steps == {"video/random_policy": [0], **around, "video/end": [201]}
    config, _ = loader.load([*SMALL["dqn"].split()])
    with contextlib.closing(make_evaluation_env(config, config.eval.num_envs, "rgb_array")) as env:
        clip, seed = Clip(env.frames_per_second), stream_seed(config.seed, "eval_env", 0)
        length = evaluate(RandomPolicy(env), env, config.eval.episodes, seed, clip).lengths[0]
    [first] = events.Images("video/random_policy")
    assert first.encoded_image_string.startswith(b"GIF89a")
    assert (first.height, first.width, 3) == clip.frames[0].shape and len(clip.frames) == length
    # Equal pictures in a row are one frame of the file that is shown longer.
    changes = sum(not np.array_equal(*pair) for pair in itertools.pairwise(clip.frames))
    with Image.open(io.BytesIO(first.encoded_image_string)) as gif:
        seconds = [frame.info["duration"] / 1000 for frame in ImageSequence.Iterator(gif)]
    assert len(seconds) == 1 + changes > length / 2
    assert sum(seconds) == pytest.approx(length / env.frames_per_second)
    assert EventAccumulator(str(tmp_path / "plain")).Reload().Tags()["images"] == []


def test_a_long_episode_is_thinned_and_keeps_its_pace():
    clip = Clip(frames_per_second=50)
    for number in range(1000):
        clip.append(np.full((480, 320, 3), number % 256, dtype=np.uint8))
    assert 100 <= len(clip.frames) <= CLIP_FRAMES and clip.frames[0].shape == (160, 107, 3)
    file = clip.gif()
    assert len(imageio.imread(file, extension=".gif")) == len(clip.frames)
    shown = len(clip.frames) * imageio.immeta(file, extension=".gif")["duration"] / 1000
    assert shown == pytest.approx(1000 / 50, rel=0.05)


def test_a_resumed_run_takes_another_choice_of_histograms(tmp_path):
    run(tmp_path, "dqn", "--total-steps", "100", "--log.histograms", "false")
    assert run(tmp_path, "dqn", "--total-steps", "120").clock.finished
