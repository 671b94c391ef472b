"""Names of items and labels, and the index of each; they travel with the run (`RunFolder.keep_vocabularies`)."""

from __future__ import annotations

import io as bytes_io
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dist_teracon import io
from dist_teracon.data.dataset import Dataset
from dist_teracon.data.open import open_dataset
from dist_teracon.data.raw.values import with_truth_forms
from dist_teracon.data.schema import FIRST_ITEM, TYPES_FILE, DatasetInfo, input_file
from dist_teracon.errors import RunError, TeraconError
from dist_teracon.train.run_folder import RunFolder


class Vocabulary:
    """Names by index, and indices by name.

    Args:
        names: By index; None where an index is reserved.
    """

    def __init__(self, names: Sequence[str | None]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _index(self) -> dict[str, int]:
        return with_truth_forms({name: index for index, name in enumerate(self.names) if name is not None})

    @cached_property
    def array(self) -> NDArray[np.object_]:
        """The names as an array, which can be indexed by many indices at once."""
        return np.array(self.names, dtype=object)

    def index(self, name: str) -> int:
        """Return a name's index, −1 for one that is not there."""
        return self._index.get(name, -1)

    def indices(self, names: pa.Array) -> NDArray[np.int64]:
        """Return the index of each of an array of strings, −1 for those that are not there."""
        encoded = names.dictionary_encode()
        own = np.array([*(self._index.get(name, -1) for name in encoded.dictionary.to_pylist()), -1], dtype=np.int64)
        return own[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


class Vocabularies:
    """A run's vocabularies, read on first use: its own copies, or for older runs those of its data set.

    Args:
        folder: The run.
        info: The description of the run's data set.
        dataset: URI of the data set.
    """

    def __init__(self, folder: RunFolder, info: DatasetInfo, dataset: str) -> None:
        self._folder, self._info, self._dataset = folder, info, dataset
        self._read: dict[str, Vocabulary] = {}

    def items(self) -> Vocabulary:
        """Return the items.

        Raises:
            RunError: neither the run nor its data set has them.
        """
        return self._vocabulary("items", "item")

    def labels(self, task: str) -> Vocabulary:
        """Return a task's labels; raises as `items`."""
        if self._info.task(task).predicts_next:
            # items of later versions come behind; they are no labels of the first task
            return Vocabulary(self.items().names[FIRST_ITEM : FIRST_ITEM + self._info.task(task).labels])
        return self._vocabulary(task, "label")

    def types(self) -> Vocabulary:
        """Return the types of events, by number.

        Raises:
            RunError: the run's copy is gone.
        """
        content = self._folder.types()
        if content is None:
            raise RunError(
                f"{self._folder}: {TYPES_FILE} is missing, the names of events' types; was the run copied in part? copy it again"
            )
        return Vocabulary(pq.ParquetFile(bytes_io.BytesIO(content)).read(columns=["type"])["type"].to_pylist())

    def input_values(self, feature: str) -> Vocabulary:
        """Return the values of a side feature, by number.

        Raises:
            RunError: the run's copy is gone.
        """
        content = self._folder.input_values(feature)
        if content is None:
            raise RunError(f"{self._folder}: {input_file(feature)} is missing, the values of '{feature}'; was the run copied in part?")
        return Vocabulary(pq.ParquetFile(bytes_io.BytesIO(content)).read(columns=["value"])["value"].to_pylist())

    def _vocabulary(self, name: str, column: str) -> Vocabulary:
        if name not in self._read:
            content = self._folder.vocabulary(name)
            # not `read_table`, which imports pandas on its way
            table = self._of_dataset(name) if content is None else pq.ParquetFile(bytes_io.BytesIO(content)).read(columns=[column])
            self._read[name] = Vocabulary(table[column].to_pylist())
        return self._read[name]

    def _of_dataset(self, name: str) -> pa.Table:
        try:
            dataset: Dataset = open_dataset(self._dataset)
            if dataset.info.fingerprint == self._info.fingerprint:
                return dataset.vocabulary(name)
            reason = f"{self._dataset} is another data set by now"
        except (TeraconError, OSError) as error:
            reason = io.message_of(error)
        what = "items" if name == "items" else f"labels of {name}"
        raise RunError(
            f"{self._folder}: has no names of {what} of its own, as runs of earlier versions, and its data set cannot be read ({reason}); "
            "bring the data set back, or go on with the run once, which copies them"
        )
