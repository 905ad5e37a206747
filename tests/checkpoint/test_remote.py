"""Models that lie elsewhere: a hub that a thread of the test serves, and buckets in fsspec's memory."""

import contextlib
import hashlib
import http.server
import json
import logging
import re
import shlex
import shutil
import subprocess
import sys
import threading
import urllib.parse

import fsspec
import huggingface_hub
import pytest
import support
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants

from clinmerge_jax.checkpoint import remote
from clinmerge_jax.checkpoint.folder import open_checkpoint, resolve
from clinmerge_jax.errors import BadInput
from clinmerge_jax.provenance import is_credentialed

FIELD = "config.clinical"
HEADS = {"main": "a" * 40, "v1": "b" * 40}
OTHERS = {"README.md", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"}
LEFT = ("pytorch_model.bin", "consolidated.safetensors", "modeling.py", "original/model.safetensors")


class _Hub(http.server.ThreadingHTTPServer):
    """The requests of the hub that a download makes.

    Attributes:
      models: repository to commit to file name to content.
      gated: repositories whose files are given only to a token.
      requests: method, path and token of every request, in order.
      failure: status that every request gets, where it is not None.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.models, self.gated, self.requests, self.failure = {}, set(), [], None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, repo, folder, revision="main"):
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        self.models.setdefault(repo, {})[HEADS[revision]] = files

    def files(self):
        """Names of the files whose content was asked for."""
        return {path.rsplit("/", 1)[1] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path}


class _Answers(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _send(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def do_GET(self):
        hub = self.server
        path = urllib.parse.unquote(self.path.partition("?")[0])
        token = self.headers.get("Authorization")
        hub.requests.append((self.command, path, token))
        if hub.failure:
            return self._send(hub.failure)
        kinds = (
            r"/(?P<api>api)/models/(?P<repo>[^/]+/[^/]+)(/(revision|(?P<tree>tree))/(?P<revision>.+))?",
            r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)",
        )
        match = next(filter(None, (re.fullmatch(kind, path) for kind in kinds)), None)
        if match is None:  # endpoints that the library asks beside the download
            return self._send(404)
        found = match.groupdict()
        if found["repo"] not in hub.models:
            return self._send(404 if token else 401, X_Error_Code="RepoNotFound")
        revision = found["revision"] or "main"
        commit = HEADS.get(revision, revision)
        files = hub.models[found["repo"]].get(commit)
        if files is None:
            return self._send(404, X_Error_Code="RevisionNotFound")
        if found.get("tree"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
            return self._send(200, json.dumps(tree).encode(), Content_Type="application/json")
        if found.get("api"):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": found["repo"], "sha": commit, "siblings": siblings, "tags": [], "downloads": 0}
            return self._send(200, json.dumps(info).encode(), Content_Type="application/json")
        if found["repo"] in hub.gated and token != "Bearer hf_good":
            return self._send(403 if token else 401, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        content = files[found["file"]]
        self._send(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub that the library asks, and an empty cache."""
    with _Hub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        _use(monkeypatch, server.url, tmp_path / "home")
        yield server
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


def _use(monkeypatch, url, home):
    """Sets in this process what the library reads from the environment at its start."""
    places = {"ENDPOINT": url, "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token")}
    places["HUGGINGFACE_CO_URL_TEMPLATE"] = url + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in places.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)


@contextlib.contextmanager
def _lines():
    """What is logged meanwhile."""
    logger, lines = logging.getLogger("absl"), []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def _model(folder, seed=0, shards=2):
    """A checkpoint with everything that travels, and files that do not."""
    support.write_llama(folder, seed=seed, shards=shards)
    support.write_tokenizer(folder)
    for name in ("README.md", "chat_template.jinja", "LICENSE", *LEFT):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    return folder


