"""Damage to files: what any file can suffer, and what means harm to the readers of one format."""

import struct
import zlib
from collections.abc import Callable

import numpy as np

Rng = np.random.Generator
SIZES = (0, 1, 2**15, 2**16 - 1, 2**16, 60_000, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def mutate(data: bytes, suffix: str, rng: Rng, others: list[bytes]) -> bytes:
    """Damages a file in one to three ways, most of them small, so that readers get past its head.

    Args:
        data: the file.
        suffix: of its name, by which one of its format's own ways is taken in every second case.
        rng: draws what is done.
        others: files whose ends or parts may replace its own.

    Returns:
        The damaged file.
    """
    own = FORMATS.get(suffix, [])
    for _ in range(int(rng.choice([1, 1, 1, 2, 3]))):
        ways = own if own and rng.random() < 0.5 else GENERAL
        way = ways[int(rng.integers(len(ways)))]
        data = way(data, rng, others) if way in WITH_OTHERS else way(data, rng)
    return data


def _place(data: bytes, rng: Rng, size: int = 1) -> int:
    """A place in a file; half of them lie near the beginning, where the formats say what follows."""
    end = max(1, len(data) - size + 1)
    return int(rng.integers(min(end, 200) if rng.random() < 0.5 else end))


def _written(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def flip_bits(data: bytes, rng: Rng) -> bytes:
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        at = _place(data, rng)
        data = _written(data, at, bytes([data[at] ^ 1 << int(rng.integers(8))]))
    return data


def overwrite(data: bytes, rng: Rng) -> bytes:
    size = int(rng.integers(1, 65))
    run = rng.bytes(size) if rng.random() < 0.5 else bytes([rng.choice([0, 255, 32])]) * size
    return _written(data, _place(data, rng), run)


def cut(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data) + 1))]


def cut_front(data: bytes, rng: Rng) -> bytes:
    return data[_place(data, rng) :]


def insert(data: bytes, rng: Rng) -> bytes:
    at = _place(data, rng)
    return data[:at] + rng.bytes(int(rng.integers(1, 100))) + data[at:]


def delete(data: bytes, rng: Rng) -> bytes:
    at = _place(data, rng)
    return data[:at] + data[at + int(rng.integers(1, 200)) :]


