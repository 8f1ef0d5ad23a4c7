"""Files that are there as a whole, and what is no file."""

import os
import stat
import sys

import pytest

from sklip.files import write_whole


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    # Open from both ends: nobody waits, not even for one that replaced it.
    ends = os.open(pipe, os.O_RDWR)
    try:
        write_whole(pipe, b"model")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        assert os.read(ends, 100) == b"model"
    finally:
        os.close(ends)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_file_is_replaced(tmp_path):
    (tmp_path / "model").write_bytes(b"an earlier one")
    write_whole(tmp_path / "model", b"model")
    assert (tmp_path / "model").read_bytes() == b"model"
    assert os.listdir(tmp_path) == ["model"]
