"""Folders appear in one piece or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mexma_export.folder import new_folder
from mexma_rt.errors import InputError


def old_bundle(tmp_path: Path) -> Path:
    target = tmp_path / "bundle"
    target.mkdir()
    (target / "mexma.json").write_text("old", encoding="utf-8")
    return target


def test_the_folder_appears_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    with new_folder(target) as work:
        (work / "mexma.json").write_text("new", encoding="utf-8")
        assert work.parent == tmp_path and not target.exists()
    assert (target / "mexma.json").read_text(encoding="utf-8") == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interruption_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "bundle") as work:
        (work / "half").write_text("x", encoding="utf-8")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_an_existing_bundle_needs_force_and_is_replaced_whole(tmp_path: Path) -> None:
    target = old_bundle(tmp_path)
    (target / "only-in-the-old").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"already exists\. Type --force"), new_folder(target):
        pass
    with new_folder(target, force=True) as work:
        (work / "mexma.json").write_text("new", encoding="utf-8")
    assert [path.name for path in target.iterdir()] == ["mexma.json"]
    assert list(tmp_path.iterdir()) == [target]


def test_force_keeps_the_old_one_when_the_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = old_bundle(tmp_path)
    rename = Path.rename

    def fail_on_the_new_one(self: Path, to: Path) -> Path:
        if self.suffix == ".partial":
            raise OSError("disk gone")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_on_the_new_one)
    with pytest.raises(OSError, match="disk gone"), new_folder(target, force=True):
        pass
    assert (target / "mexma.json").read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_force_never_deletes_what_is_not_a_bundle(tmp_path: Path) -> None:
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter.tex").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match=r"is not a bundle \(no mexma\.json\)"), new_folder(precious, force=True):
        pass
    assert (precious / "chapter.tex").exists()
