from __future__ import annotations

from pathlib import Path

from madkit.core.archives import walk


def test_linked_folders_are_walked_and_loops_end(tmp_path: Path) -> None:
    photos, data = tmp_path / "photos", tmp_path / "data"
    for folder in (photos, data):
        folder.mkdir()
        (folder / "file.txt").touch()
    (data / "images").symlink_to(photos)
    (data / "self").symlink_to(data)
    (photos / "back").symlink_to(data)
    assert [str(path.relative_to(data)) for path in walk(data)] == ["file.txt", "images/file.txt"]
