"""What an exported file says of itself, and what is made of it."""

import logging
import os

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from grass_jax.interop.open_weights import open_weights, read_description
from grass_jax.interop.torch_write import write_torch


@pytest.fixture
def described(four):
    return {"model": {"name": "resnet18", "width": 8}, "bands": four.asdict()}


@pytest.mark.parametrize(("format", "suffix"), [("torchvision", "safetensors"), ("mmsegmentation", "pth")])
def test_what_a_file_says_is_read(tmp_path, make_run, format, suffix, run, four, described):
    workdir, _ = make_run(bands=four)
    run(workdir, tmp_path / f"e.{suffix}", format=format)
    assert read_description(tmp_path / f"e.{suffix}") == described


GOOD = {"grass_jax": "1", "encoder": "resnet18", "width": "8", "bands": "[1, 2, 3, 5]", "rgb": "[3, 2, 1]"}


GOOD |= {"dtype": "uint16", "low": "[10, 10.0, 10, 10]", "high": "[4000.0, 3000, 2000, 5000]"}


GOOD |= {"mean": "[0.4, 0.3, 0.2, 0.5]", "std": "[0.1, 0.2, 0.1, 0.2]"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        ({"encoder": None}, "'encoder'"),
        ({"encoder": "resnet99\x1b[31m"}, r"the encoder 'resnet99\x1b[31m' is not known"),
        *(
            ({"width": width}, "")
            for width in ("8.0", "true", "null", "[8]", '"8"', "-8", "0", "6", "9" * 5000, "8000")
        ),
        *(({key: "5"}, "numbers belong") for key in ("bands", "rgb", "low", "mean")),
        ({"rgb": '"x"'}, "whole numbers belong"),
        ({"bands": "[[1], 2, 3, 5]"}, "whole numbers belong"),
        ({"bands": "[true, 2, 3, 5]"}, "whole numbers belong"),
        ({"mean": '["a", 0.3, 0.2, 0.5]'}, "numbers belong"),
        ({"mean": "[0.1]"}, "bands.mean must have a number for each"),
        ({"std": "[0, 0, 0, 0]"}, "bands.std above 0"),
        ({"std": "[NaN, 1, 1, 1]"}, "bands.std must be finite"),
        ({"high": "[1" + "0" * 400 + ", 1, 1, 1]"}, "too large"),
        ({"dtype": "complex64"}, "bands.dtype must be"),
        ({"rgb": "[" * 100_000}, "recursion"),
        ({"rgb": "["}, "Expecting"),
    ],
)
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_file_that_says_what_cannot_be_is_told(tmp_path, caplog, change, words, suffix, described):
    said = {key: value for key, value in (GOOD | change).items() if value is not None}
    weights, path = {"a": np.zeros(1, np.float32)}, tmp_path / f"e.{suffix}"
    if suffix == "pth":
        write_torch(path, {"meta": said, "state_dict": weights})
    else:
        safetensors.numpy.save_file(weights, path, said)
    with caplog.at_level(logging.WARNING, "absl"):
        read = read_description(path)
    if words is None:
        assert read == described
        assert not caplog.records
    else:
        assert read == {}
        (message,) = (record.getMessage() for record in caplog.records)
        assert "says of its encoder what cannot be" in message
        assert words in message
        assert message.isprintable()


def test_other_files_say_nothing(tmp_path, caplog):
    safetensors.numpy.save_file({"a": np.zeros(1, np.float32)}, tmp_path / "a.safetensors", {"format": "pt"})
    write_torch(tmp_path / "a.pth", {"meta": 3, "a": np.zeros(1, np.float32)})
    (tmp_path / "a.txt").write_text("no weights")
    for name in ("a.safetensors", "a.pth", "a.txt", "none"):
        assert read_description(tmp_path / name) == {}
    assert not caplog.records


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth is no regular file"), open_weights(tmp_path / "a.pth"):
        pass
    assert read_description(tmp_path / "a.pth") == {}
