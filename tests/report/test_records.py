"""JSON files that are whole, missing or damaged."""

import pytest

from grass_jax.report.records import read_record


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[1]", b'"x"', b"\x00", b"\xff", b"[" * 100_000])
def test_what_is_damaged_is_empty_and_said(tmp_path, caplog, text):
    path = tmp_path / "a.json"
    path.write_bytes(text)
    assert read_record(path) == {}
    assert not caplog.messages
    assert read_record(path, "it is made once more") == {}
    assert caplog.messages == [f"{path} is damaged or cannot be read: it is made once more."]


def test_what_is_whole_is_read_and_what_is_missing_is_empty(tmp_path, caplog):
    (tmp_path / "a.json").write_text('{"a": [1, null]}')
    assert read_record(tmp_path / "a.json", "lost") == {"a": [1, None]}
    assert read_record(tmp_path / "b.json", "lost") == {}
    assert not caplog.messages
