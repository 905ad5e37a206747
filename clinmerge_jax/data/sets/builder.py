"""Data sets as builders of TensorFlow Datasets that write array records; TensorFlow itself is not needed.

Every set has the same features, so that one builder serves all, and the records of one read like those of another.
"""

import contextlib
import io
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds

from clinmerge_jax.data.sets.data_set import DataSet, Part, Row
from clinmerge_jax.errors import BadInput

VERSION = "1.0.0"  # a change in how rows are read is a new one

_FEATURES = ("id", "name", "input", "output", "input_name", "fields", "choices", "cluster", "label", "shown")
_JSON = ("fields", "choices")


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The builder of one data set.

    `input`, `output` and `id` are what fine-tuning reads of records (`tfds:NAME:SPLIT`). `fields` and `choices` are JSON
    text. Rows keep their files' order.

    Args:
      data_set: its row of the table.
      located: the layout and the paths of each split.
      folder: below which the folder NAME/VERSION is made.
    """

    VERSION = tfds.core.Version(VERSION)
    url_infos: Mapping[str, Any] = {}  # it downloads nothing; looking for a list of checksums needs importlib_resources

    def __init__(
        self, data_set: DataSet, located: Mapping[str, tuple[Part, tuple[pathlib.Path, ...]]], folder: pathlib.Path
    ):
        self.name = data_set.name
        self.left_out = dict.fromkeys(located, 0)
        self._located = located
        super().__init__(data_dir=folder, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({name: tfds.features.Text() for name in _FEATURES})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator[tuple[int, Any]]]:
        del dl_manager  # files are fetched where they are verified
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
        """Writes each split as it is read: the library's own way keeps a gigabyte, and for more needs TensorFlow."""
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
        """The records' bytes; `counts` become how many records and bytes there were."""
        for key, example in examples:
            data = self.info.features.serialize_example(self.info.features.encode_example(example))
            counts[0] += 1
            counts[1] += len(data)
            yield key, data

    def write(self) -> None:
        """Prepares all splits, without the library's talk."""
        tfds.disable_progress_bar()
        with contextlib.redirect_stdout(io.StringIO()):
            self.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


def read_records(folder: pathlib.Path, split: str, limit: int = 0) -> list[Row]:
    """The first rows of a prepared split.

    Args:
      folder: NAME/VERSION, which a builder made.
      split: of the set.
      limit: how many at most; 0 for all.
    """
    records = tfds.builder_from_directory(folder).as_data_source(split)
    number = min(limit, len(records)) if limit else len(records)
    return [_row(record) for record in records.__getitems__(range(number))]


def _record(row: Row) -> dict[str, str]:
    texts = {name: getattr(row, name) for name in _FEATURES}
    return texts | {"fields": json.dumps(dict(row.fields)), "choices": json.dumps(row.choices)}


def _row(record: Mapping[str, bytes]) -> Row:
    texts = {name: record[name].decode() for name in _FEATURES}
    fields, choices = (json.loads(texts.pop(name)) for name in _JSON)
    return Row(**texts, fields=fields, choices=tuple(choices))
