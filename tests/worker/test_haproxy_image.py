"""The image of load balancers, as it is made where no registry can be reached."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from model.haproxy import HOME
from worker import haproxy_image
from worker.data_folder import StackError
from worker.program_image import ProgramImage

pytestmark = pytest.mark.engine


def test_it_has_the_program_its_loader_and_libraries_and_a_home_of_its_user(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(haproxy_image.root_archive(tmp_path))) as archive:
        names = archive.getnames()
        home = archive.getmember(HOME.removeprefix("/"))
        assert (home.uid, home.gid) == (haproxy_image.USER, haproxy_image.USER)
        assert archive.getmember(haproxy_image.PROGRAM).mode == 0o755
    assert any("ld-linux" in name for name in names)
    assert any(name.startswith("lib/libc.so") for name in names)
    for needed in ("sh", "nc", "cat", "cp", "mv"):
        assert f"bin/{needed}" in names
    assert len(names) == len(set(names)), "a file is there twice"


def test_where_it_cannot_be_made_everything_else_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    with pytest.raises(StackError, match="CAIRN_LB_IMAGE"):
        haproxy_image.find(tmp_path)
    said: list[str] = []
    monkeypatch.setattr(ProgramImage, "is_there", lambda self, url: False)
    assert not haproxy_image.image.offer("unix:///nowhere", said.append)
    assert "registry" in said[0]
