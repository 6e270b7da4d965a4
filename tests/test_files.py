from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

from nearfar.errors import InputError, did_you_mean
from nearfar.files import hash_file, read_json, write_atomic, write_json, write_text


def test_a_failure_while_writing_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "earlier")

    def fail() -> None:
        with write_atomic(path) as file:
            file.write(b"half")
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        fail()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "earlier")

    def refuse(handle: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(InputError, match=r"cannot write .*a\.txt: ") as caught:
        write_text(path, "later")
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_files_get_the_rights_that_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_a_file_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / "a" / "b.txt", "x")


def test_json_is_read_back_and_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2.5, "ü"]})
    assert read_json(path) == {"a": [1, 2.5, "ü"]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": math.nan})
    assert read_json(path) == {"a": [1, 2.5, "ü"]}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_damaged_json_is_one_clear_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_json(path)
    with pytest.raises(InputError, match="missing"):
        read_json(tmp_path / "b.json")


def test_the_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")  # the example of FIPS 180-2
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_suggestions_are_near_or_all() -> None:
    assert did_you_mean("mnits", ["mnist", "digits"]) == "; did you mean 'mnist'?"
    assert did_you_mean("zzz", ["b", "a"]) == "; known are a, b"


def test_half_of_a_surrogate_pair_is_kept_by_json_and_replaced_in_text(tmp_path: Path) -> None:
    tree = {"name": "caf\udce9.png", "other": "é"}
    write_json(tmp_path / "a.json", tree)
    assert read_json(tmp_path / "a.json") == tree
    write_text(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_text() == "caf?"
