"""Output folders: whole or not at all, resumed, refused, replaced, locked; and digests of files."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import safetensors.numpy

from clinmerge_jax.checkpoint import digest
from clinmerge_jax.checkpoint.digest import FileDigest, sha256
from clinmerge_jax.checkpoint.output import PROVENANCE_FILE, OutputFolder, OutputState
from clinmerge_jax.errors import BadInput


def _finish(target, identity, text="weights", overwrite=False):
    with OutputFolder(target, identity, overwrite) as output:
        state = output.open()
        if state is not OutputState.FINISHED:
            output.write_text("weights", text)
            output.commit({"made_by": "test"})
    return state


def _tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_commit_puts_the_whole_folder_in_place(tmp_path):
    target = tmp_path / "a" / "b" / "out"
    with OutputFolder(target, {"t": 0.5, "pair": (1, 2)}) as output:
        assert output.open() is OutputState.FRESH
        output.write_text("config.json", "{}")
        (tmp_path / "source.txt").write_text("copied")
        output.copy(tmp_path / "source.txt")
        assert not target.exists()
        output.commit({"made_by": "test"})
    assert sorted(os.listdir(target)) == ["config.json", "provenance.json", "source.txt"]
    assert os.listdir(target.parent) == ["out"]
    provenance = json.loads((target / PROVENANCE_FILE).read_text())
    assert provenance == {"made_by": "test", "identity": {"t": 0.5, "pair": [1, 2]}}


def test_finished_with_the_same_identity_is_left_as_it_is(tmp_path):
    assert _finish(tmp_path / "out", {"t": 1}) is OutputState.FRESH
    before = _tree(tmp_path)
    assert _finish(tmp_path / "out", {"t": 1}, "other") is OutputState.FINISHED
    assert _tree(tmp_path) == before and os.listdir(tmp_path) == ["out"]


def test_finished_with_another_identity_is_refused(tmp_path):
    _finish(tmp_path / "out", {"t": 1})
    before = _tree(tmp_path)
    with pytest.raises(BadInput, match="^config.output: .*another configuration.*--config.overwrite=True"):
        _finish(tmp_path / "out", {"t": 2})
    assert _tree(tmp_path) == before and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("identity", [{"t": 1}, {"t": 2}])
def test_overwrite_replaces_a_finished_result(tmp_path, identity):
    _finish(tmp_path / "out", {"t": 1})
    (tmp_path / "out" / "stale").touch()
    assert _finish(tmp_path / "out", identity, "new", overwrite=True) is OutputState.FRESH
    assert (tmp_path / "out" / "weights").read_text() == "new"
    assert sorted(os.listdir(tmp_path / "out")) == ["provenance.json", "weights"]
    assert os.listdir(tmp_path) == ["out"]


def test_own_comparison_of_results(tmp_path):
    _finish(tmp_path / "out", {"t": 1, "place": "here"})
    same = lambda provenance, identity: provenance["identity"]["t"] == identity["t"]  # noqa: E731
    assert OutputFolder(tmp_path / "out", {"t": 1, "place": "there"}, same_result=same).open() is OutputState.FINISHED
    with pytest.raises(BadInput):
        OutputFolder(tmp_path / "out", {"t": 2, "place": "here"}, same_result=same).open()


def _folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name).write_text(text)


FOREIGN = {
    "folder": lambda path: _folder(path, notes="mine"),
    "empty folder": lambda path: _folder(path),
    "file": lambda path: path.write_text("mine"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "folder with another program's provenance": lambda path: _folder(path, **{PROVENANCE_FILE: '{"made_by": "x"}'}),
    "folder with a provenance that is no object": lambda path: _folder(path, **{PROVENANCE_FILE: "[]"}),
    "folder with a provenance that is no JSON": lambda path: _folder(path, **{PROVENANCE_FILE: "{"}),
}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_not_ours_is_never_replaced(tmp_path, kind, overwrite):
    FOREIGN[kind](tmp_path / "out")
    before = _tree(tmp_path)
    with pytest.raises(BadInput, match="^config.output: .* is not a result of this program; name another folder$"):
        _finish(tmp_path / "out", {}, overwrite=overwrite)
    assert _tree(tmp_path) == before and os.listdir(tmp_path) == ["out"]


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for target, problem in {
        "": "is empty",
        " ": "is empty",
        "/": "root of the file system",
        "~no-such-user-1/out": "user who does not exist",
        str(tmp_path / "file" / "out"): os.strerror(errno.ENOTDIR),
        str(tmp_path / "file" / "sub" / "out"): os.strerror(errno.ENOTDIR),
        str(tmp_path / ("x" * 300)): os.strerror(errno.ENAMETOOLONG),
        str(tmp_path / "made" / ("x" * 300) / "out"): os.strerror(errno.ENAMETOOLONG),
    }.items():
        with pytest.raises(BadInput, match="^config.output: ") as refusal:
            _finish(target, {})
        assert problem in str(refusal.value)
    assert os.listdir(tmp_path) == ["file"]


def test_interrupted_run_is_continued_by_the_same_identity_only(tmp_path):
    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        assert output.open() is OutputState.FRESH
        output.write_text("done", "half")
        assert output.partial.name == ".out.partial"
    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        assert output.open() is OutputState.RESUMED
        assert output.path("done").read_text() == "half"
        (output.partial / "folder").mkdir()
    with OutputFolder(tmp_path / "out", {"t": 2}) as output:
        assert output.open() is OutputState.FRESH
        assert sorted(os.listdir(output.partial)) == [".identity.json", ".lock"]


def test_failure_keeps_the_hidden_folder_and_bad_input_removes_it(tmp_path):
    with pytest.raises(OSError), OutputFolder(tmp_path / "a" / "out", {}) as output:
        output.open()
        raise OSError("disk")
    assert output.partial.is_dir() and not output.target.exists()
    with pytest.raises(BadInput), OutputFolder(tmp_path / "a" / "out", {}) as output:
        assert output.open() is OutputState.RESUMED
        raise BadInput("x: y; z")
    assert os.listdir(tmp_path / "a") == []  # an earlier run made it


def test_bad_input_removes_the_parents_that_were_made_and_no_others(tmp_path):
    (tmp_path / "kept").mkdir()
    with pytest.raises(BadInput), OutputFolder(tmp_path / "kept" / "a" / "b" / "out", {}) as output:
        output.open()
        raise BadInput("x: y; z")
    assert os.listdir(tmp_path / "kept") == []
    with pytest.raises(BadInput), OutputFolder(tmp_path / "kept" / "a" / "b" / "out", {}) as output:
        output.open()
        (tmp_path / "kept" / "a" / "other").touch()
        raise BadInput("x: y; z")
    assert os.listdir(tmp_path / "kept" / "a") == ["other"]


def _run(code, *arguments):
    """A Python process with OutputFolder, `target` and what it prints."""
    start = "import os, signal, sys; from clinmerge_jax.checkpoint.output import *; target = sys.argv[1];"
    return subprocess.run([sys.executable, "-c", start + code, *arguments], capture_output=True, text=True, timeout=60)


def test_process_killed_before_commit_leaves_no_target(tmp_path):
    code = """
