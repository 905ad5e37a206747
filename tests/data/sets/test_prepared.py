"""Preparing data sets: what is verified, fetched, kept, made again; who may read it."""

import dataclasses
import hashlib
import io
import os
import socket
import stat
import urllib.error
import urllib.request

import published_rows
import pytest

from clinmerge_jax.data.reading import read_documents
from clinmerge_jax.data.sets import builder, prepared
from clinmerge_jax.data.sets.files import Source
from clinmerge_jax.data.sets.prepared import prepare, read
from clinmerge_jax.data.sets.table import SETS
from clinmerge_jax.errors import BadInput

ROW = {"question": "One and one?", "answer": "#### 2"}


@pytest.fixture
def sums(tmp_path):
    """A folder with both files of GSM8K, whose digests are not asked for."""
    published_rows.gsm8k(tmp_path)
    with published_rows.without_digests():
        yield tmp_path


@pytest.fixture
def no_sockets(monkeypatch):
    def refuse(*arguments, **more):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def _count_writes(monkeypatch):
    written = []
    write = builder.Prepared.write
    monkeypatch.setattr(builder.Prepared, "write", lambda self: written.append(self.name) or write(self))
    return written


def test_records_are_their_owners_alone_and_lie_beside_the_data(sums):
    read("gsm8k", "test", Source(str(sums)))
    paths = [sums / "prepared", *(sums / "prepared").rglob("*")]
    modes = {path.is_dir(): {stat.S_IMODE(one.stat().st_mode) for one in paths if one.is_dir() == path.is_dir()}
             for path in paths}  # fmt: skip
    assert modes == {True: {0o700}, False: {0o600}}
    assert len(list((sums / "prepared/gsm8k").rglob("*.array_record*"))) == 2


def test_records_are_made_once_and_again_when_a_file_or_the_way_of_reading_changes(sums, monkeypatch):
    written = _count_writes(monkeypatch)
    source = Source(str(sums))
    for _ in range(2):
        assert read("gsm8k", "test", source)[0].output == "2000"
    assert written == ["gsm8k"]
    path = sums / "grade_school_math/data/test.jsonl"
    os.utime(path, ns=(1, 1))
    assert read("gsm8k", "test", source)[0].output == "2000"
    assert written == ["gsm8k"]  # the same content
    published_rows.write_lines(path, [ROW])
    assert [row.output for row in read("gsm8k", "test", source)] == ["2"]
    assert written == ["gsm8k"] * 2
    for module in (builder, prepared):
        monkeypatch.setattr(module, "VERSION", "9.0.0")
    monkeypatch.setattr(builder.Prepared, "VERSION", "9.0.0")
    assert read("gsm8k", "test", source)[0].output == "2"
    assert written == ["gsm8k"] * 3
    assert [path.name for path in (sums / "prepared/gsm8k").iterdir() if path.is_dir()] == ["9.0.0"]


def test_preparing_that_fails_leaves_nothing_that_is_taken_for_a_set(sums):
    path = sums / "grade_school_math/data/test.jsonl"
    published_rows.write_lines(path, [ROW, {"question": "No answer?"}])
    for _ in range(2):
        with pytest.raises(BadInput, match="test.jsonl line 2: has no 'answer'"):
            read("gsm8k", "test", Source(str(sums)))
    published_rows.write_lines(path, [ROW])
    assert len(read("gsm8k", "test", Source(str(sums)))) == 1
    assert [path.name for path in (sums / "prepared/gsm8k").iterdir() if path.is_dir()] == [builder.VERSION]


def test_a_split_that_comes_later_is_taken_up(sums):
    train = sums / "grade_school_math/data/train.jsonl"
    kept = train.read_bytes()
    train.unlink()
    source = Source(str(sums))
    assert len(read("gsm8k", "test", source)) == 1
    train.write_bytes(kept)
    assert len(read("gsm8k", "train", source)) == 1


