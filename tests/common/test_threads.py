"""OpenMP's waiting policy is set before PyTorch is loaded, and the user's own choice stays."""

import os
import subprocess
import sys

import pytest

from common.threads import let_idle_threads_sleep

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "20"}])
def test_the_users_own_setting_stays(given, monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    let_idle_threads_sleep()
    found = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    assert found == (given or {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"})


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_commands_set_it_before_pytorch_is_loaded(command):
    code = (
        f"import os, sys, {command}\n"
        f"try: {command}.main(['--no-such-flag'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
        "print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["PASSIVE"], done.stderr
