"""PyTorch's checkpoints: files of PyTorch itself, files of our own, and files that mean harm."""

import base64
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest

from grass_jax.interop.open_weights import open_weights
from grass_jax.interop.pickle_data import Call, Global, read_pickle
from grass_jax.interop.torch_write import write_torch

# torch.save of PyTorch 2.14: {"state_dict": OrderedDict(...), "epoch": 3, "arguments": argparse.Namespace(lr=0.1),
# "optimizer": ...}, with a parameter, views, a shared storage and several dtypes
REAL = zlib.decompress(
    base64.b64decode(
        "eNrFlltz20QUx9eX2K5akjQtJC1tKZSLQ9PUd5te4iCKWlBpE6UFNRCMLCu2qGL5SKtSOuOZMEwCvIUZXuCB4VsAw8B0+AR0hhYeeGF4KAwP8B"
        "HYXcmupDRN2zywE3kdaf+/89/VnrOeEWNxhFIptK4NoxGkWGpLv6IdbShYmexcNgR+EM0H2nK0Cygtc0RgYwVrtYauYoioqmkYmop1s21z562G"
        "ZmmNU+QJB9FxCWJpOUEESwq29KsQV7FJ4kzWHKwbNleztLqjG41aR7GUJQ1rFgcDGwzBWts2rdqVHAeJdFpOMhempTQ1SLoSTjBMBc+5NzlIyR"
        "EyJgPb5Bjp1Y4DnJjAsH1WRGJUjK3CDjEmRlbhkU9a1OgghiEJhj9m/+z8CEYk2MWsY8dqaw3Y3SJhW8mWi83Coy2Ge4ziYmJ0FUbFCKWOubg9"
        "GPZK8Lg8QH0auqrBPhfgeT1lOnVD65vdz6g5OECoKQxPzFKLK3BQjK7Aky7xKQyHJHhaJu8QtRRjEZ4JAM+QW33cswyXh+cILoohzea8AuNiZA"
        "Wed3GHMUxIcIQZrFuK3obJAI9nq5kt9ZlHGbMAGZeZ9Zg5ysy7zAKGogQlxlRNp42hHGCeNdvNPq/CeEV4gfAiGI4R3vi4yzmO4YQEJxln0VCa"
        "NkwFvZmm0edUGacE066vFz1fPPX1kss7heFlCQS2dG2zrcHpwMsswxmiRRheoVokxlfhVTFO94bo6s9ieE2Cc04XzsvbiKBG9qpCEwVm2PNZmW"
        "YRSF2YYxvzimbZJB3gghixbbvO5qF1TLUFF8UYIyhW01nS2tiG11Xynex/W+POkRywO4pKJvXG+Acgd+GSHCWDDQvmT1e//Zy2LwiOAswO1pf0"
        "a5oFb3bhrbS7z2hWwkIX3hZRF2ryEE08k4Zxlmp1Z3GRjH7Hm/n+lrfVFDrn1ArU6Xqp7nwbGDQJFm1b3kEQLDlrTct0OjY0F6DVBT3duuOIZQ"
        "kbZMO7C3BZRIqjOM7kjJhMfff3mpUhy06vmQ3rzyja3q8/k4umRapFzVtDgU/2ylCWAr/+57cP6Tuj18bAvah8B+iViZpi6M02XQ2Bz4dK2321"
        "UoEaqL4Hf9GXEr2ngZ2o2jdQfx9rJq2LAn/8YeL2mqFjbGjUw8rJP/bQRU/c08MgmgpU9aMZgT+2BQMudblKPqbJH7mWyfXVNHU0unb70zHyYG"
        "wTRxNBR1mBT6P/MX7uweP32r9V78u026W8ftjrd3v9mNfvYz5T36dmpz3RvXzGgz7zAk9uT6HrlFG6efMzWsnimzCmg4yCwJ/Yyvabv16dYfHn"
        "dvx+6SHiF7caP+mRqYfOrdsmDZraxMOJoIeSwFce2kOERf7h0I9yMP/RXSPzwchlgZ/a0uzn5zee5xDa1Y/Wr5tD4XB5jvq/8WXz4ub16wDK3S"
        "mgbAK2Zumkgl5T6A+9mt4Q+MkHnE+mkitVSoVyOV8sZQrFcrmcyWQr+VKhkKvkisVMoZSntyrU5S8Hf7qaJj7SzGUkyjLM8+k/U4bXOQ//jg2r"
        "/QfIaEC5HEcbnUJhiP8Q2BuA3PBD1p08YY6/kO8McKQBtP4ACcv9VW8wIL81gEK1//61rURImw1r/VUsqP0zrM2Ftf7qFdSuJUPafFjrrzxB7c"
        "9hbSGs9VeMoPZCKqQthrX+nA9qfw1rSz3t3atC4BVvC2nL4bj+XB0KaK/7tBvsUX8KHQiIRzi0SXLPiInERK8UxI6sm0Cvt2Nu/w3XK80JVqUP"
        "ewPcX2kDCVczyMa7Y/8DobhFfg=="
    )
)
# the same from torch.save(..., _use_new_zipfile_serialization=False), the format before PyTorch 1.6
OLD = zlib.decompress(
    base64.b64decode(
        "eNp1lFtz20QYhnVw7FTQNkCBFgqUs80hJK5jOxxqU0Lasm2aqBzEoQhZ3kRiZK3f1aoDzHgmXDiU/gOYXnDJX+Auf4c7bpnhgl1JMeNUaEba1W"
        "r3ed/99vu0b9yzon/ub/594dvft88t7xs3/jTlcwKt7ixpmjbmTDCfRe4dypOQxdDlBOek/BKFQkTUpfEw9GIYdx1LDorvx9RNwh9oAnOCSt1Z"
        "kINJwLjAAjEcU76FsUCVVJyKYrB4DzVSSdMjTQVJhCeoOwx9Ad2X2hH1hZROrJt8SDkdbsgvFoyGDbPuVOWCkSd4+B0qvmDcD5bdVIRRYrmcDt"
        "IwGrpjj3sjKii3sPA/UwSNE8bdO00L1XrdqWUuGPf2KGr5EmszYp64lQ9aWHROyTnrrU6n2ZaP9U6r28WJbIP+OIVFqlsCD+0QjRjEPMDDxCT6"
        "AU7+HCjbpwRO21i6m7088hMetfFYthGR8pgOcSaQJoJaUCryeJDDn1BwkxgHeJLoSuNsDj8n8JSNp/PIR6FPcT7HFfvYYOkgorONPHNMo7W62s"
        "SzUmNRajy3o+xPcYEYUzyf818QeNHGS9n5BV60i5fn8Ffl0Az+yn/wtYvNTrfdXW/jVQk3JLyeRWeKBtGneC2Hvy7who03M/MD7oUxlufol7NT"
        "WG3PFN46Zr/bXGtjpVBYLRSaSuFirtASWLPRzhR8lspk7MwpXJcpOaN35/y3W20VnHVJ1yX9bUlvNHLqOwLv2ngvo+5G3l6CS/O+GYtm1N5xz6"
        "2VFfQLz+8Xni8rzx/k9A2BD21sZiGPWUxx5cEEyeLbacr4XpUkTZKuKZJGKgf4iFRU9pGcdl3gho2tNDNLx8wPcJOYzgn55vG9dERjkWDbl31Z"
        "OAm1tmTxJGPPl853Gj/CnuCWY6ji5fj4Su+PX9T1azLIAGwswpEsf45PJvg0z0FVzfhsAodoE3zunFYFy5RKOnIH6e6unPxFsZ/SZPyySMav1H"
        "4Wp7itIvN1vhdX4BsbXpIk6g9yW/1BSk5ML0tDoyx2ZpmBSlkZLpQlXrXsZGt0Wdfyq1a0RtFql7TDo+6iVnb91Ss6/WJW0S4V7ZmiPVu05/vV"
        "ufX7vXxtX9778v6tf6R92Ns+POrr2r9x64Oz"
    )
)


