"""Reference scores: every key is a registered id, and lookups accept short names."""

from __future__ import annotations

import pytest

from envs import EnvError, random_score, resolve_env_id, success_score
from envs.humanoid.tasks import TASKS
from envs.scores import SCORES


def test_scores():
    assert (random_score("h1-walk"), success_score("h1-walk-v0")) == (2.377, 700.0)
    assert random_score("CartPole-v1") is None
    with pytest.raises(EnvError):
        success_score("h1-wlak")


def test_keys_are_humanoidbench_ids_and_cover_every_native_task():
    # The 14 tasks SimBa reports.
    published = {"balance_hard", "balance_simple", "crawl", "hurdle", "maze", "pole", "reach", "run"}
    published |= {"sit_hard", "sit_simple", "slide", "stair", "stand", "walk"}
    native = {f"h1-{name}-v0" for name in TASKS}
    assert {f"h1-{name}-v0" for name in published} < SCORES.keys() == native
    for env_id in native:
        assert resolve_env_id(env_id) == env_id
        assert success_score(env_id) == TASKS[env_id.split("-")[1]].success
        known = random_score(env_id) is not None
        assert known == (env_id.split("-")[1] in published)
        assert not known or 0 < random_score(env_id) < success_score(env_id)
