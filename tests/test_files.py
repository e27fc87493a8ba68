"""Writing files and folders where the file system does not support everything."""

import errno
import os
import stat

import pytest

from coconut_ds import files
from coconut_ds.files import damage, put_in_place, seal, sync, write_whole


@pytest.fixture
def refusing(monkeypatch):
    """Makes fsync fail for folders, or with ``files=True`` for files, with an error number."""
    monkeypatch.setattr(files, "_cannot_sync", set())
    real = os.fsync

    def refuse(number, of_files=False):
        def fsync(descriptor):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode) != of_files:
                raise OSError(number, os.strerror(number))
            real(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)

    return refuse


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "ENOSYS"])
def test_a_file_system_that_cannot_flush_folders_is_used_with_one_warning(tmp_path, refusing, caplog, name):
    refusing(getattr(errno, name))
    new = tmp_path / "new"
    (new / "engine").mkdir(parents=True)
    write_whole(new / "engine" / "state.json", "{}")
    seal(new)
    put_in_place(new, tmp_path / "checkpoint")
    assert damage(tmp_path / "checkpoint", hashes=True) == []
    assert len(caplog.messages) == 1
    assert "cannot flush folders to the disk" in caplog.messages[0]


def test_other_errors_of_flushing_are_raised(tmp_path, refusing):
    path = tmp_path / "state.json"
    path.write_text("{}")
    refusing(errno.EINVAL, of_files=True)
    with pytest.raises(OSError, match="Invalid argument"):
        sync(path)
    refusing(errno.EIO)
    with pytest.raises(OSError, match="error"):
        sync(tmp_path)
