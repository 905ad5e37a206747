"""Remote models: a hub id or a bucket's URL becomes a local folder.

Both ways fetch the same files (`FETCHED_FILES`, from the model's own folder only) and check the list of files before
they fetch anything. Files are cached: the hub's in the hub's own cache, a bucket's in `$CLINMERGE_CACHE`, by default
`~/.cache/clinmerge_jax`.
"""

import contextlib
import errno
import fcntl
import fnmatch
import hashlib
import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tqdm
from absl import logging

from clinmerge_jax.checkpoint.files import CARRIED_FILES, pickle_refusal
from clinmerge_jax.checkpoint.output import PROVENANCE_FILE
from clinmerge_jax.errors import BadInput
from clinmerge_jax.parallel import distributed

FETCHED_FILES = (
    "config.json",
    "adapter_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "README.md",
    PROVENANCE_FILE,  # it records whether data under a use agreement went in
    *CARRIED_FILES,
)
# Subfolders, pickles, and the second copy of the weights that some models include in their maker's own layout.
LEFT_FILES = ("*/*", "*.bin", "*.pt", "*.pth", "consolidated*.safetensors")

MANIFEST = ".clinmerge_fetched.json"
CACHE_VARIABLE = "CLINMERGE_CACHE"
_PART = ".part"
_HUB_SECONDS = 30

_NAME = r"\w(?:[\w.-]*\w)?"
_HUB_ID = re.compile(rf"(?P<repo>{_NAME}/{_NAME})(?:@(?P<revision>\w[\w./+-]*))?", re.ASCII)
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs"}
# The keys under which file systems report the version of a file.
_VERSION_KEYS = (
    "etag", "ETag", "md5Hash", "crc32c", "generation", "mtime", "updated", "LastModified", "last_modified", "created",
)  # fmt: skip


def is_url(location: str) -> bool:
    """Whether a location has a protocol: gs://bucket/model, s3://bucket/model."""
    return "://" in location


def is_hub_id(location: str) -> bool:
    """Whether a location is spelled org/name or org/name@revision."""
    found = _HUB_ID.fullmatch(location)
    return found is not None and not {"..", "--"} & set(re.findall(r"\.\.|--", location))


def is_fetched(name: str) -> bool:
    """Whether a file of a model's folder is fetched with it."""
    return _fits(name, FETCHED_FILES) and not _fits(name, LEFT_FILES)


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")


def _check_listing(names: Iterable[str], place: str, field: str, **conversion: Any) -> None:
    """Refuses a model that could not be opened, judging by its file names alone.

    Args:
      names: the files of the model's folder.
      place: its name in messages.
      field: the config field that gave it, for messages.
      **conversion: arguments of `pickle_refusal` for the command that converts pickles.

    Raises:
      BadInput: there are no safetensors, or nothing that describes them.
    """
    names = sorted(names)
    if not any(is_fetched(name) and name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if _fits(name, ("*.bin", "*.pt", "*.pth")) and "/" not in name]
        if pickles:
            raise pickle_refusal(f"{field}: {place}", pickles[0], **conversion)
        raise BadInput(f"{field}: {place} holds no safetensors files; give a model that has them")
    if not {"config.json", "adapter_config.json"} & set(names):
        raise BadInput(f"{field}: {place} has no config.json; give a model in the Hugging Face layout")


# The hub.


