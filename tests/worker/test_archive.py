"""An archive carries a folder and nothing else."""

import io
import tarfile
from pathlib import Path

import pytest

from worker import archive


def test_a_folder_comes_back_as_it_was(tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.json").write_text("{}")
    (tmp_path / "in" / "deep" / "b.bin").write_bytes(bytes(range(256)))

    archive.pack(tmp_path / "in", tmp_path / "packed.tar")
    archive.unpack(tmp_path / "packed.tar", tmp_path / "out")

    assert (tmp_path / "out" / "a.json").read_text() == "{}"
    assert (tmp_path / "out" / "deep" / "b.bin").read_bytes() == bytes(range(256))


def test_the_same_files_give_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
        archive.pack(tmp_path / name, tmp_path / f"{name}.tar")

    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../evil", tarfile.REGTYPE),
        ("/tmp/evil", tarfile.REGTYPE),
        ("a/../../evil", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
        ("device", tarfile.CHRTYPE),
    ],
)
def test_nothing_lands_outside(tmp_path: Path, name: str, kind: bytes):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(entry, io.BytesIO(b""))

    with pytest.raises(ValueError, match="no plain file"):
        archive.unpack(tmp_path / "evil.tar", tmp_path / "out")