output = OutputFolder(target, {"t": 1}); output.open(); output.write_text("done", "half")
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert _run(code, str(tmp_path / "out")).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".out.partial"]
    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        assert output.open() is OutputState.RESUMED  # the lock died with the process
        assert output.path("done").read_text() == "half"


def test_process_killed_while_committing_leaves_no_target_and_can_go_on(tmp_path):
    """Dies at the rename, in a child process."""
    code = """
import pathlib
output = OutputFolder(target, {"t": 1}); output.open(); output.write_text("done", "all")
pathlib.Path.rename, rename = lambda *paths: (
    os.kill(os.getpid(), signal.SIGKILL) if str(paths[1]) == target else rename(*paths)), pathlib.Path.rename
output.commit({})
"""
    assert _run(code, str(tmp_path / "out")).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == [".out.partial"]
    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        assert output.open() is OutputState.RESUMED
        output.commit({})
    assert sorted(os.listdir(tmp_path / "out")) == ["done", "provenance.json"]


def test_second_process_is_refused_and_disturbs_nothing(tmp_path):
    code = """
from clinmerge_jax.errors import BadInput
try:
    with OutputFolder(target, {"t": 2}, overwrite=True) as output:
        output.open()
except BadInput as error:
    print(error)
"""
    with OutputFolder(tmp_path / "a" / "out", {"t": 1}) as output:
        output.open()
        output.write_text("done", "half")
        before = _tree(tmp_path)
        result = _run(code, str(tmp_path / "a" / "out"))
        assert "another process is writing" in result.stdout and result.stderr == ""
        assert _tree(tmp_path) == before
        output.commit({})
    assert (tmp_path / "a" / "out" / "done").read_text() == "half"