def fetch_hub(location: str, field: str) -> pathlib.Path:
    """Returns the folder of a hub model in the hub's cache, and fetches what is missing there.

    The library's own settings apply: HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE, HF_TOKEN or a login. If the hub cannot be
    reached, a complete copy of that revision in the cache is used, with a warning unless HF_HUB_OFFLINE is set.

    Args:
      location: org/name or org/name@revision; the revision is a branch, a tag or a commit.
      field: the config field that gave it, for messages.

    Returns:
      The folder of the commit in the cache.

    Raises:
      BadInput: the model cannot be fetched or could not be opened; the message is one line.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    found = _HUB_ID.fullmatch(location)
    repo, revision = found["repo"], found["revision"]
    conversion = {"source": repo, "target": f"{repo.split('/')[1]}-safetensors", "revision": revision}
    wanted = {"allow_patterns": list(FETCHED_FILES), "ignore_patterns": list(LEFT_FILES)}
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=_HUB_SECONDS)
    except (errors.RevisionNotFoundError, errors.HFValidationError) as error:
        raise _hub_refusal(error, repo, revision, field) from error
    except (errors.HTTPError, OSError) as error:
        refusal = _hub_refusal(error, repo, revision, field)
        try:
            path = pathlib.Path(snapshot_download(repo, revision=revision, local_files_only=True, **wanted))
        except OSError:
            raise refusal from error
        names = os.listdir(path)
        if not any(_fits(name, ("*.safetensors", "*.bin", "*.pt", "*.pth")) for name in names):
            raise refusal from error
        _check_listing(names, location, field, **conversion)
        if not constants.HF_HUB_OFFLINE:
            logging.warning("%s: %s is not checked for a newer version (%s)", field, location, _one_line(error))
        logging.info("%s: %s, commit %s, is in the cache: %s", field, repo, path.name, path)
        return path
    _check_listing([file.rfilename for file in info.siblings or ()], location, field, **conversion)
    logging.info(
        "%s: fetching %s, revision %s (commit %s), from %s",
        field, repo, revision or "main", info.sha, constants.ENDPOINT,
    )  # fmt: skip
    try:
        path = pathlib.Path(snapshot_download(repo, revision=revision, **wanted))
    except (errors.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: what hf_xet raises
        raise _hub_refusal(error, repo, revision, field) from error
    logging.info("%s: %s, commit %s, is in %s", field, repo, path.name, path)
    return path


def _hub_refusal(error: BaseException, repo: str, revision: str | None, field: str) -> BadInput:
    """Builds the error for what the hub answered or its library raised."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # the first failure; the library then looked into its cache
    hub, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    login = "log in with `hf auth login` or set HF_TOKEN"
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    said = getattr(error, "server_message", None)
    detail = f"{status}, {' '.join(said.split())}" if said else f"{status}"
    if isinstance(error, errors.HFValidationError):
        problem = f"{repo} is neither a folder nor a hub id; give a checkpoint folder or org/name"
    elif isinstance(error, errors.GatedRepoError):
        problem = (
            f"{repo} is gated, and access is not granted ({status}); accept its licence on {hub}/{repo}, then {login}"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        problem = f"{repo} has no revision {revision or 'main'}; its branches and tags are on {hub}/{repo}/tree/main"
    elif isinstance(error, errors.RepositoryNotFoundError):
        problem = (
            f"{repo} is not a folder, and {hub} has no such model ({status}); check the spelling, or {login} if the"
            " model is private"
        )
    elif status == 401:
        problem = f"{hub} does not accept the token ({detail}); log in again with `hf auth login`, or correct HF_TOKEN"
    elif status == 403:
        problem = f"{hub} refuses access to {repo} ({detail}); {login} with a token that may read it"
    elif status is not None:
        problem = f"{hub} did not serve {repo} ({detail}); try again later, or give a checkpoint folder"
    elif isinstance(error, errors.OfflineModeIsEnabled):
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        problem = (
            f"{repo} is not a folder, and revision {revision or 'main'} is not complete in the cache {cache} while"
            f" HF_HUB_OFFLINE is set; unset it, or fetch the model first with `{command}`"
        )
    elif isinstance(error, OSError) and (error.filename is not None or _is_full(error)):
        problem = (
            f"{repo} cannot be stored in {cache} ({_one_line(error)}); free some space, or set HF_HOME to another"
            " folder"
        )
    else:
        problem = (
            f"{repo} is not a folder, and cannot be fetched from {hub} ({_one_line(error)}); check the network or the"
            " proxy and run the command again, or give a checkpoint folder"
        )
    return BadInput(f"{field}: {problem}")


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


# Buckets.


def fetch_url(url: str, field: str) -> pathlib.Path:
    """Returns the folder of a bucket's model in the local cache, and copies new and changed files into it.

    Files are compared by size and by the version that the file system reports (etag, checksum, time). Each file is
    written under a temporary name, renamed, and recorded in a manifest at once, so that an interrupted copy resumes
    with the next file.

    Args:
      url: gs://, s3:// or another protocol of fsspec, except hf, http and https.
      field: the config field that gave it, for messages.

    Returns:
      The folder in the cache.

    Raises:
      BadInput: the model cannot be fetched or could not be opened; the message is one line.
    """
    url = url.rstrip("/")
    system, root = _open_url(url, field)
    listing = _list(system, root, url, field)
    name = url.rsplit("/", 1)[1]
    copy = f"import fsspec; f, p = fsspec.url_to_fs({url!r}); f.get(p + '/', {name + '-bin/'!r}, recursive=True); "
    conversion = {"source": f"{name}-bin", "target": f"{name}-safetensors", "before": copy}
    _check_listing(listing, url, field, **conversion)
    wanted = {name: version for name, version in listing.items() if is_fetched(name)}
    folder = _cache_folder() / hashlib.sha256(url.encode()).hexdigest()
    try:
        with _locked(folder):
            fetched = _copy_missing(system, root, url, wanted, folder, field)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(
            f"{field}: {url} cannot be copied to {folder} ({_one_line(error)}); free some space and run the command"
            f" again, or set {CACHE_VARIABLE} to another folder"
        ) from error
    if fetched and _list(system, root, url, field) != listing:
        raise BadInput(f"{field}: {url} changed while it was copied; run the command again when it is finished")
    return folder


def _cache_folder() -> pathlib.Path:
    return pathlib.Path(os.environ.get(CACHE_VARIABLE) or "~/.cache/clinmerge_jax").expanduser()


def _open_url(url: str, field: str) -> tuple[Any, str]:
    """The file system and the path in it that a URL names."""
    protocol, _, rest = url.partition("://")
    if not rest:
        raise BadInput(f"{field}: {url} names no bucket; give gs://bucket/folder or s3://bucket/folder")
    if protocol in ("hf", "http", "https"):
        hub_id = rest.removeprefix("huggingface.co/").removeprefix("models/")
        hint = hub_id if is_hub_id(hub_id) else "org/name"
        raise BadInput(f"{field}: {url} is not a bucket; for a model on the hub give only its id: {hint}")
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        mend = f"run `pip install {package}`" if package else "install the package named here"
        raise BadInput(f"{field}: {url} needs {package or f'more ({_one_line(error)})'}; {mend}") from error
    except Exception as error:  # every file system has its own exceptions: no protocol, no credentials, no project
        raise BadInput(
            f"{field}: {url} cannot be opened ({_one_line(error)}); give a folder, org/name, gs://... or s3://..., and"
            " check the bucket's credentials"
        ) from error


def _list(system: Any, root: str, url: str, field: str) -> dict[str, dict[str, Any]]:
    """The size and version of every file of a folder, by name."""
    try:
        system.invalidate_cache()
        entries = system.ls(root, detail=True)
    except FileNotFoundError as error:
        raise BadInput(f"{field}: the folder {url} does not exist; check bucket and path") from error
    except PermissionError as error:
        raise BadInput(
            f"{field}: reading {url} is not permitted ({_one_line(error)}); log in to the bucket with an account that"
            " may read it"
        ) from error
    except Exception as error:  # as above: the cloud libraries' exceptions share no class
        raise BadInput(
            f"{field}: {url} cannot be listed ({_one_line(error)}); check the network and the bucket's credentials"
        ) from error
    files = {}
    for entry in entries:
        path = entry["name"].rstrip("/")
        if path == root.rstrip("/") and entry["type"] == "file" and entry["size"]:
            raise BadInput(f"{field}: {url} is a file; give the folder that holds it")
        if entry["type"] == "file" and not entry["name"].endswith("/"):
            version = {key: str(entry[key]) for key in _VERSION_KEYS if entry.get(key) is not None}
            files[path.rsplit("/", 1)[-1]] = {"size": entry["size"], **version}
    if not files:
        raise BadInput(f"{field}: {url} holds no files; check bucket and path")
    return files


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Creates the folder and locks it, so that no other process of this program fills it at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _copy_missing(
    system: Any, root: str, url: str, wanted: Mapping[str, dict[str, Any]], folder: pathlib.Path, field: str
) -> bool:
    """Makes the folder hold exactly the wanted files, and returns whether any had to be fetched."""
    noted = _read_manifest(folder, url)
    present = {
        name: version
        for name, version in wanted.items()
        if noted.get(name) == version and _size(folder / name) == version["size"]
    }
    for path in folder.iterdir():
        if path.name not in present and path.name != MANIFEST:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    missing = [name for name in wanted if name not in present]
    if not missing:
        logging.info("%s: %s is unchanged in %s", field, url, folder)
        return False
    logging.info("%s: fetching %d of %d files of %s", field, len(missing), len(wanted), url)
    total = sum(wanted[name]["size"] for name in missing)
    with tqdm.tqdm(
        total=total, desc="fetch", unit="B", unit_scale=True, mininterval=0.5, leave=False,
        disable=not distributed.is_first(),
    ) as bar:  # fmt: skip
        for name in missing:
            _copy(system, f"{root.rstrip('/')}/{name}", folder / name, wanted[name]["size"], bar, f"{field}: {url}")
            present[name] = wanted[name]
            _write_manifest(folder, url, present)
    logging.info("%s: %s is in %s", field, url, folder)
    return True


def _copy(system: Any, source: str, target: pathlib.Path, size: int, bar: tqdm.tqdm, label: str) -> None:
    """Copies one file under a temporary name, checks its size and renames it."""
    from fsspec.callbacks import Callback

    before = bar.n

    class Progress(Callback):
        def call(self, hook_name: str | None = None, **kwargs: Any) -> None:
            bar.update(before + self.value - bar.n)

    part = target.with_name(f".{target.name}{_PART}")
    try:
        system.get_file(source, str(part), callback=Progress())
    except Exception as error:  # the cloud libraries' exceptions share no class
        if _is_full(error):
            raise
        raise BadInput(
            f"{label}: {target.name} cannot be fetched ({_one_line(error)}); run the command again to continue"
        ) from error
    if _size(part) != size:
        raise BadInput(f"{label}: {target.name} arrived with {_size(part)} of {size} bytes; run the command again")
    os.replace(part, target)
    bar.update(before + size - bar.n)


def _size(path: pathlib.Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _read_manifest(folder: pathlib.Path, url: str) -> dict[str, Any]:
    """The size and version of each file fetched from this URL, by name; empty without a valid manifest."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        logging.warning("%s is damaged: its files are fetched again", path)
        return {}
    files = content.get("files") if isinstance(content, dict) and content.get("url") == url else None
    return files if isinstance(files, dict) else {}


def _write_manifest(folder: pathlib.Path, url: str, files: Mapping[str, Any]) -> None:
    part = folder / (MANIFEST + _PART)
    part.write_text(json.dumps({"url": url, "files": files}, indent=1))
    os.replace(part, folder / MANIFEST)
