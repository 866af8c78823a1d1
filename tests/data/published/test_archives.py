import contextlib
import errno
import io
import logging
import os
import pickle
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from grass_jax.data.published import archives, nested_zips
from grass_jax.data.published.archives import DamagedArchiveError, Member, list_members

IMAGES = r"(^|/)images/[^/]+\.tif$"


def noise(seed, size=5000):
    return np.random.default_rng(seed).bytes(size)


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.extra = b"\xfe\xca\x04\0more"  # a field between the name and the content
            archive.writestr(info, content, compression)
    return target.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def contents(members, scratch=None):
    found = {}
    for member in members:
        with member.open(scratch) as path:
            assert path.suffix == Path(member.name).suffix
            found[member.name] = path.read_bytes()
        assert path.exists() == (len(member.chain) == 1)
    return found


@pytest.mark.parametrize("outer", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_of_folders_and_of_archives_in_archives(folder, tmp_path, outer):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inner = {"images/d.tif": noise(4), "images/ä b.TIF": noise(5), "other.tif": b"no"}
    write(folder / "plain one/images/a.tif", noise(1))
    write(folder / "plain one/images/a.tfw", b"no")
    write(folder / ".hidden/images/x.tif", b"no")
    write(folder / "Two.ZIP", zipped({"images/b.tif": noise(2), "__MACOSX/images/._b.tif": b"no"}))
    nested = {"x/images/c.tif": noise(3), "deep/Inner.zip": zipped(inner), "deep/Else.zip": zipped(inner)}
    write(folder / "sub folder/three.zip", b"any words" + zipped(nested, outer))
    members, unreadable = list_members(folder, IMAGES, nested=["inner.zip"], scratch=scratch)
    assert unreadable == {}
    expected = {
        "plain one/images/a.tif": noise(1),
        "Two.ZIP/images/b.tif": noise(2),
        "sub folder/three.zip/x/images/c.tif": noise(3),
        "sub folder/three.zip/deep/Inner.zip/images/d.tif": noise(4),
        "sub folder/three.zip/deep/Inner.zip/images/ä b.TIF": noise(5),
    }
    assert [member.name for member in members] == sorted(expected, key=lambda n: (n.lower().count(".zip/"), n))
    assert contents(members, scratch) == expected
    assert contents(pickle.loads(pickle.dumps(members)), scratch) == expected
    assert [member.size for member in members] == [5000] * 5
    assert list(scratch.iterdir()) == [], "what is unpacked for the run has no name that could be left behind"


def test_listing_reads_directories_alone_and_state_follows_the_content(folder):
    write(folder / "a.zip", zipped({"images/a.tif": noise(1)}, zipfile.ZIP_STORED))
    (first,), _ = list_members(folder, IMAGES)
    os.utime(folder / "a.zip", (1, 1))
    assert list_members(folder, IMAGES)[0] == [first], "an archive that was copied is the same"
    write(folder / "a.zip", zipped({"images/a.tif": noise(2)}, zipfile.ZIP_STORED))
    (second,), _ = list_members(folder, IMAGES)
    assert second.state != first.state
    # A listing does not look at what the members hold; opening does.
    data = bytearray((folder / "a.zip").read_bytes())
    data[1000] ^= 1
    write(folder / "a.zip", bytes(data))
    (third,), unreadable = list_members(folder, IMAGES)
    assert (third, unreadable) == (second, {})
    with pytest.raises(DamagedArchiveError, match=r"^a\.zip/images/a\.tif in .* cannot be read .*CRC.*download the"):
        contents([third])


def test_an_archive_compressed_once_more_is_unpacked_once_and_only_where_it_is_wanted(folder, caplog):
    inner = zipped({"images/a.tif": noise(1), "images/b.tif": noise(2)})
    write(folder / "outer.zip", zipped({"one.zip": inner, "two.zip": inner}))
    with caplog.at_level(logging.INFO):
        assert list_members(folder, IMAGES)[0] == []
        assert not caplog.records
        members, _ = list_members(folder, IMAGES, nested=["one.zip"])
        assert len(contents(members)) == 2
        list_members(folder, IMAGES, nested=["one.zip"])
    assert len(caplog.records) == 1
    assert "one.zip in " in caplog.text
    assert "Unzip the outer archive" in caplog.text


def damaged_zip(kind):
    content = zipped({"images/a.tif": noise(1), "images/b.tif": noise(2)})
    if kind == "cut":
        return content[:6000]
    if kind == "empty":
        return b""
    if kind == "page":
        return b"<html>Please log in</html>" * 100
    return content[:-60] + b"\0" * 38 + content[-22:]  # the directory


@pytest.mark.parametrize("kind", ["cut", "empty", "page", "directory"])
@pytest.mark.parametrize("compression", [None, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_without_a_directory_is_named_and_does_not_hide_the_others(folder, kind, compression):
    bad = damaged_zip(kind)
    path, name = folder / "bad.zip", f"{folder / 'bad.zip'}"
    if compression is not None:
        bad, name = zipped({"x/in.zip": bad}, compression), f"x/in.zip in {path}"
    write(path, bad)
    write(folder / "good.zip", zipped({"images/c.tif": noise(3)}))
    members, unreadable = list_members(folder, IMAGES, nested=["in.zip"])
    assert [member.name for member in members] == ["good.zip/images/c.tif"]
    ((its, sentence),) = unreadable.items()
    assert its == ("bad.zip" if compression is None else "bad.zip/x/in.zip")
    assert sentence.startswith(f"The archive {name} cannot be read (")
    assert sentence.endswith("): download the archive again.")
    assert "\n" not in sentence


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("nested", [False, True])
def test_members_that_are_not_what_the_directory_says(folder, compression, nested):
    def stored(data):
        write(folder / "a.zip", zipped({"in.zip": data}, zipfile.ZIP_STORED) if nested else data)
        (member,), unreadable = list_members(folder, IMAGES, nested=["in.zip"])
        assert unreadable == {}
        with pytest.raises(DamagedArchiveError, match="download the archive again") as error:
            contents([member])
        assert str(error.value).startswith(f"a.zip/{'in.zip/' if nested else ''}images/a.tif in {folder} cannot be")
        return str(error.value)

    data = zipped({"images/a.tif": noise(1)}, compression)
    directory = data.index(b"PK\1\2")
    moved = bytearray(data)
    struct.pack_into("<I", moved, directory + 42, 7)  # where the member begins
    stored(bytes(moved))
    longer = bytearray(data)
    struct.pack_into("<I", longer, directory + 24, 6000)  # its size
    stored(bytes(longer))
    past = bytearray(data)
    struct.pack_into("<2I", past, directory + 20, 900_000, 900_000)
    stored(bytes(past))


def encrypted(data, name):
    """The archive with the flags of one of its members set."""
    data, name = bytearray(data), name.encode()
    data[data.index(name) - 30 + 6] |= 1
    data[data.rindex(name) - 46 + 8] |= 1
    return bytes(data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_encrypted_archive_is_named_once_and_only_where_it_holds_what_is_wanted(folder, compression):
    members = {"images/a.tif": noise(1), "images/b.tif": noise(2), "other.txt": b"no"}
    data = encrypted(zipped(members, compression), "images/b.tif")
    write(folder / "a.zip", data)
    write(folder / "b.zip", encrypted(zipped(members, compression), "other.txt"))
    write(folder / "c.zip", encrypted(zipped({"x/in.zip": zipped(members)}, compression), "x/in.zip"))
    write(folder / "d.zip", zipped({"in.zip": data}, compression))
    found, unreadable = list_members(folder, IMAGES, nested=["in.zip"])
    assert [member.name for member in found] == [
        *("a.zip/images/a.tif", "b.zip/images/a.tif", "b.zip/images/b.tif", "d.zip/in.zip/images/a.tif")
    ]
    assert len(contents(found)) == 4
    what = "is encrypted: unzip it by hand and leave the folder in its place."
    assert unreadable == {
        "a.zip": f"The archive {folder / 'a.zip'} {what}",
        "c.zip": f"The archive {folder / 'c.zip'} {what}",
        "d.zip/in.zip": f"The archive in.zip in {folder / 'd.zip'} {what}",
    }


@pytest.mark.parametrize("closed", ["sub", "sub/a.zip", "sub/images/a.tif", "."])
def test_what_may_not_be_read_is_named(folder, forbid, closed):
    write(folder / "sub/images/a.tif", noise(1))
    write(folder / "sub/a.zip", zipped({"images/b.tif": noise(2)}))
    write(folder / "images/c.tif", noise(3))
    (folder / "gone.zip").symlink_to(folder / "nowhere.zip")
    forbid(folder / closed)
    members, unreadable = list_members(folder, IMAGES)
    reason = "cannot be opened (Permission denied): see to it that you may read it."
    if closed.endswith(".tif"):  # a listing does not look into files
        assert unreadable == {}
        with pytest.raises(DamagedArchiveError) as error:
            contents(members)
        assert str(error.value) == f"sub/images/a.tif in {folder} {reason}"
        return
    start = "The archive " if closed.endswith(".zip") else ""
    assert unreadable == {closed: f"{start}{folder / closed} {reason}"}
    left = {"sub": ["images/c.tif"], "sub/a.zip": ["images/c.tif", "sub/images/a.tif"], ".": []}[closed]
    assert [member.name for member in members] == left


def test_folders_whose_names_alone_can_be_read_and_folders_in_closed_ones(folder):
    write(folder / "sub/images/a.tif", noise(1))
    cases = (
        (folder / "sub/images", 0o400, folder, "sub/images"),
        (folder, 0, folder / "sub", "."),
    )
    for path, mode, root, closed in cases:
        path.chmod(mode)
        try:
            if os.access(path, os.X_OK):
                pytest.skip("this user may read everything")
            members, unreadable = list_members(root, IMAGES)
        finally:
            path.chmod(0o700)
        assert members == []
        assert unreadable == {
            closed: f"{root / closed} cannot be opened (Permission denied): see to it that you may read it."
        }


def test_a_front_that_is_cut_off(folder):
    inner = zipped({"images/a.tif": noise(1)})
    write(folder / "a.zip", zipped({"in.zip": inner, "else.zip": inner}, zipfile.ZIP_STORED)[100:])
    members, unreadable = list_members(folder, IMAGES, nested=["in.zip", "else.zip"])
    assert [member.name for member in members] == ["a.zip/else.zip/images/a.tif"]
    assert "a member is not where the directory says" in unreadable["a.zip/in.zip"]


def test_where_a_member_begins_is_read_beside_the_place_of_the_archive(folder):
    write(folder / "a.zip", zipped({"in.zip": zipped({"images/a.tif": noise(1)}), "b": b"1"}, zipfile.ZIP_STORED))
    archive = nested_zips.open_zip(folder, ("a.zip",), None)
    place = archive.fp.tell()
    members, _ = list_members(folder, IMAGES, nested=["in.zip"])
    assert len(members) == 1
    assert archive.fp.tell() == place


def test_a_compression_that_python_does_not_know(folder):
    data = bytearray(zipped({"images/a.tif": noise(1)}))
    for place in (8, data.index(b"PK\1\2") + 10):
        struct.pack_into("<H", data, place, 9)  # deflate64, as Windows makes it
    write(folder / "a.zip", bytes(data))
    (member,), _ = list_members(folder, IMAGES)
    with pytest.raises(DamagedArchiveError, match="unzip the archive by hand"):
        contents([member])


def test_names_in_archives_lead_nowhere_else(folder, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    names = ["../../images/out.tif", "/images/root.tif", "images/..\\..\\back.tif", "images\\windows.tif"]
    write(folder / "a.zip", zipped({name: noise(1) for name in names}))
    before = sorted(tmp_path.rglob("*"))
    members, _ = list_members(folder, r"\.tif$")
    assert len(members) == 2, "names that climb are passed over as hidden ones are"
    for member in (*members, *(Member(folder, ("a.zip", name), 5000, 0) for name in names[:1])):
        with member.open(scratch) as path:
            assert path.resolve().is_relative_to(scratch.resolve())
            assert path.read_bytes() == noise(1)
    assert sorted(tmp_path.rglob("*")) == before
    assert [member.name for member in list_members(folder, IMAGES)[0]] == [
        "a.zip//images/root.tif",
        "a.zip/images/windows.tif",
    ]


def test_threads_read_one_archive(folder):
    write(folder / "a.zip", zipped({"in.zip": zipped({f"images/{i}.tif": noise(i, 300_000) for i in range(4)})}, 0))
    members, _ = list_members(folder, IMAGES, nested=["in.zip"])
    same = {}

    def read(member):
        same[member.name] = all(
            list(contents([member]).values()) == [noise(int(member.name[-5]), 300_000)] for _ in range(5)
        )

    threads = [threading.Thread(target=read, args=(member,)) for member in members]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(same.values()) == [True] * 4


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_full_disk_is_no_damage_and_leaves_nothing(folder, tmp_path, monkeypatch, compression):
    def full(source, target, length):
        target.write(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    write(folder / "a.zip", zipped({"in.zip": zipped({"images/a.tif": noise(1)})}, compression))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(nested_zips.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match=r"No space left on device while unpacking .*in\.zip") as error:
        contents(list_members(folder, IMAGES, nested=["in.zip"], scratch=scratch)[0], scratch)
    assert error.value.errno == errno.ENOSPC
    assert list(scratch.iterdir()) == []


def test_a_link_back_up_and_a_missing_folder(folder):
    write(folder / "images/a.tif", noise(1))
    with contextlib.suppress(OSError):
        (folder / "images/up").symlink_to(folder)
    assert [member.name for member in list_members(folder, IMAGES)[0]] == ["images/a.tif"]
    with pytest.raises(FileNotFoundError, match="set path to the folder"):
        list_members(folder / "nowhere", IMAGES)
    with pytest.raises(NotADirectoryError, match="set path to the folder"):
        list_members(folder / "images/a.tif", IMAGES)


@pytest.mark.parametrize("closed", [False, True])
def test_temporary_files_lie_where_they_are_wanted_and_else_where_they_can(folder, tmp_path, monkeypatch, closed):
    system, scratch = tmp_path / "system", tmp_path / "new"
    system.mkdir()
    monkeypatch.setattr(archives.tempfile, "tempdir", str(system))
    write(folder / "a.zip", zipped({"images/a.tif": noise(1)}))
    (member,), _ = list_members(folder, IMAGES, scratch=scratch)
    assert not scratch.exists()
    if closed:
        scratch.write_bytes(b"a file")
    with member.open(scratch) as path:
        assert path.is_relative_to(system if closed else scratch)
        assert path.read_bytes() == noise(1)


def test_what_unpacks_to_too_much_is_refused_before_it_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(nested_zips, "MAX_MEMBER", 4999)
    monkeypatch.setattr(nested_zips, "SMALL", 0)
    write(folder / "a.zip", zipped({"images/a.tif": noise(1)}))
    (member,), unreadable = list_members(folder, IMAGES)
    assert unreadable == {}
    with pytest.raises(
        DamagedArchiveError, match=r"^a\.zip/images/a\.tif in .* says that it unpacks to 0\.0 GB, above"
    ):
        contents([member], tmp_path)
    monkeypatch.setattr(nested_zips, "MAX_MEMBER", 5000)
    assert list(contents([member], tmp_path).values()) == [noise(1)]
    (folder / "a.zip").unlink()
    inner = zipped({"images/a.tif": bytes(1_000_000)}, zipfile.ZIP_STORED)
    write(folder / "b.zip", zipped({"in.zip": inner}))
    members, unreadable = list_members(folder, IMAGES, nested=["in.zip"], scratch=tmp_path)
    assert members == []
    assert "says that it unpacks to" in unreadable["b.zip/in.zip"]
    assert "\n" not in unreadable["b.zip/in.zip"]


@pytest.mark.parametrize(
    ("way", "piece"), [(zipfile.ZIP_DEFLATED, 1 << 20), (zipfile.ZIP_BZIP2, 1 << 12), (zipfile.ZIP_LZMA, 1 << 12)]
)
def test_methods_that_unpack_all_they_are_given_are_given_little(folder, monkeypatch, way, piece):
    pieces, copy = [], nested_zips.shutil.copyfileobj

    def copied(source, target, length):
        pieces.append(length)
        copy(source, target, length)

    monkeypatch.setattr(nested_zips.shutil, "copyfileobj", copied)
    write(folder / "a.zip", zipped({"images/a.tif": noise(1)}, way))
    assert list(contents(list_members(folder, IMAGES)[0]).values()) == [noise(1)]
    assert pieces == [piece]
