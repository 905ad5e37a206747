"""What a data set is: its files, and how their rows become rows of one kind."""

import dataclasses
import posixpath
import urllib.parse
from collections.abc import Callable, Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Row:
    """One example, whatever set it is of.

    Attributes:
      id: its own within the set, in every split.
      name: file and row, which stand for it in messages.
      input: the text that is to be summarized or answered.
      output: the answer; of a choice its letter.
      input_name: what prompts call the input.
      fields: the further texts that prompts may name.
      choices: the texts of the options, A first.
      cluster: what it shares with rows that are no independent evidence, such as a patient; "" for its id.
      label: its class; "" where there are none.
      shown: the answer as a worked example shows it; "" for the output.
    """

    id: str
    name: str
    input: str
    output: str
    input_name: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: tuple[str, ...] = ()
    cluster: str = ""
    label: str = ""
    shown: str = ""


@dataclasses.dataclass(frozen=True)
class File:
    """A file or folder that is published.

    Attributes:
      paths: where it may lie below the user's folder; a download goes to the first.
      sha256: of its content; "" where the project has never seen it.
      url: whence it may be fetched; "" where its terms or its host do not allow that.
    """

    paths: tuple[str, ...]
    sha256: str = ""
    url: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A split in one published layout.

    Attributes:
      files: all of them are needed.
      parse: from a path for each file to rows, in the files' order; None for a row that is left out.
    """

    files: tuple[File, ...]
    parse: Callable[..., Iterator[Row | None]]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
      name: as tasks and folders have it.
      splits: the layouts of each split; the first whose files are there is read.
      licence: under which it is published.
      home: where its files are to be had.
      left_out: which rows are not taken, for messages.
    """

    name: str
    splits: Mapping[str, tuple[Part, ...]]
    licence: str
    home: str
    left_out: str = "none"

    @property
    def credentialed(self) -> bool:
        """Whether its rows are under a use agreement, which what is trained on them inherits."""
        return "Credentialed" in self.licence


def github(folder: str, repository: str, commit: str, path: str, sha256: str, name: str = "") -> File:
    """A file of a public repository.

    It may lie in the set's own folder, bare or below its path in the repository; in a clone; or where the clone is the
    user's folder itself.

    Args:
      folder: of the set.
      repository: owner/name.
      commit: whose file has the digest.
      path: in the repository.
      sha256: of the content.
      name: in the set's own folder; "" for its name in the repository.
    """
    own = f"{folder}/{name or posixpath.basename(path)}"
    clone = f"{posixpath.basename(repository)}/{path}"
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{urllib.parse.quote(path)}"
    return File(tuple(dict.fromkeys([own, f"{folder}/{path}", clone, path])), sha256, url)