def test_a_cache_takes_the_records_where_the_data_may_not_be_written(sums, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache") / "records"
    assert len(read("gsm8k", "test", Source(str(sums), str(cache)))) == 1
    assert not (sums / "prepared").exists()
    (sums / "prepared").write_text("in the way")
    with pytest.raises(
        BadInput, match="data_dir: prepared records cannot be stored in .*; name a folder for them with c"
    ):
        read("gsm8k", "test", Source(str(sums)))


def test_digests_are_those_of_the_files(sums):
    path = "grade_school_math/data/test.jsonl"
    assert prepare("gsm8k", Source(str(sums))).sha256[path] == hashlib.sha256((sums / path).read_bytes()).hexdigest()


def test_a_folders_digest_changes_with_any_of_its_files(tmp_path):
    published_rows.open_i(tmp_path)
    source = Source(str(tmp_path))
    before = prepare("open_i", source).sha256
    path = tmp_path / "open_i/ecgen-radiology/3.xml"
    path.write_text(path.read_text().replace("Normal 3", "Unchanged"))
    after = prepare("open_i", source).sha256
    assert list(before) == list(after) == ["open_i/ecgen-radiology"] and before != after


def test_a_file_that_is_not_the_known_one_is_refused_with_where_to_get_it(tmp_path):
    published_rows.gsm8k(tmp_path)
    with pytest.raises(BadInput, match=r"train.jsonl: is not the expected file \(sha256 .*https://raw.*\(MIT\)"):
        read("gsm8k", "test", Source(str(tmp_path)))


def test_offline_opens_no_socket(sums, no_sockets, tmp_path):
    assert len(read("gsm8k", "test", Source(str(sums)))) == 1
    (sums / "grade_school_math/data/train.jsonl").unlink()
    assert len(read("gsm8k", "test", Source(str(sums)))) == 1
    with pytest.raises(BadInput, match="lacks gsm8k/train.jsonl.*or run with config.offline=False to have it fetched"):
        read("gsm8k", "train", Source(str(sums)))


def test_what_may_be_fetched_is_fetched_verified_and_kept(tmp_path, monkeypatch):
    content = b'{"question": "One and one?", "answer": "#### 2"}\n'
    asked = []

    def answer(url, timeout):
        asked.append(url)
        return io.BytesIO(content)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    source = Source(str(tmp_path), offline=False)
    with pytest.raises(BadInput, match="is not the expected file"):
        read("gsm8k", "test", source)
    assert list(tmp_path.rglob("*.jsonl*")) == []
    parts = {
        split: tuple(
            dataclasses.replace(
                part, files=(dataclasses.replace(part.files[0], sha256=hashlib.sha256(content).hexdigest()),)
            )
            for part in parts
        )
        for split, parts in SETS["gsm8k"].splits.items()
    }
    monkeypatch.setitem(SETS, "gsm8k", dataclasses.replace(SETS["gsm8k"], splits=parts))
    asked.clear()
    for _ in range(2):
        assert len(read("gsm8k", "test", source)) == 1
    assert len(asked) == 2 and all(url.startswith("https://raw.githubusercontent.com/openai/") for url in asked)
    assert (tmp_path / "gsm8k/test.jsonl").read_bytes() == content


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def fail(url, timeout):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(urllib.request, "urlopen", fail)
    with pytest.raises(BadInput, match="gsm8k/train.jsonl cannot be fetched from https.*no route.*; check the network"):
        read("gsm8k", "test", Source(str(tmp_path), offline=False))


def test_credentialed_sets_are_never_fetched(tmp_path, no_sockets):
    for name in ("mimic_bhc", "mimic_cxr", "open_i"):
        assert not any(file.url for parts in SETS[name].splits.values() for part in parts for file in part.files)
        with pytest.raises(BadInput, match=f"the split test of {name}; get it from https://.*under"):
            read(name, "test", Source(str(tmp_path), offline=False))


def test_rows_that_share_an_id_are_refused_by_both(tmp_path):
    published_rows.mts_dialog(tmp_path)
    path = tmp_path / "Main-Dataset/MTS-Dialog-ValidationSet.csv"
    path.write_text(path.read_text().replace("\n1,", "\n0,"))
    with published_rows.without_digests(), pytest.raises(BadInput, match="row 2: has the same id as .* row 1"):
        prepare("mts_dialog", Source(str(tmp_path)))


def test_fine_tuning_reads_the_records_as_they_are(sums):
    folder = prepare("gsm8k", Source(str(sums))).folder.parents[1]
    (document,) = read_documents("tfds:gsm8k:test", "config.task", data_dir=str(folder))
    assert (document.id, document.prompt, document.completion) == ("test-0", "Two and 1,998?", "2000")


def test_no_folder_is_refused(tmp_path):
    with pytest.raises(BadInput, match="data_dir: '' is not a folder"):
        read("gsm8k", "test", Source(""))
    with pytest.raises(BadInput, match="data_dir: .*nowhere' is not a folder"):
        read("gsm8k", "test", Source(str(tmp_path / "nowhere")))
