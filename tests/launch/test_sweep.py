"""What is removed from memory, and what is put back."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from strongroom.launch.sweep import Written, empty, remove


def stubborn(folder: Path) -> None:
    """As a module cache of Go is: its owner may not write to it."""
    deep = folder / "mod" / "plain"
    deep.mkdir(parents=True)
    (deep / "source").write_text("x")
    (folder / "link").symlink_to("/etc")
    deep.chmod(0o555)
    deep.parent.chmod(0)


def in_a_child_without_roots_rights(look) -> bool:
    """Whether `look` came to its end there."""
    child = os.fork()
    if child == 0:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
        try:
            look()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def test_folders_that_their_owner_may_not_write_to_are_removed():
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        folder = Path(memory, "open", "cache")
        folder.parent.mkdir()
        Path(memory).chmod(0o755)
        folder.parent.chmod(0o777)

        def look() -> None:
            folder.mkdir()
            stubborn(folder)
            remove(folder)
            assert not folder.exists()

        assert in_a_child_without_roots_rights(look)
    assert Path("/etc/passwd").exists()


def test_a_folder_that_is_gone_already_is_no_fault(tmp_path):
    remove(tmp_path / "gone")


def test_emptying_keeps_the_folder_and_follows_no_link(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    outside.mkdir()
    (outside / "kept").write_text("x")
    folder.mkdir()
    (folder / "file").write_text("x")
    (folder / "to outside").symlink_to(outside)
    (folder / "sub").mkdir()
    empty(folder)
    assert list(folder.iterdir()) == []
    assert (outside / "kept").exists()


def test_what_stays_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PermissionError):
        empty(tmp_path)


def test_what_was_written_is_put_back_as_it_was_and_nothing_else_stays(tmp_path):
    file = tmp_path / "config.properties"
    file.write_text("as it was\n")
    file.chmod(0o640)
    written = Written.of(tmp_path)
    file.unlink()
    file.symlink_to("/etc/passwd")
    (tmp_path / "planted").mkdir()
    before = Path("/etc/passwd").read_bytes()
    written.restore()
    assert (file.read_text(), file.is_symlink(), file.stat().st_mode & 0o777) == ("as it was\n", False, 0o640)
    assert os.listdir(tmp_path) == ["config.properties"]
    assert Path("/etc/passwd").read_bytes() == before