@pytest.fixture(params=[REAL, OLD], ids=["zip", "old"])
def real(tmp_path, request):
    (tmp_path / "real.pth").write_bytes(request.param)
    return tmp_path / "real.pth"


def read_all(path):
    with open_weights(path) as (tensors, _):
        return {name: tensor.read() for name, tensor in tensors.items()}


def archive(path, pickled, storages=(), *, root="archive", compression=zipfile.ZIP_STORED, **more):
    """A checkpoint of any pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{root}/data.pkl", pickled)
        for key, data in enumerate(storages):
            file.writestr(f"{root}/data/{key}", data)
        for name, data in more.items():
            file.writestr(f"{root}/{name}", data)
    return path


def tensor(shape, stride, *, offset=0, count=4, kind="Float", key="0"):
    """Opcodes of one tensor, as PyTorch has them."""

    def whole(n):
        return b"J" + struct.pack("<i", n)

    def text(t):
        return b"X" + struct.pack("<I", len(t)) + t.encode()

    storage = b"(" + text("storage") + f"ctorch\n{kind}Storage\n".encode() + text(key) + text("cpu") + whole(count)
    sizes = b"".join(b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (shape, stride))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"tQ" + whole(offset) + sizes + b"\x89NtR"


def named(opcodes):
    return b"\x80\x02}X\x01\x00\x00\x00w" + opcodes + b"s."


def test_a_file_of_pytorch_is_read(real):
    read = read_all(real)
    expected = {
        "state_dict.matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
        "state_dict.turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "state_dict.slice": np.array([2.0, 4.0, 6.0]),
        "state_dict.half": np.array([1.5, -2.0], np.float16),
        "state_dict.brain": np.array([1.5, -3.25], np.float32),
        "state_dict.count": np.array(7),
        "state_dict.flags": np.array([True, False]),
        "state_dict.none": np.zeros((0, 4), np.float32),
        "optimizer.state.0.momentum_buffer": np.arange(8.0),
    }
    assert read.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == value.dtype
        assert read[name].shape == value.shape


def test_the_name_of_a_file_says_nothing(real):
    os.rename(real, real.with_suffix(".safetensors"))
    assert "state_dict.matrix" in read_all(real.with_suffix(".safetensors"))


def test_what_is_written_is_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.normal(size=(2, 3, 5, 7)).astype(np.float32),
        "b": rng.normal(size=(3, 4)).astype(np.float32).T,
        "scalar": np.full((), 2.5, np.float32),
        "empty": np.zeros((2, 0, 3), np.float32),
        "größe": np.array([-0.0, np.inf], np.float32),
    }
    meta = {"numbers": (0, -1, 255, 256, -129, 2**70), "text": "ä" * 300}
    write_torch(tmp_path / "w.pth", {"meta": meta, "state_dict": arrays})
    read = read_all(tmp_path / "w.pth")
    assert read.keys() == {f"state_dict.{name}" for name in arrays}
    for name, array in arrays.items():
        assert read[f"state_dict.{name}"].tobytes() == np.ascontiguousarray(array).tobytes()
        assert read[f"state_dict.{name}"].shape == array.shape
    with zipfile.ZipFile(tmp_path / "w.pth") as file:
        assert read_pickle(file.read("archive/data.pkl")).value["meta"] == meta
    with open_weights(tmp_path / "w.pth") as (_, said):
        assert said == {"text": "ä" * 300}
    first = (tmp_path / "w.pth").read_bytes()
    write_torch(tmp_path / "w.pth", {"meta": meta, "state_dict": arrays})
    assert (tmp_path / "w.pth").read_bytes() == first


def test_pytorch_reads_what_is_written(tmp_path):
    torch = pytest.importorskip("torch")
    value = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    meta = {"step": "3", "n": (1, -200, 2**40)}
    write_torch(tmp_path / "w.pth", {"meta": meta, "state_dict": {"w": value, "s": np.full((), 2.5, np.float32)}})
    read = torch.load(tmp_path / "w.pth", weights_only=True)
    assert read["meta"] == meta
    np.testing.assert_array_equal(read["state_dict"]["w"].numpy(), value)
    assert read["state_dict"]["s"].shape == ()


class Harmful:
    def __reduce__(self):
        return os.system, ("touch harm-has-been-done",)


class HarmfulState:
    def __init__(self):
        self.inner = {"conv1.weight": Harmful()}

    def __setstate__(self, state):
        raise AssertionError("was called")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_nothing_in_a_pickle_is_called(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    harmful = {"first": Harmful(), "second": [HarmfulState()], "third": {"set": {1, 2}, "bytes": b"x"}}
    data = pickle.dumps(harmful, protocol)
    read = read_pickle(data).value
    assert read["first"] == Call(Global(os.system.__module__, "system"), ("touch harm-has-been-done",))
    archive(tmp_path / "w.pth", data)
    assert read_all(tmp_path / "w.pth") == {}
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]
    pickle.loads(pickle.dumps(Harmful(), protocol))
    assert (tmp_path / "harm-has-been-done").exists()  # the pickle is one that does harm


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.",  # a key of tuples in tuples
        b"\x80\x02})" + b"2\x86" * 200_000 + b"Ns.",  # which a hash would walk through 2^200,000 times
        b"\x80\x02)" + b")R" * 300_000 + b".",
        b"\x80\x02]q\x00" + b"h\x00a" * 200_000 + b".",  # a list that holds itself
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",  # a dict that does
        # dicts in which the next lies fifty times: 50^20 of them
        b"\x80\x02}"
        + b"".join(b"q%c}(" % n + b"".join(b"K%ch%c" % (k, n) for k in range(50)) + b"u" for n in range(20))
        + b".",
        # names of a megabyte each
        b"\x80\x02X\x40\x42\x0f\x00" + b"a" * 1_000_000 + b"q\x00}" + b"q\x01}(h\x00h\x01u" * 12 + b".",
    ],
    ids=["deep-key", "wide-key", "calls", "list", "dict", "dicts", "names"],
)
@pytest.mark.timeout(300)  # seconds pass on a busy machine; what they guard against takes years
def test_a_crafted_pickle_costs_little(tmp_path, data):
    archive(tmp_path / "w.pth", data)
    try:
        assert read_all(tmp_path / "w.pth") == {}
    except ValueError as error:
        assert "more entries than any checkpoint" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x80\x02" + b"N0" * 600_000 + b".", "too many opcodes"),
        (b"\x80\x02" + b"N" * (16 * 2**20), "more than any checkpoint needs"),
        (b"\x80\x02}", "malformed"),
        (b"\x80\x02.", "malformed"),
        (b"\x80\x02h\x05.", "malformed"),
        (b"\x80\x02}(NNNu.", "malformed"),
        (b"\x80\x04)))\x93.", "malformed"),
        (b"\x80\x02X\xff\xff\xff\x7fa.", "malformed"),
        (b"\x80\x02\x82\x01.", "EXT1 has no place"),
        (b"", "malformed"),
    ],
)
def test_a_malformed_pickle_is_refused(tmp_path, data, words):
    archive(tmp_path / "w.pth", data)
    with pytest.raises(ValueError, match=rf"w\.pth has .*{words}.*safetensors"):
        read_all(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "opcodes",
    [
        tensor((5,), (1,)),
        tensor((2, 2), (2, 2)),
        tensor((2, 2), (3, 1)),
        tensor((3,), (1,), offset=2),
        tensor((3,), (1,), offset=-1),
        tensor((2,), (-1,), offset=1),
        tensor((-2,), (1,)),
        tensor((1000, 1000), (0, 0)),
        tensor((2,), (1, 1)),
        tensor((4,), (1,), count=2**31 - 1),
        tensor((4,), (1,), count=5),
        tensor((1,) * 9, (1,) * 9),
        tensor((4,), (1,), key="../data.pkl"),
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x02tR",
        b"ctorch._utils\n_rebuild_sparse_tensor\n(K\x01K\x02tR",
    ],
)
def test_a_tensor_must_lie_in_its_storage(tmp_path, opcodes):
    good = b"X\x01\x00\x00\x00g" + tensor((4,), (1,))
    data = b"\x80\x02}(" + good + b"X\x01\x00\x00\x00w" + opcodes + b"u."
    archive(tmp_path / "w.pth", data, [np.arange(4, dtype=np.float32).tobytes()])
    with open_weights(tmp_path / "w.pth") as (tensors, _):
        np.testing.assert_array_equal(tensors["g"].read(), np.arange(4))  # the wrong one stops only who reads it
        with pytest.raises(
            ValueError, match=r"w\.pth .*(exceeds|too few numbers|lacks its file|describes w in an unk)"
        ):
            tensors["w"].read()


def test_tensors_that_do_lie_in_their_storage(tmp_path):
    data = [np.arange(4, dtype=np.float32).tobytes()]
    for opcodes, expected in [
        (tensor((2, 2), (1, 2)), [[0, 2], [1, 3]]),
        (tensor((2,), (2,), offset=1), [1, 3]),
        (tensor((), (), offset=3), 3),
        (tensor((0, 7), (7, 1)), np.zeros((0, 7))),
    ]:
        archive(tmp_path / "w.pth", named(opcodes), data)
        np.testing.assert_array_equal(read_all(tmp_path / "w.pth")["w"], expected)


def test_types_that_no_weights_have_stop_only_who_reads_them(tmp_path):
    plain = tensor((2,), (1,))
    newest = plain.replace(b"_v2", b"_v3").removesuffix(b"\x89NtR") + b"\x89Nctorch\nfloat8_e4m3fn\nNtR"
    for opcodes, dtype in (
        (tensor((2,), (1,), kind="QInt8"), "QInt8Storage"),
        (newest, "float8_e4m3fn"),
        (plain.replace(b"_rebuild_tensor_v2", b"_rebuild_odd\x1b[1m"), r"'_rebuild_odd\x1b[1m'"),
    ):
        archive(tmp_path / "w.pth", named(opcodes), [bytes(32)])
        with open_weights(tmp_path / "w.pth") as (tensors, _):
            assert tensors["w"].dtype == dtype
            with pytest.raises(
                ValueError, match=f"w.pth .* w (as|in an unknown way) .*{re.escape(dtype)}.*: convert"
            ) as e:
                tensors["w"].read()
            assert str(e.value).isprintable()


def test_a_tensor_with_attributes_is_a_plain_one(tmp_path):
    inner = tensor((2,), (2,)).split(b"\n", 2)[2].removesuffix(b"R")
    rebuild, wrap = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._tensor\n_rebuild_from_type_v2\n("
    data = named(wrap + rebuild + b"ctorch\nTensor\n" + inner + b"}X\x03\x00\x00\x00fooK\x03stR")
    archive(tmp_path / "w.pth", data, [np.arange(4, dtype=np.float32).tobytes()])
    np.testing.assert_array_equal(read_all(tmp_path / "w.pth")["w"], [0, 2])


def test_a_cut_file_is_named(real, tmp_path):
    path, whole = tmp_path / "cut.pth", real.read_bytes()
    for end in range(0, len(whole), 97 if whole == REAL else 7):
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"^\S*cut\.pth (is|has|lacks|cannot)"):
            read_all(path)


def test_a_damaged_file_is_named(tmp_path):
    at = REAL.index(struct.pack("<6f", *range(6)))
    (tmp_path / "w.pth").write_bytes(REAL[:at] + b"\x01" + REAL[at + 1 :])
    with pytest.raises(ValueError, match=r"w\.pth is damaged \(Bad CRC"):
        read_all(tmp_path / "w.pth")


def test_any_flipped_byte_is_read_or_named(real, tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "w.pth"
    refused = 0
    for _ in range(300):
        data = bytearray(real.read_bytes())
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        path.write_bytes(data)
        try:
            read_all(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(str(path))  # noqa: PT017
    assert refused > 80


FOUR_NUMBERS = struct.pack("<q4f", 4, *range(4))


def row(
    tree,
    keys=("0",),
    storages=(FOUR_NUMBERS,),
    *,
    version=1001,
    little=True,
    start=0x1950A86A20F9469CFC6C,
):
    """A checkpoint of the old format around the opcodes of its content."""
    machine = {"protocol_version": 1001, "little_endian": little, "type_sizes": {"int": 4}}
    head = b"".join(pickle.dumps(value, 2) for value in (start, version, machine))
    return head + tree + pickle.dumps(list(keys), 2) + b"".join(storages)


def test_storages_of_the_old_format_are_found(tmp_path):
    path = tmp_path / "w.pth"
    path.write_bytes(row(named(tensor((3,), (1,), offset=1))))
    np.testing.assert_array_equal(read_all(path)["w"], [1, 2, 3])
    # of two storages, the second behind eight halves
    first = tensor((2,), (1,), kind="Half", count=8, key="7")
    pair = b"\x80\x02}(X\x01\x00\x00\x00a" + first + b"X\x01\x00\x00\x00b" + tensor((4,), (1,)) + b"u."
    storages = [struct.pack("<q8e", 8, *range(8)), FOUR_NUMBERS]
    path.write_bytes(row(pair, ("7", "0"), storages))
    read = read_all(path)
    np.testing.assert_array_equal(read["a"], [0, 1])
    np.testing.assert_array_equal(read["b"], range(4))
    # a storage within another, as the first versions had them: key, offset, size
    view = tensor((2,), (1,)).replace(b"tQ", b"(X\x01\x00\x00\x009K\x01K\x02ttQ")
    path.write_bytes(row(named(view)))
    np.testing.assert_array_equal(read_all(path)["w"], [1, 2])
    path.write_bytes(row(named(view.replace(b"K\x01K\x02", b"K\x03K\x02"))))
    with pytest.raises(ValueError, match="w that exceeds its storage"):
        read_all(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"little": False}, "big-endian"),
        ({"version": 1000}, r"an unknown format of PyTorch before 1\.6: convert"),
        ({"start": 7}, "is a pickle but no PyTorch checkpoint"),
        ({"keys": ()}, "lacks its storage '0'"),
        ({"keys": ("1",)}, "holds numbers of None"),
        ({"keys": (("0",),)}, "holds numbers of None"),
        ({"keys": ("0", "0")}, "is shorter than it says"),
        ({"storages": (b"\x04",)}, "is shorter than it says"),
        ({"storages": (struct.pack("<q3f", 4, *range(3)),)}, "is shorter than it says"),
        ({"storages": (struct.pack("<q", 2**62),)}, "is shorter than it says"),
        ({"storages": (struct.pack("<q4f", -1, *range(4)),)}, "is shorter than it says"),
        ({"storages": (struct.pack("<q4f", 3, *range(4)),)}, "has too few numbers for w"),
        ({"tree": named(tensor((4,), (1,), kind="Odd\x1b"))}, r"holds numbers of 'Odd\\x1bStorage'"),
        ({"tree": b"\x80\x02}"}, "malformed"),
    ],
)
def test_a_malformed_file_of_the_old_format_is_refused(tmp_path, changes, words):
    (tmp_path / "w.pth").write_bytes(row(**{"tree": named(tensor((4,), (1,)))} | changes))
    with pytest.raises(ValueError, match=rf"w\.pth .*{words}") as error:
        read_all(tmp_path / "w.pth")
    assert str(error.value).isprintable()


@pytest.mark.parametrize("protocol", [1, 2])
def test_nothing_in_the_old_format_is_called(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    harm = pickle.dumps({"first": Harmful()}, protocol)
    (tmp_path / "w.pth").write_bytes(row(harm, (), ()))
    assert read_all(tmp_path / "w.pth") == {}
    (tmp_path / "w.pth").write_bytes(row(named(tensor((4,), (1,))), (Harmful(),)))
    with pytest.raises(ValueError, match="holds numbers of None"):
        read_all(tmp_path / "w.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["w.pth"]


def test_other_files_are_refused_with_what_to_do(tmp_path):
    path = tmp_path / "w.pth"
    data, storage = named(tensor((4,), (1,))), [bytes(16)]

    def refused(words):
        with pytest.raises(ValueError, match=words):
            read_all(path)

    archive(path, data, storage, compression=zipfile.ZIP_DEFLATED)
    refused("is compressed")
    archive(path, data, storage, byteorder=b"big")
    refused("big-endian")
    archive(path, data, storage, **{"constants.pkl": b"\x80\x02)."})
    refused(r"TorchScript program: .*torch\.jit\.load")
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("readme.txt", "no weights")
    refused("no PyTorch checkpoint")
    with tarfile.open(path, "w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    refused(r"is a tar archive: unpack it, or, .*torch\.save\(torch\.load\(OLD, weights_only=False\)")
    path.write_bytes(pickle.dumps({"conv1.weight": 1}))
    refused("is a pickle but no PyTorch checkpoint")
    path.write_bytes(b"GIF89a and so on")
    refused("neither")
    path.write_bytes(b"")
    refused("neither")
    path.unlink()
    refused("No such file")
    path.mkdir()
    refused("cannot be read")


def test_a_bomb_is_not_unpacked(tmp_path):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(2**24))
    (tmp_path / "w.pth").write_bytes(data.getvalue())
    assert len(data.getvalue()) < 2**19
    with pytest.raises(ValueError, match="is compressed"):
        read_all(tmp_path / "w.pth")


def test_what_a_damaged_archive_calls_a_member_is_cut(tmp_path):
    path = archive(tmp_path / "w.pth", named(tensor((4,), (1,))), [bytes(16), b"z" * 60_000])
    data = bytearray(path.read_bytes())
    at = data.index(b"archive/data/0") - 4
    struct.pack_into("<H", data, at, 60_000)  # the length of its name, where its content lies
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.pth is damaged \(File name in directory") as error:
        read_all(path)
    assert len(str(error.value)) < 1500 + len(str(path))
    assert str(error.value).isprintable()
