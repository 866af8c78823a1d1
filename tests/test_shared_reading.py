"""What the first process reads, the others hear."""

import jax
import numpy as np
import pytest

from grass_jax import shared_reading


def test_the_first_process_reads_for_all(monkeypatch):
    """Two processes one after the other: what the first one sends lies ready for the second."""
    sent: list[np.ndarray] = []

    def send(value):
        sent.append(np.asarray(value))
        return value

    def receive(value):
        expected = sent.pop(0)
        assert (value.shape, value.dtype) == (expected.shape, expected.dtype)  # as a collective needs it
        return expected

    content = {"ä": [1, None, 0.5], "empty": {}}
    assert shared_reading.read_by_first(lambda: content) is content  # alone
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(shared_reading, "in_all", lambda work: work())
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    monkeypatch.setattr(shared_reading, "broadcast_one_to_all", send)
    assert shared_reading.read_by_first(lambda: content) == content
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(shared_reading, "broadcast_one_to_all", receive)
    assert shared_reading.read_by_first(lambda: pytest.fail("read by the second")) == content
    assert not sent
