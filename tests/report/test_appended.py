"""Files that grow, on a disk that goes and comes back."""

import errno
import logging
import os

from grass_jax.report import appended
from grass_jax.report.appended import AppendedFile


def test_a_file_is_opened_again_where_its_handle_has_died(tmp_path, monkeypatch, caplog):
    """As after a remount: what was opened before it answers with an error for ever."""
    caplog.set_level(logging.INFO, "absl")
    dead, opened = set(), appended._opened

    class Handle:
        def __init__(self, path):
            self.file = opened(path)

        def write(self, data):
            if self in dead:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            return self.file.write(data)

        def close(self):
            self.file.close()
            if self in dead:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(appended, "_opened", Handle)
    file = AppendedFile(tmp_path / "lines")
    for number, line in enumerate((b"first\n", b"second\n", b"third\n")):
        if number == 1:
            dead.add(file._file)
        file.write(line)
        file.flush()
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\nthird\n"
    file.close()
    assert ["Stale file handle" in text for text in caplog.messages] == [True, False]
    assert caplog.messages[1].endswith("lines is written again.")


def test_a_full_disk_keeps_its_handle(tmp_path, monkeypatch):
    """A file that has been renamed meanwhile gets the rest of its torn record."""
    file = AppendedFile(tmp_path / "lines")
    file.write(b"first\n")
    file.flush()
    handle = file._file

    class Full:
        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    full = Full()
    monkeypatch.setattr(file, "_file", full)
    file.write(b"second\n")
    file.flush()
    assert file._file is full
    monkeypatch.setattr(file, "_file", handle)
    file.close()
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\n"
