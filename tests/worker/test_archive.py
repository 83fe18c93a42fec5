"""An archive carries a folder and nothing else."""

import io
import tarfile
from pathlib import Path

import pytest

from app import tars
from worker import archive


def test_a_folder_comes_back_as_it_was(tmp_path: Path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.json").write_text("{}")
    (tmp_path / "in" / "deep" / "b.bin").write_bytes(bytes(range(256)))

    (tmp_path / "packed.tar").write_bytes(b"".join(archive.pack(tmp_path / "in")))
    tars.unpack(tmp_path / "packed.tar", tmp_path / "out")

    assert (tmp_path / "out" / "a.json").read_text() == "{}"
    assert (tmp_path / "out" / "deep" / "b.bin").read_bytes() == bytes(range(256))


def test_the_same_files_give_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        for file in ("b.txt", "a.txt") if name == "one" else ("a.txt", "b.txt"):
            (tmp_path / name / file).write_text(file)

    one, two = (b"".join(archive.pack(tmp_path / name)) for name in ("one", "two"))

    assert one == two
    with tarfile.open(fileobj=io.BytesIO(one)) as tar:
        assert tar.getnames() == ["a.txt", "b.txt"]


def test_an_archive_is_what_tar_itself_writes(tmp_path: Path):
    name = "long" * 40 + "/ö.bin"
    (tmp_path / "in" / name).parent.mkdir(parents=True)
    (tmp_path / "in" / name).write_bytes(b"x" * 20_000)

    packed = b"".join(archive.pack(tmp_path / "in"))

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo(name)
        entry.size = 20_000
        tar.addfile(entry, io.BytesIO(b"x" * 20_000))
    assert packed == out.getvalue()


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
        tars.unpack(tmp_path / "evil.tar", tmp_path / "out")