def huge_number(data: bytes, rng: Rng) -> bytes:
    code = str(rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"]))
    size = struct.calcsize(code)
    value = int(rng.choice([0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62])) % 256**size
    return _written(data, _place(data, rng, size), struct.pack(code, value))


def swap_parts(data: bytes, rng: Rng) -> bytes:
    a, b, c = sorted(int(at) for at in rng.integers(0, len(data) + 1, 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def text(data: bytes, rng: Rng) -> bytes:
    return [b"", b"\0" * 1000, b"<html>Please log in</html>\n" * 20, b"version https://git-lfs.github.com\n", b"\n"][
        int(rng.integers(5))
    ]


def foreign_tail(data: bytes, rng: Rng, others: list[bytes]) -> bytes:
    other = others[int(rng.integers(len(others)))]
    return data[: int(rng.integers(len(data) + 1))] + other[int(rng.integers(len(other) + 1)) :]


def foreign_file(data: bytes, rng: Rng, others: list[bytes]) -> bytes:
    return others[int(rng.integers(len(others)))]


def _png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return chunks


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png_header(data: bytes, rng: Rng) -> bytes:
    """Another size, depth, kind of colours or interlacing, with the right checksum."""
    chunks = _png_chunks(data)
    if not chunks or len(chunks[0][1]) != 13:
        return data
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.choice([0, 0, 1, 1, 2, 3, 6]))
        choices = SIZES if at < 2 else (1, 2, 4, 8, 16, 7) if at == 2 else (0, 2, 3, 4, 6, 9) if at == 3 else (0, 1, 2)
        fields[at] = int(rng.choice(choices))
    return _png([(chunks[0][0], struct.pack(">IIBBBBB", *fields)), *chunks[1:]])


def png_chunks(data: bytes, rng: Rng) -> bytes:
    """Chunks in another order, twice, or left out."""
    chunks = _png_chunks(data)
    if chunks:
        picked = rng.permutation(len(chunks)) if rng.random() < 0.5 else rng.integers(0, len(chunks), len(chunks) + 1)
        chunks = [chunks[0]] * (rng.random() < 0.7) + [chunks[i] for i in picked]
    return _png(chunks)


def png_bomb(data: bytes, rng: Rng) -> bytes:
    """Pixels or text that unpack to much more than a file of this size should hold."""
    chunks = _png_chunks(data)
    if not chunks:
        return data
    packed = zlib.compress(bytes(2**25), 9)
    kind = int(rng.integers(4))
    if kind == 0:
        return _png([chunks[0], (b"IDAT", packed), (b"IEND", b"")])
    if kind == 1:
        side = int(rng.choice([20_000, 30_000, 60_000, 2**31 - 1]))
        return _png([(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)), (b"IDAT", packed), (b"IEND", b"")])
    name = (b"zTXt", b"iCCP")[kind - 2]
    return _png([chunks[0], *[(name, b"a\0\0" + packed)] * 8, *chunks[1:]])


def jpeg_segments(data: bytes, rng: Rng) -> bytes:
    """Another size, number of components or length in the segments of a JPEG."""
    places = [i for i in range(min(len(data), 2000) - 10) if data[i] == 255 and 0xC0 <= data[i + 1] < 0xFE]
    frames = [i for i in places if data[i + 1] in (0xC0, 0xC1, 0xC2)]
    if frames and rng.random() < 0.6:
        at = frames[0] + int(rng.choice([5, 7]))
        return _written(data, at, struct.pack(">H", int(rng.choice([0, 1, 2**15, 60_000, 2**16 - 1]))))
    if not places:
        return data
    at = places[int(rng.integers(len(places)))]
    return _written(data, at + int(rng.integers(1, 10)), rng.bytes(1))


def tiff_tag(data: bytes, rng: Rng) -> bytes:
    """Another type, count or value of a tag: sizes, strips and tiles, compression, or where the next directory is."""
    if len(data) < 16 or data[:4] != b"II*\0":
        return flip_bits(data, rng)
    (at,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[at : at + 2].ljust(2, b"\0"))
    if not 0 < count < 100 or at + 2 + 12 * count + 4 > len(data):
        return flip_bits(data, rng)
    if rng.random() < 0.05:  # a ring of directories
        return _written(data, at + 2 + 12 * count, struct.pack("<I", at))
    for _ in range(int(rng.integers(1, 3))):
        entry = at + 2 + 12 * int(rng.integers(count))
        what = rng.random()
        if what < 0.2:
            data = _written(data, entry + 2, struct.pack("<H", int(rng.integers(0, 19))))
        elif what < 0.4:
            data = _written(data, entry + 4, struct.pack("<I", int(rng.choice(SIZES))))
        elif what < 0.5:
            data = _written(
                data, entry, struct.pack("<H", int(rng.choice([256, 257, 278, 322, 325, 338, 42113, 34735])))
            )
        else:
            small = rng.random() < 0.5
            value = int(rng.integers(0, 20)) if small else int(rng.choice(SIZES))
            data = _written(data, entry + 8, struct.pack("<I", value))
    return data


def tiff_bomb(data: bytes, rng: Rng) -> bytes:
    """A TIFF of a few hundred bytes that says it has very many pixels, strips, or bands."""
    width, height = (int(rng.choice([1, 30_000, 60_000, 2**20, 2**31 - 1])) for _ in range(2))
    bands = int(rng.choice([1, 3, 4, 16, 60_000]))
    rows = int(rng.choice([1, 512, height]))
    strips = min(-(-height // rows) if rng.random() < 0.5 else 1, 2**32 - 1)
    compression = int(rng.choice([1, 5, 8, 32773, 50000]))
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1)]
    tags += [(273, 4, strips, 8), (277, 3, 1, bands), (278, 4, 1, rows), (279, 4, strips, 0)]
    if rng.random() < 0.4:
        side = int(rng.choice([16, 512, 2**15, 2**20]))
        tiles = min(-(-width // side) * -(-height // side), 2**32 - 1)
        tags = [tag for tag in tags if tag[0] not in (273, 278, 279)]
        tags += [(322, 4, 1, side), (323, 4, 1, side), (324, 4, tiles, 8), (325, 4, tiles, 0)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return struct.pack("<4sIH", b"II*\0", 8, len(tags)) + entries + bytes(4) + rng.bytes(64)


def zip_fields(data: bytes, rng: Rng) -> bytes:
    """Another size, place, flag or method in the directory of an archive or before a member."""
    places = [i for i in range(len(data) - 4) if data[i : i + 4] in (b"PK\1\2", b"PK\3\4", b"PK\5\6")]
    if not places:
        return data
    at = places[int(rng.integers(len(places)))]
    offset, size = [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (38, 4), (42, 4)][
        int(rng.integers(9))
    ]
    value = int(rng.choice([0, 1, 8, 9, 12, 14, 2**16 - 1, 2**31, 2**32 - 1])) % 256**size
    return _written(data, at + offset, value.to_bytes(size, "little"))


def zip_names(data: bytes, rng: Rng) -> bytes:
    """Names of the same length that lead out of the folder, to the root, or to another member."""
    at = data.find(b"images_png/")
    if at < 0:
        return data
    name = [b"../../../..", b"/tmp/../../", b"..\\..\\..\\..", b"masks_png//", b"images_png\0"][int(rng.integers(5))]
    return data.replace(b"images_png/", name[:11].ljust(11, b"/"), int(rng.choice([-1, 1, 2])))


def json_values(data: bytes, rng: Rng) -> bytes:
    """Another value in a JSON text: of another kind, far too large, or nested far too deep."""
    separators = [i for i, byte in enumerate(data) if byte in b":,["]
    if not separators:
        return data
    at = separators[int(rng.integers(len(separators)))] + 1
    end = next((i for i in range(at, len(data)) if data[i] in b",]}"), len(data))
    values = [
        b"null",
        b"-1",
        b"1e999",
        b"NaN",
        b'"x"',
        b"[]",
        b"{}",
        b"true",
        b"9" * 5000,
        b'"\\ud800"',
        b"[" * 100_000,
    ]
    return data[:at] + values[int(rng.integers(len(values)))] + data[end:]


GENERAL: list[Callable] = [flip_bits, flip_bits, overwrite, cut, cut_front, insert, delete, huge_number, huge_number]
GENERAL += [swap_parts, text, foreign_tail, foreign_file]
WITH_OTHERS = (foreign_tail, foreign_file)
FORMATS: dict[str, list[Callable]] = {
    ".png": [png_header, png_header, png_chunks, png_bomb],
    ".jpg": [jpeg_segments],
    ".tif": [tiff_tag, tiff_tag, tiff_tag, tiff_bomb],
    ".zip": [zip_fields, zip_fields, zip_names],
    ".json": [json_values],
    ".jsonl": [json_values],
    ".geojson": [json_values],
}
