"""Archives without a network: a wheel made here stands for what pip would bring."""

import hashlib
import io
import tarfile
import zipfile

import pytest

from splitjax.data import archive, fetch
from splitjax.data.archive import ArchiveError, cached, folder
from splitjax.data.pins import COLLECTIONS, Collection, Pin

TEXT = b"sentence\tlabel\n"
MEMBERS = {"pkg/data/train.txt": "train.tsv", "pkg/data/dev.txt": "dev.tsv"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache, and no way out: a test says what a download brings."""
    monkeypatch.setenv("SPLITJAX_DATA", str(tmp_path / "cache"))

    def refused(*args, **kwargs):
        raise AssertionError("a download that no test asked for")

    monkeypatch.setattr(archive, "download", refused)
    return tmp_path / "cache"


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "made.whl"
    with zipfile.ZipFile(path, "w") as file:
        for name in MEMBERS:
            file.writestr(name, TEXT)
    return path


@pytest.fixture
def offer(monkeypatch):
    """Pins an archive as "toy", and lets a download bring it."""

    def make(path, members=MEMBERS, sha256=None, parts=""):
        paths = path if isinstance(path, list) else [path]
        pins = []
        for each in paths:
            found = hashlib.sha256(each.read_bytes()).hexdigest()
            pins.append(Pin("wheel", each.stem, "1.0", sha256 or found))
        collection = Collection(tuple(pins), members, "a toy", parts)
        monkeypatch.setitem(COLLECTIONS, "toy", collection)

        def bring(pin, into):
            [source] = [each for each in paths if each.stem == pin.package]
            target = into / source.name
            target.write_bytes(source.read_bytes())
            return target

        monkeypatch.setattr(archive, "download", bring)

    return make


def test_an_archive_is_fetched_once(wheel, offer, home, monkeypatch):
    offer(wheel)
    assert cached("toy") is None
    assert folder("toy", fetch=True) == home / "toy" == cached("toy")
    assert {p.name: p.read_bytes() for p in (home / "toy").iterdir()} == {
        "train.tsv": TEXT,
        "dev.tsv": TEXT,
    }
    assert [p.name for p in home.iterdir()] == ["toy"]  # no temporary file is left
    monkeypatch.setattr(archive, "download", None)
    assert folder("toy", fetch=True) == home / "toy"


def test_a_wrong_hash_names_both_and_leaves_nothing(wheel, offer, home):
    offer(wheel, sha256="0" * 64)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(ArchiveError, match=f"SHA-256 {found}; made 1.0 .*{'0' * 64}"):
        folder("toy", fetch=True)
    assert cached("toy") is None and list(home.iterdir()) == []
    pin = COLLECTIONS["toy"].pins[0]
    with pytest.raises(ArchiveError, match="It was removed"):
        archive.verified(wheel, pin)
    assert not wheel.exists()


def test_a_missing_archive_says_how_to_get_it(wheel, offer):
    offer(wheel)
    with pytest.raises(ArchiveError, match="python -m splitjax.data.fetch toy"):
        folder("toy")
    with pytest.raises(ArchiveError, match="no data 'toi': did you mean 'toy'"):
        cached("toi")


def test_part_of_a_cache_is_none_and_is_made_whole(wheel, offer, home):
    offer(wheel)
    (home / "toy").mkdir(parents=True)
    (home / "toy" / "train.tsv").write_bytes(b"half of a")
    assert cached("toy") is None
    (home / "toy" / "dev.tsv").mkdir()
    assert cached("toy") is None
    assert (folder("toy", fetch=True) / "train.tsv").read_bytes() == TEXT
    assert cached("toy") is not None


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/out-of-the-cache.txt"])
def test_a_name_that_leaves_the_folder_is_refused(name, wheel, offer, home):
    offer(wheel, {"pkg/data/train.txt": name})
    with pytest.raises(ArchiveError, match="would be written outside"):
        folder("toy", fetch=True)
    assert list(home.iterdir()) == []


def test_members_that_climb_are_not_unpacked(tmp_path, offer, home):
    path = tmp_path / "bad.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../../escaped.txt", b"!")
        file.writestr("pkg/data/train.txt", TEXT)
    offer(path, {"pkg/data/train.txt": "train.tsv"})
    assert [p.name for p in folder("toy", fetch=True).iterdir()] == ["train.tsv"]
    assert not list(tmp_path.rglob("escaped.txt"))


@pytest.mark.parametrize("kind", ["whl", "tar.gz", "no archive"])
def test_a_member_that_is_not_there_is_named(kind, tmp_path, wheel, offer, home):
    path = tmp_path / f"other.{kind}"
    if kind == "whl":
        path = wheel
    elif kind == "tar.gz":
        with tarfile.open(path, "w:gz") as file:
            file.add(wheel, "pkg/else.txt")
    else:
        path.write_bytes(b"<html>")
    offer(path, {"pkg/gone.txt": "gone"})
    with pytest.raises(ArchiveError, match="has no member 'pkg/gone.txt'"):
        folder("toy", fetch=True)
    assert cached("toy") is None


def tar(path, mode, name):
    with tarfile.open(path, mode) as file:
        member = tarfile.TarInfo(name)
        member.size = len(TEXT)
        file.addfile(member, io.BytesIO(TEXT))
    return path


def test_a_package_of_npm(tmp_path, offer):
    offer(tar(tmp_path / "made.tgz", "w:gz", "package/a.txt"), {"package/a.txt": "a"})
    assert (folder("toy", fetch=True) / "a").read_bytes() == TEXT


def test_a_package_of_debian(tmp_path, offer):
    inner = tar(tmp_path / "data.tar.xz", "w:xz", "./usr/a.txt").read_bytes()
    whole = b"!<arch>\n"
    # An odd member before the one that is wanted is filled up to an even place.
    for name, content in (("debian-binary", b"2.0"), ("data.tar.xz", inner)):
        head = f"{name:<16}{0:<12}{0:<6}{0:<6}{644:<8}{len(content):<10}`\n"
        whole += head.encode() + content + b"\n" * (len(content) % 2)
    path = tmp_path / "made.deb"
    path.write_bytes(whole)
    offer(path, {"./usr/a.txt": "a"})
    assert (folder("toy", fetch=True) / "a").read_bytes() == TEXT
    path.write_bytes(whole[:90])
    offer(path, {"./usr/b.txt": "b"})
    with pytest.raises(ArchiveError, match="made.deb has no data.tar"):
        folder("toy", fetch=True)


def test_parts_are_joined(tmp_path, wheel, offer):
    whole, paths = wheel.read_bytes(), []
    for number, half in enumerate((whole[:100], whole[100:]), 1):
        paths.append(tmp_path / f"part{number}.whl")
        with zipfile.ZipFile(paths[-1], "w") as file:
            file.writestr(f"part_{number}/zip.{number:03}", half)
    offer(paths, parts="part_{n}/zip.{n:03}")
    assert (folder("toy", fetch=True) / "dev.tsv").read_bytes() == TEXT


def test_the_command_answers_for_each_name(wheel, offer, capsys):
    offer(wheel)
    assert fetch.main(["toy", "gone"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("toy: ") and err.startswith("gone: no data 'gone'")
    assert fetch.main(["--list"]) == 0
    assert "toy              cached  a toy" in capsys.readouterr().out
