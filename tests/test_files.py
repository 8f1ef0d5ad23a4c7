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


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_written(tmp_path, is_there):
    models, link = tmp_path / "models", tmp_path / "latest"
    models.mkdir()
    if is_there:
        (models / "model").write_bytes(b"an earlier one")
    link.symlink_to(models / "model")
    write_whole(link, b"model")
    assert link.is_symlink()
    assert (models / "model").read_bytes() == b"model"
    assert os.listdir(models) == ["model"]