def test_lock_holds_until_the_folder_is_in_place(tmp_path, monkeypatch):
    states = []

    def second(path):
        if path == output.partial:
            try:
                OutputFolder(output.target, {"t": 2}).open()
            except BadInput as error:
                states.append(str(error))

    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        output.open()
        output.write_text("done", "all")
        monkeypatch.setattr("clinmerge_jax.checkpoint.output.sync", second)
        output.commit({})
    assert len(states) == 1 and "another process is writing" in states[0]
    assert sorted(os.listdir(tmp_path / "out")) == ["done", "provenance.json"]


def test_result_that_appears_between_look_and_lock_is_not_replaced(tmp_path, monkeypatch):
    late = OutputFolder(tmp_path / "out", {"t": 2})
    lock = fcntl.flock

    def commit_first(descriptor, mode):
        monkeypatch.setattr(fcntl, "flock", lock)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / PROVENANCE_FILE).write_text('{"identity": {"t": 1}}')
        lock(descriptor, mode)

    monkeypatch.setattr(fcntl, "flock", commit_first)
    with pytest.raises(BadInput, match="another configuration"), late:
        late.open()
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("size", [0, 1, 999])
def test_sha256_equals_hashlib(tmp_path, monkeypatch, size):
    monkeypatch.setattr(digest, "_CHUNK", 64)
    path = tmp_path / "x"
    path.write_bytes(np.random.default_rng(0).bytes(size))
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [0, 0, 1, 1, 3], [1, 2], []])
def test_digest_does_not_depend_on_the_order_of_pieces(tmp_path, monkeypatch, order):
    monkeypatch.setattr(digest, "_CHUNK", 100)
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.arange(300, dtype=np.float32)}, path)
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    whole = FileDigest(path)
    whole.read_header()
    for piece in order:
        offset = start + 300 * piece
        whole.update(offset, memoryview(data)[offset : offset + 300])
    whole.read_header()  # a second time takes nothing in
    assert whole.finish() == hashlib.sha256(data).hexdigest()


def test_pieces_in_order_are_not_read_again(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"a": np.arange(300, dtype=np.float32)}, path)
    data = path.read_bytes()
    reads = []
    monkeypatch.setattr(digest, "read_into", lambda *arguments: reads.append(arguments))
    whole = FileDigest(path)
    whole.read_header()
    whole.update(len(data) - 1200, memoryview(data)[-1200:])
    assert whole.finish() == hashlib.sha256(data).hexdigest() and reads == []


def test_what_a_process_killed_after_the_rename_left_is_removed(tmp_path):
    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        output.open()
        output.commit({})
    (tmp_path / "out" / ".lock").write_text("")
    (tmp_path / ".out.replaced").mkdir()
    with OutputFolder(tmp_path / "out", {"t": 1}) as output:
        assert output.open() is OutputState.FINISHED
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["provenance.json"]


def test_a_target_that_holds_an_input_is_refused(tmp_path):
    (tmp_path / "out" / "parent").mkdir(parents=True)
    with pytest.raises(BadInput, match="contains the folder of config.model"):
        OutputFolder(tmp_path / "out", {}).refuse_overlap({"config.model": tmp_path / "out" / "parent"})


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a file system in which folders cannot be made")
def test_a_place_where_no_folder_can_be_made_is_refused():
    with pytest.raises(BadInput, match="config.output: cannot create"):
        OutputFolder("/proc/result", {}).open()


def test_a_journal_outlives_an_interruption_and_not_the_result(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), OutputFolder(target, {"t": 0.5}) as output:
        output.open()
        assert output.read_journal() == {}
        output.write_journal({"done": [1, 0.1]})
        raise KeyboardInterrupt
    with OutputFolder(target, {"t": 0.5}) as output:
        assert output.open() is OutputState.RESUMED
        assert output.read_journal() == {"done": [1, 0.1]}
        output.commit({})
    assert os.listdir(target) == [PROVENANCE_FILE]
    assert output.finished_text("same t", "Its tables are in") == (
        f"{target} is finished already: same t, nothing to do.\n"
        "To make it again: --config.overwrite=True. Its tables are in README.md in that folder."
    )


def test_a_result_larger_than_the_disk_is_refused_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5_000_000))
    with OutputFolder(tmp_path / "out", {}) as output:
        output.open()
        output.check_space(5_000_000)
        with pytest.raises(BadInput) as refusal:
            output.check_space(7_000_000_000, "the adapter", "free some space or give a lower rank")
    assert str(refusal.value) == (
        f"config.output: the adapter takes 7.00GB and {tmp_path} has 5.00MB free; free some space or give a lower rank"
    )
