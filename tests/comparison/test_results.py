"""The lines of results: found again, appended to, and mended after a kill."""

import errno
import json
import os

import pytest

from grass_jax.comparison.results import Results
from grass_jax.config import ConfigError
from grass_jax.report.atomic import DiskFullError

LINE = {"config_hash": "h", "arm": "gs", "seed": 0, "evaluation": "probe", "budget": "10", "list": 1, "miou": 0.5}


def test_lines_are_appended_with_their_origin_and_found_again(tmp_path):
    path = tmp_path / "some" / "results.jsonl"
    results = Results(path)
    assert not results.has(**{k: v for k, v in LINE.items() if k != "miou"})
    results.add([LINE])
    results.add([LINE | {"list": 2}])
    again = Results(path)
    assert [row["list"] for row in again.rows] == [1, 2]
    assert again.rows == results.rows
    assert {"commit", "hardware", "versions", "date"} <= set(again.rows[0])
    key = {k: v for k, v in LINE.items() if k != "miou"}
    assert again.has(**key)
    for name, other in {"config_hash": "i", "arm": "g", "seed": 1, "evaluation": "finetune", "budget": "50"}.items():
        assert not again.has(**key | {name: other})


@pytest.mark.parametrize(("end", "kept"), [('{"config_hash": "h", "ar', [1]), (json.dumps(LINE | {"list": 5}), [1, 5])])
def test_a_last_line_without_its_end_is_dropped_or_ended(tmp_path, end, kept):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + end)
    results = Results(path)
    assert [row["list"] for row in results.rows] == kept
    results.add([LINE | {"list": 9}])
    lists = [json.loads(line)["list"] for line in path.read_text().splitlines()]
    assert lists == [*kept, 9]
    assert [row["list"] for row in Results(path).rows] == lists


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(LINE) + "\n{]\n" + json.dumps(LINE) + "\n")
    with pytest.raises(
        ConfigError, match=r"^config\.results: Line 2 of .*results\.jsonl is not a whole result: remove"
    ):
        Results(path)


@pytest.mark.parametrize("line", ["5", "null", "[]", "{}", json.dumps(LINE | {"seed": None}), '{"arm": ["gs"]}'])
def test_a_line_that_is_no_result_is_named(tmp_path, line):
    path = tmp_path / "results.jsonl"
    path.write_text(json.dumps(LINE) + f"\n{line}\n")
    with pytest.raises(ConfigError, match=r"^config\.results: Line 2 of .*results\.jsonl is no result: remove it\.$"):
        Results(path)


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
    def fails(number):
        def fsync(_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    results = Results(tmp_path / "results.jsonl")
    fails(errno.ENOSPC)
    with pytest.raises(DiskFullError, match=r"results\.jsonl cannot be written, as its disk is full: make room"):
        results.add([LINE])
    fails(errno.EIO)
    with pytest.raises(OSError, match="Input/output") as error:
        results.add([LINE])
    assert not isinstance(error.value, DiskFullError)
