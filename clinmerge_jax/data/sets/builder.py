"""Write data sets as array records with TensorFlow Datasets; TensorFlow itself is not needed.

Every set has the same features, so one builder serves all sets, and all records are read in the same way.
"""

import contextlib
import io
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row
from clinmerge_jax.errors import BadInput

VERSION = "1.1.0"  # increase when the reading of rows changes

_FEATURES = ("id", "input", "output", "label")
_ABOUT = ("name", "input_name", "fields", "choices", "cluster", "shown")  # one text, because each feature costs time


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The builder of one data set.

    Fine-tuning reads `id`, `input`, `output` and `label` of records (`tfds:NAME:SPLIT`). `about` is JSON with the other
    attributes of a row. Rows keep the order of their files.

    Args:
      data_set: its entry in the table.
      located: the layout and the paths of each split.
      folder: the parent of the folder NAME/VERSION that is created.
    """

    VERSION = tfds.core.Version(VERSION)
    url_infos: Mapping[str, Any] = {}  # nothing is downloaded; searching for checksums would need importlib_resources

    def __init__(
        self, data_set: DataSet, located: Mapping[str, tuple[Part, tuple[pathlib.Path, ...]]], folder: pathlib.Path
    ):
        self.name = data_set.name
        self.left_out = dict.fromkeys(located, 0)
        self._located = located
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in (*_FEATURES, "about")})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # `data.sets.files` downloads and verifies the files
        return {split: self._generate_examples(split) for split in self._located}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, str]]]:
        part, paths = self._located[split]
        names: dict[str, str] = {}
        for row in part.parse(*paths):
            if row is None:
                self.left_out[split] += 1
                continue
            if row.id in names:
                raise BadInput(f"{row.name}: has the same id as {names[row.id]}; get the file again from its authors")
            names[row.id] = row.name
            yield len(names), _record(row)
        if not names:
            raise BadInput(f"{paths[0]}: has no row for the split {split} of {self.name}; get the file again")

    def _generate_splits(self, dl_manager: Any, download_config: Any) -> list[tfds.core.SplitInfo]:
        """Streams each split to disk: the library's own writer buffers up to a gigabyte, then needs TensorFlow."""
        del download_config
        infos = []
        for split, examples in self._split_generators(dl_manager).items():
            counts = [0, 0]
            template = self._get_filename_template(split)
            self._example_writer().write(
                template.sharded_filepath(shard_index=0, num_shards=1), self._serialized(examples, counts)
            )
            infos.append(
                tfds.core.SplitInfo(
                    name=split, shard_lengths=[counts[0]], num_bytes=counts[1], filename_template=template
                )
            )
        return infos

    def _serialized(self, examples: Iterator[tuple[int, Any]], counts: list[int]) -> Iterator[tuple[int, bytes]]:
        """Yields the records as bytes, and adds up the number of records and bytes in `counts`."""
        for key, example in examples:
            data = self.info.features.serialize_example(self.info.features.encode_example(example))
            counts[0] += 1
            counts[1] += len(data)
            yield key, data

    def write(self) -> None:
        """Prepares all splits, with the library's output silenced."""
        tfds.disable_progress_bar()
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as unused:
            self.download_and_prepare(download_dir=unused, download_config=config)


def read_records(folder: pathlib.Path, split: str, limit: int = 0) -> list[Row]:
    """Reads the first rows of a prepared split.

    Args:
      folder: the folder NAME/VERSION that a builder made.
      split: the name of the split.
      limit: the maximum number of rows; 0 for all.
    """
    records = tfds.builder_from_directory(folder).as_data_source(split)
    number = min(limit, len(records)) if limit else len(records)
    return [_row(record) for record in records.__getitems__(range(number))]


def _record(row: Row) -> dict[str, str]:
    about = {name: getattr(row, name) for name in _ABOUT}
    return {name: getattr(row, name) for name in _FEATURES} | {"about": json.dumps(about)}


def _row(record: Mapping[str, bytes]) -> Row:
    about = json.loads(record["about"])
    about["choices"] = tuple(about["choices"])
    return Row(**{name: record[name].decode() for name in _FEATURES}, **about)
