"""Define data sets: their files, and the functions that parse them into a common row type."""

import dataclasses
import posixpath
import urllib.parse
from collections.abc import Callable, Iterator, Mapping


@dataclasses.dataclass(frozen=True)
class Row:
    """One example of any data set.

    Attributes:
      id: unique within the set, over all splits.
      name: file and row number, for messages.
      input: the text to summarize or answer.
      output: the reference answer; for multiple choice its letter.
      input_name: the name of the input in prompts.
      fields: further texts that prompts may use.
      choices: the texts of the options, A first.
      cluster: an identifier shared by rows that are not independent, such as those of one patient; "" for the id.
      label: the class; "" if there are none.
      shown: the answer as shown in a few-shot example; "" for the output.
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
    """A published file or folder.

    Attributes:
      paths: possible paths below the user's folder; a download goes to the first.
      sha256: digest of the content; "" if this project has never seen the file.
      url: where to download it; "" if its terms or its host do not allow that.
    """

    paths: tuple[str, ...]
    sha256: str = ""
    url: str = ""


@dataclasses.dataclass(frozen=True)
class Part:
    """A split in one published layout.

    Attributes:
      files: the files, all required.
      parse: takes one path per file and yields rows in file order; None for a row that is left out.
    """

    files: tuple[File, ...]
    parse: Callable[..., Iterator[Row | None]]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A data set.

    Attributes:
      name: its name in tasks and folders.
      splits: the layouts of each split; the first whose files exist is read.
      licence: the licence of the published files.
      home: where to get the files.
      left_out: describes which rows are left out, for messages.
    """

    name: str
    splits: Mapping[str, tuple[Part, ...]]
    licence: str
    home: str
    left_out: str = "none"

    @property
    def credentialed(self) -> bool:
        """Whether its rows are under a data use agreement; models trained on them inherit it."""
        return "Credentialed" in self.licence


def github(folder: str, repository: str, commit: str, path: str, sha256: str, name: str = "") -> File:
    """A file of a public GitHub repository.

    Its possible places below the user's folder: directly in the set's folder; in that folder under its path in the
    repository; in a clone of the repository; or the user's folder is itself the clone.

    Args:
      folder: the set's folder.
      repository: owner/name.
      commit: the commit at which the file has the digest.
      path: the path in the repository.
      sha256: digest of the content.
      name: file name in the set's folder; "" for the name in the repository.
    """
    own = f"{folder}/{name or posixpath.basename(path)}"
    clone = f"{posixpath.basename(repository)}/{path}"
    url = f"https://raw.githubusercontent.com/{repository}/{commit}/{urllib.parse.quote(path)}"
    return File(tuple(dict.fromkeys([own, f"{folder}/{path}", clone, path])), sha256, url)
