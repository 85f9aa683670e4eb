"""The kind of source that a word, a file or a folder means, and which kind goes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfumato.data.packing.folder_names import LocalNames, RemoteNames
from sfumato.data.packing.recognition import kind_of, source_named
from sfumato.data.packing.sources import SOURCES

FOLDERS = {
    "huggingface": ["state.json", "train-images-idx3-ubyte", "a.tar", "a.parquet", "a.png"],
    "idx": ["t10k-images-idx3-ubyte.gz", "a.tar", "a.parquet", "a.png"],
    "webdataset": ["a.tar", "a.parquet", "a.png"],
    "parquet": ["deep/er/a.parquet", "deep/a.tar", "deep/state.json", "a.png"],
    "folder": ["deep/a.png", "a.csv", "a.npz"],
}
FILES = {
    "a.npz": "npz",
    "A.NPZ": "npz",
    "train-images-idx3-ubyte.gz": "idx",
    "a.parquet": "parquet",
    "a.tar": "webdataset",
    "a.csv": "listing",
    "a.tsv.gz": "listing",
    "a.jsonl": "listing",
    "a.txt": "folder",
    "missing": "folder",
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_of_the_first_kind_that_recognises_it(kind: str, tmp_path: Path) -> None:
    for name in FOLDERS[kind]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert kind_of(str(tmp_path)) == kind
    for names in (LocalNames(tmp_path), RemoteNames(FOLDERS[kind])):
        assert SOURCES.find(kind).recognises(names)


def test_a_file_is_told_by_its_name() -> None:
    assert {name: kind_of(name) for name in FILES} == FILES


def test_a_word_goes_before_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    assert kind_of("digits") == source_named("digits").kind == "digits"
    assert kind_of("./digits") == "folder"


def test_no_two_kinds_claim_the_same() -> None:
    """Of two kinds with the same precedence, the choice would depend on their names."""
    kinds = list(SOURCES.all().values())
    endings = [ending for kind in kinds for ending in kind.FILES]
    claiming = [kind.PRECEDENCE for kind in kinds if "recognises" in vars(kind)]
    assert len(set(endings)) == len(endings)
    assert len(set(claiming)) == len(claiming)