def _pickles(folder):
    support.write_llama(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def _refusal(location):
    with pytest.raises(BadInput) as refusal:
        open_checkpoint(location, FIELD)
    message = str(refusal.value)
    assert message.startswith(f"{FIELD}: ") and "\n" not in message and "; " in message
    return message


def test_a_hub_id_is_fetched_and_opens(hub, tmp_path):
    folder = _model(tmp_path / "model")
    hub.add("org/model", folder)
    with _lines() as lines:
        checkpoint = open_checkpoint("org/model", FIELD)
    assert set(checkpoint.tensors) == set(support.llama_tensors(support.TINY))
    assert checkpoint.path.name == HEADS["main"] and tmp_path / "home" in checkpoint.path.parents
    names = {path.name for path in checkpoint.path.iterdir()}
    weights = {path.name for path in folder.glob("model*.safetensors*")}
    assert names == hub.files() == OTHERS | weights | {"config.json"}
    for name in names:
        assert (checkpoint.path / name).read_bytes() == (folder / name).read_bytes()
    assert len(lines) == 2 and all(line.startswith(FIELD) and HEADS["main"] in line for line in lines)
    assert "fetching org/model, revision main" in lines[0] and hub.url in lines[0]
    assert str(checkpoint.path) in lines[1]


def test_what_a_hub_model_says_of_its_data_comes_with_it(hub, tmp_path):
    folder = _model(tmp_path / "model")
    (folder / "provenance.json").write_text('{"credentialed": true}')
    hub.add("org/model", folder)
    assert is_credentialed(False, [open_checkpoint("org/model", FIELD)])


@pytest.mark.parametrize("revision", ["v1", HEADS["v1"]])
def test_a_revision_is_fetched(hub, tmp_path, revision):
    hub.add("org/model", _model(tmp_path / "new", seed=1))
    hub.add("org/model", _model(tmp_path / "old", seed=2), "v1")
    path = resolve(f"org/model@{revision}", FIELD)
    name = "model-00001-of-00002.safetensors"
    assert path.name == HEADS["v1"] and (path / name).read_bytes() == (tmp_path / "old" / name).read_bytes()
    assert resolve("org/model", FIELD).name == HEADS["main"]


def test_a_second_time_no_file_is_fetched(hub, tmp_path):
    hub.add("org/model", _model(tmp_path / "model"))
    path = resolve("org/model", FIELD)
    hub.requests.clear()
    assert resolve("org/model", FIELD) == path
    assert hub.requests and not hub.files()


@pytest.mark.parametrize("revision", ["", "@v1", "@" + HEADS["v1"]])
def test_offline_the_cache_is_taken(hub, tmp_path, monkeypatch, revision):
    hub.add("org/model", _model(tmp_path / "new", seed=1))
    hub.add("org/model", _model(tmp_path / "old", seed=2), "v1")
    path = resolve("org/model" + revision, FIELD)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with _lines() as lines:
        assert resolve("org/model" + revision, FIELD) == path
    assert not hub.requests and len(lines) == 1 and path.name in lines[0]


def test_offline_without_the_cache(hub, tmp_path, monkeypatch):
    hub.add("org/model", _model(tmp_path / "model"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "unset it, or fetch the model first with `hf download org/model`" in _refusal("org/model")
    assert "`hf download org/model --revision v1`" in _refusal("org/model@v1")
    assert not hub.requests


@pytest.mark.parametrize("lost", ["model-00002-of-00002.safetensors", "*.safetensors"])
def test_offline_with_half_a_model_in_the_cache(hub, tmp_path, monkeypatch, lost):
    hub.add("org/model", _model(tmp_path / "model"))
    path = resolve("org/model", FIELD)
    for file in path.glob(lost):
        file.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert "is not complete in the cache" in _refusal("org/model")


def test_a_hub_that_fails_leaves_the_cache(hub, tmp_path):
    hub.add("org/model", _model(tmp_path / "model"))
    path = resolve("org/model", FIELD)
    hub.failure = 503
    with _lines() as lines:
        assert resolve("org/model", FIELD) == path
    assert "is not checked for a newer version" in lines[0] and "503" in lines[0]
    assert "did not serve org/other (503)" in _refusal("org/other")


def test_no_network(tmp_path, monkeypatch):
    _use(monkeypatch, "http://127.0.0.1:9", tmp_path)
    message = _refusal("org/model")
    assert "cannot be fetched from http://127.0.0.1:9 (ConnectError" in message and "check the network" in message


def test_a_gated_model(hub, tmp_path, monkeypatch):
    hub.add("org/gated", _model(tmp_path / "model"))
    hub.gated.add("org/gated")
    mend = f"accept its licence on {hub.url}/org/gated, then log in with `hf auth login` or set HF_TOKEN"
    message = _refusal("org/gated")
    assert "is gated, and access is not granted (401)" in message and mend in message
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    message = _refusal("org/gated")
    assert "(403)" in message and mend in message
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    hub.requests.clear()
    assert len(open_checkpoint("org/gated", FIELD).files) == 2
    assert {token for _, _, token in hub.requests} == {"Bearer hf_good"}


def test_a_login_is_used(hub, tmp_path):
    hub.add("org/gated", _model(tmp_path / "model"))
    hub.gated.add("org/gated")
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "token").write_text("hf_good")
    assert len(open_checkpoint("org/gated", FIELD).files) == 2


@pytest.mark.parametrize("token", [None, "hf_good"])
def test_no_such_model(hub, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    message = _refusal("org/typo")
    assert "org/typo is not a folder, and" in message and "has no such model" in message and "spelling" in message


def test_no_such_revision(hub, tmp_path):
    hub.add("org/model", _model(tmp_path / "model"))
    resolve("org/model", FIELD)
    assert "org/model has no revision v9; " in _refusal("org/model@v9")


def test_a_spelling_that_the_library_refuses():
    assert "neither a folder nor a hub id" in _refusal("org/model.git")


def test_a_hub_model_without_safetensors(hub, tmp_path):
    hub.add("org/pickles", _pickles(tmp_path / "pickles"))
    hub.add("org/pickles", tmp_path / "pickles", "v1")
    message = _refusal("org/pickles")
    assert "holds pickle weights (pytorch_model.bin)" in message
    assert "M.from_pretrained('org/pickles', dtype='auto').save_pretrained('pickles-safetensors')" in message
    assert "from_pretrained('org/pickles', revision='v1', dtype='auto')" in _refusal("org/pickles@v1")
    (tmp_path / "pickles" / "pytorch_model.bin").unlink()
    hub.add("org/empty", tmp_path / "pickles")
    assert "org/empty holds no safetensors files; " in _refusal("org/empty")
    shutil.copy(_model(tmp_path / "model", shards=1) / "model.safetensors", tmp_path / "pickles")
    (tmp_path / "pickles" / "config.json").unlink()
    hub.add("org/bare", tmp_path / "pickles")
    assert "org/bare has no config.json; " in _refusal("org/bare")
    assert not hub.files()


def test_a_folder_wins_over_a_hub_id(hub, tmp_path, monkeypatch):
    hub.add("org/model", _model(tmp_path / "model"))
    support.write_llama(tmp_path / "org" / "model")
    monkeypatch.chdir(tmp_path)
    assert str(resolve("org/model", FIELD)) == "org/model" and not hub.requests


def test_a_folder_does_not_load_the_hub_library(tmp_path):
    folder = support.write_llama(tmp_path / "model")
    code = (
        "import sys; from clinmerge_jax.checkpoint.folder import open_checkpoint;"
        f"open_checkpoint({str(folder)!r}, 'x'); assert not {{'huggingface_hub', 'fsspec'}} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_environment_variables_reach_the_library(hub, tmp_path, monkeypatch, repository):
    """In a process of its own, since the library reads them when it is imported: a merge of two models of the hub."""
    for name, seed in {"instruct": 1, "clinical": 2}.items():
        hub.add(f"org/{name}", _model(tmp_path / name, seed=seed))
        hub.gated.add(f"org/{name}")
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "h"), "HF_TOKEN": "hf_good"}.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = ["--config=configs/merge.py", "--config.instruct=org/instruct", "--config.clinical=org/clinical"]
    command += ["--config.evaluate=", f"--config.output={tmp_path / 'merged'}"]
    result = support.run_process(repository, *command)
    assert result.returncode == 0, result.stderr
    assert "config.clinical: fetching org/clinical" in result.stderr and (tmp_path / "merged/config.json").is_file()
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = support.run_process(repository, *command[:1], "--config.instruct=org/other", *command[2:])
    assert result.returncode == 2 and not hub.requests
    assert "config.instruct: org/other is not a folder" in result.stderr.splitlines()[-1]


# Buckets.


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket `memory://bucket` and an empty cache."""
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def copied(monkeypatch):
    """Names of the files that are copied from now on."""
    names, get_file = [], MemoryFileSystem.get_file

    def note(self, path, *arguments, **keywords):
        names.append(path.rsplit("/", 1)[1])
        return get_file(self, path, *arguments, **keywords)

    monkeypatch.setattr(MemoryFileSystem, "get_file", note)
    return names


URL = "memory://bucket/models/llama"
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def _upload(system, folder):
    for file in folder.rglob("*"):
        if file.is_file():
            system.pipe_file(f"/bucket/models/llama/{file.relative_to(folder)}", file.read_bytes())


def test_a_bucket_is_copied_once(bucket, copied, tmp_path):
    folder = _model(tmp_path / "model")
    _upload(bucket, folder)
    with _lines() as lines:
        checkpoint = open_checkpoint(URL, FIELD)
    assert checkpoint.path == tmp_path / "cache" / hashlib.sha256(URL.encode()).hexdigest()
    assert set(checkpoint.tensors) == set(support.llama_tensors(support.TINY))
    expected = OTHERS | {path.name for path in folder.glob("model*.safetensors*")} - {"modeling.py"} | {"config.json"}
    assert set(copied) == expected == {path.name for path in checkpoint.path.iterdir()} - {remote.MANIFEST}
    for name in copied:
        assert (checkpoint.path / name).read_bytes() == (folder / name).read_bytes()
    assert "fetching 9 of 9 files" in lines[0] and str(checkpoint.path) in lines[1]
    copied.clear()
    assert resolve(URL + "/", FIELD) == checkpoint.path and not copied


def test_an_interrupted_copy_goes_on_with_the_next_file(bucket, copied, tmp_path, monkeypatch):
    _upload(bucket, _model(tmp_path / "model"))
    get_file = MemoryFileSystem.get_file

    def fail(self, path, target, **keywords):
        if path.endswith(SHARDS[1]):
            with open(target, "wb") as half:
                half.write(b"half")
            raise TimeoutError("the line went dead\nfor good")
        return get_file(self, path, target, **keywords)

    with monkeypatch.context() as broken:
        broken.setattr(MemoryFileSystem, "get_file", fail)
        message = _refusal(URL)
    assert f"{SHARDS[1]} cannot be fetched (TimeoutError: the line went dead for good); run the command" in message
    before, _ = list(copied), copied.clear()
    path = resolve(URL, FIELD)
    assert SHARDS[1] in copied and not set(before) & set(copied) and len(before + copied) == 9
    assert not [file for file in path.iterdir() if file.name.endswith(".part")]


def test_a_changed_listing_is_fetched_anew(bucket, copied, tmp_path):
    _upload(bucket, _model(tmp_path / "model", seed=1))
    path = resolve(URL, FIELD)
    copied.clear()
    changed = (_model(tmp_path / "other", seed=2) / SHARDS[0]).read_bytes()
    bucket.pipe_file(f"/bucket/models/llama/{SHARDS[0]}", changed)  # of the same size
    bucket.rm("/bucket/models/llama/LICENSE")
    assert resolve(URL, FIELD) == path
    assert copied == [SHARDS[0]] and (path / SHARDS[0]).read_bytes() == changed and not (path / "LICENSE").exists()


@pytest.mark.parametrize("harm", ["truncated", "lost", "manifest"])
def test_a_damaged_cache_is_mended(bucket, copied, tmp_path, harm):
    _upload(bucket, _model(tmp_path / "model"))
    path = resolve(URL, FIELD)
    copied.clear()
    if harm == "truncated":
        (path / SHARDS[0]).write_bytes(b"short")
    elif harm == "lost":
        (path / SHARDS[0]).unlink()
    else:
        (path / remote.MANIFEST).write_text("{")
    assert len(open_checkpoint(URL, FIELD).files) == 2
    assert len(copied) == 9 if harm == "manifest" else copied == [SHARDS[0]]


def test_a_bucket_that_changes_while_it_is_copied(bucket, tmp_path, monkeypatch):
    _upload(bucket, _model(tmp_path / "model"))
    get_file = MemoryFileSystem.get_file

    def change(self, path, target, **keywords):
        get_file(self, path, target, **keywords)
        self.pipe_file("/bucket/models/llama/config.json", b"{}")

    monkeypatch.setattr(MemoryFileSystem, "get_file", change)
    refusal = _refusal(URL)
    assert "changed while it was copied" in refusal or "bytes; run the command again" in refusal


def test_buckets_that_hold_no_model(bucket, copied, tmp_path):
    assert f"the folder {URL} does not exist; " in _refusal(URL)
    bucket.mkdirs("/bucket/models/llama")
    assert "holds no files" in _refusal(URL)
    _upload(bucket, _pickles(tmp_path / "pickles"))
    assert "pytorch_model.bin" in _refusal(URL) and f"fsspec.url_to_fs('{URL}')" in _refusal(URL)
    assert "is a file; give the folder" in _refusal(URL + "/config.json")
    bucket.rm("/bucket/models/llama/pytorch_model.bin")
    assert "holds no safetensors files" in _refusal(URL)
    assert not copied


@pytest.mark.parametrize(
    "error, part",
    [
        (PermissionError("403"), "is not permitted (PermissionError: 403); log in to the bucket"),
        (RuntimeError("no credentials\nat all"), "cannot be listed (RuntimeError: no credentials at all)"),
    ],
)
def test_buckets_that_do_not_answer(bucket, monkeypatch, error, part):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(MemoryFileSystem, "ls", fail)
    assert part in _refusal(URL)


def test_a_cache_that_cannot_be_written(bucket, tmp_path, monkeypatch):
    _upload(bucket, _model(tmp_path / "model"))
    (tmp_path / "file").touch()
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "file"))
    assert "set CLINMERGE_CACHE to another folder" in _refusal(URL)


def test_urls_that_cannot_be_opened(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for location, part in {
        "gs://bucket/model": "needs gcsfs; run `pip install gcsfs`",
        "s3://bucket/model": "needs s3fs; run `pip install s3fs`",
        "nope://bucket/model": "Protocol not known: nope",
        "gs://": "names no bucket",
        "hf://org/model": "give only its id: org/model",
        "hf://datasets/org/model": "give only its id: org/name",
        "https://huggingface.co/org/model": "give only its id: org/model",
    }.items():
        assert part in _refusal(location)


@pytest.mark.slow
def test_the_command_for_pickles_converts_them(tmp_path):
    """As it stands in the message, quotes and blanks of the folder's name included."""
    torch = pytest.importorskip("torch")
    folder = support.write_llama(tmp_path / "it's a model")
    support.write_tokenizer(folder)
    tensors = support.llama_tensors(support.TINY)
    state = {name: torch.from_numpy(values.astype("float32")).bfloat16() for name, values in tensors.items()}
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    command = shlex.split(_refusal(str(folder)).partition("with torch): ")[2])
    assert command[:2] == ["python", "-c"]
    result = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    converted = support.read_raw(tmp_path / "it's a model-safetensors" / "model.safetensors")
    assert {name: raw[2] for name, raw in converted.items()} == {name: v.tobytes() for name, v in tensors.items()}
