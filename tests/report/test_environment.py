import json
import os
import platform
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from grass_jax.report import environment as module
from grass_jax.report.environment import environment


def test_environment_names_software_and_hardware():
    described = json.loads(json.dumps(environment()))
    assert described["python"] == platform.python_version()
    assert described["versions"]["jax"] == jax.__version__
    assert described["versions"]["numpy"] == np.__version__
    assert described["versions"].keys() >= {"grass_jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets"}
    assert (described["backend"], described["device_count"]) == (jax.default_backend(), len(jax.devices()))
    assert described["process_count"] == 1
    assert 1 <= described["cpu_count"] <= (os.cpu_count() or 1)
    assert described["memory_bytes"] > 2**28


def test_a_package_that_is_not_installed_has_no_version():
    assert module._version("grass-jax-that-nobody-installed") is None


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "first")
    return tmp_path, git("rev-parse", "HEAD")


def test_commit_of_a_checkout_and_whether_it_was_changed(checkout):
    root, commit = checkout
    assert module._commit(root) == commit
    (root / "file").write_text("two")
    assert module._commit(root) == f"{commit}+changes"


def test_no_commit_of_another_project_around_an_installed_package(checkout):
    root, _ = checkout
    installed = root / "site-packages"
    installed.mkdir()
    assert module._commit(installed) is None


def test_no_commit_without_git(monkeypatch, checkout):
    monkeypatch.setenv("PATH", str(Path(checkout[0]) / "nowhere"))
    assert module._commit(checkout[0]) is None
