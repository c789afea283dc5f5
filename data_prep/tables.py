"""Tables with a column of captions and one of pictures: CSV, Parquet, Hugging Face data sets."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clip_italian.config import ConfigError
from data_prep.fields import Columns, make_row
from data_prep.lines import csv_records, find_files
from data_prep.rows import Item, Reject, Row, Skip

_BATCH = 64  # rows; each may hold a picture


@dataclasses.dataclass(frozen=True)
class Csv:
    """Reads CSV files with quotes where they are needed.

    Optional columns: `image_id`, `split` (dev and test count as validation), `url`, `license`,
    `original_captions`, `translator`.
    """

    path: tuple[str, ...]
    """CSV files (.gz or not), folders with such files, or patterns."""
    caption_column: tuple[str, ...] = ("caption",)
    """Columns of captions; of several, every one that is filled in becomes a caption."""
    image_column: str = "image"
    """Column of the picture: a path or a URL."""
    id_column: str = ""
    """Column of the picture's id; empty takes image_id, or else the path or URL."""
    delimiter: str = ","
    r"""The character between fields; `\t` for a tab."""
    columns: tuple[str, ...] = ()
    """Names of the columns, for files without a header line."""

    name = "csv"

    def inputs(self) -> list[str]:
        """The files.

        Raises:
          ConfigError: naming `path`: nothing is there; `delimiter`: more than one character, or
            one that cannot be; a column flag: no such column, with those that are there.
        """
        if len(self._delimiter) != 1 or self._delimiter in '"\r\n\0':
            raise ConfigError(f"delimiter = {self.delimiter!r} is not allowed; use one character")
        files = find_files(self.path, [".csv", ".tsv"])
        for file in files:
            self._columns.check(file, self._header(csv_records(file, self._delimiter)))
        return files

    @property
    def _delimiter(self) -> str:
        return self.delimiter.replace("\\t", "\t")

    @property
    def _columns(self) -> Columns:
        return Columns(self.caption_column, self.image_column, self.id_column)

    def _header(self, records: Iterator[tuple[int, list[str] | Reject]]) -> Sequence[str]:
        """Names of the columns; none where the header cannot be read."""
        if self.columns:
            return self.columns
        _, names = next(records, (0, []))
        return [] if isinstance(names, Reject) else names

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one file. An entry is a record, at the place of its first line.

        Reasons: `wrong number of columns`, those of `data_prep.lines.csv_records` and of
        `data_prep.fields.make_row`. Skipped: `blank line`.
        """
        records = csv_records(path, self._delimiter)
        header, columns, blank = self._header(records), self._columns, 0
        wanted = set(columns.wanted(header))
        for line, record in records:
            if isinstance(record, Reject):
                yield record
            elif not record:
                blank += 1
            elif len(record) != len(header):
                yield Reject(line, "wrong number of columns", repr(record)[:500])
            else:
                pairs = zip(header, record, strict=True)
                yield make_row(line, {k: text for k, text in pairs if k in wanted}, columns)
        if blank:
            yield Skip("blank line", blank)


@dataclasses.dataclass(frozen=True)
class Parquet:
    """Reads Parquet files; at most one row group's columns are held, as compressed as they are.

    Optional columns: `image_id`, `split` (dev and test count as validation), `url`, `license`,
    `original_captions`, `translator`.
    """

    path: tuple[str, ...]
    """Parquet files, folders with such files, or patterns."""
    caption_column: tuple[str, ...] = ("caption",)
    """Columns of captions, each holding texts or lists of texts."""
    image_column: str = "image"
    """Column of the picture: a path, a URL, bytes, or Hugging Face's struct of bytes and path."""
    id_column: str = ""
    """Column of the picture's id; empty takes image_id, or else the path or URL."""

    name = "parquet"

    def inputs(self) -> list[str]:
        """The files.

        Raises:
          ConfigError: naming `path`: nothing is there, or no Parquet; a column flag: no such
            column, with those that are there.
        """
        import pyarrow.parquet as pq

        files = find_files(self.path, [".parquet"])
        columns = Columns(self.caption_column, self.image_column, self.id_column)
        for file in files:
            try:
                names = pq.read_schema(file).names
            except _broken() as error:
                raise ConfigError(f"path: {file} is no Parquet file ({error})") from error
            columns.check(file, names)
        return files

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one file. An entry is a row, from 1.

        Reasons: `bad UTF-8`, `bad value`, those of `data_prep.fields.make_row`, and `broken file`
        (for all rows that cannot be read).
        """
        import pyarrow.parquet as pq

        columns = Columns(self.caption_column, self.image_column, self.id_column)
        rows, done = 1, 0  # a file whose count cannot be read is one entry
        try:
            with pq.ParquetFile(path, buffer_size=1 << 20) as file:
                rows = file.metadata.num_rows
                wanted = columns.wanted(file.schema_arrow.names)
                for batch in file.iter_batches(_BATCH, columns=wanted):
                    yield from table_items(batch, done, columns)
                    done += batch.num_rows
        except _broken() as error:
            yield Reject(done + 1, "broken file", str(error), rows - done)


def _broken() -> tuple[type[Exception], ...]:
    """What Arrow raises of files that make no sense: also OSError, also of names of columns."""
    import pyarrow as pa

    return pa.ArrowException, OSError, ValueError


def table_items(table: Any, before: int, columns: Columns, **more: str) -> Iterator[Row | Reject]:
    """Rows of an Arrow table or batch.

    Args:
      table: with the columns that are wanted.
      before: how many rows came before it.
      columns: where a row's parts are.
      more: fields of all rows that have no such column.
    """
    for place, fields in enumerate(_dicts(table), before + 1):
        if isinstance(fields, str):
            yield Reject(place, fields)
        else:
            yield make_row(place, {**more, **fields}, columns)


def _dicts(table: Any) -> Iterator[dict[str, Any] | str]:
    """Rows as dicts, or why one cannot be had; Arrow takes texts for UTF-8 without looking."""
    try:
        yield from table.to_pylist()
        return
    except (ValueError, OverflowError):
        pass
    for place in range(table.num_rows):
        try:
            yield table.slice(place, 1).to_pylist()[0]
        except UnicodeError:
            yield "bad UTF-8"
        except (ValueError, OverflowError):  # a date beyond the calendar
            yield "bad value"


@dataclasses.dataclass(frozen=True)
class HuggingFace:
    """Reads a data set of the Hugging Face hub, or a local one, row by row; no code of it is run.

    Its splits are kept: train as train; validation, val, dev and test as validation. Pictures must
    be in the rows, or be paths or URLs. Optional columns: `image_id`, `url`, `license`,
    `original_captions`, `translator`.
    """

    dataset: str
    """Data set: hub id (org/name), or a local folder (of data files, or by save_to_disk)."""
    config: str = ""
    """Configuration of the data set (its "subset"); empty takes the default one."""
    split: tuple[str, ...] = ()
    """Splits to read; empty reads all."""
    revision: str = ""
    """Hub revision (branch, tag or commit); empty takes the default branch."""
    caption_column: tuple[str, ...] = ("caption",)
    """Columns of captions, each holding texts or lists of texts."""
    image_column: str = "image"
    """Column of the picture: pictures, paths or URLs."""
    id_column: str = ""
    """Column of the picture's id; empty takes image_id, or else the path or URL."""

    name = "huggingface"

    def inputs(self) -> list[str]:
        """`<dataset>#<split>` of each split.

        Raises:
          ConfigError: naming `dataset`: it cannot be opened; `split`: no such split; a column
            flag: no such column, with those that are there.
        """
        splits = self._open()
        for split in self.split:
            if split not in splits:
                raise ConfigError(
                    f"split: no {split!r} in {self.dataset}; its splits are {', '.join(splits)}"
                )
        chosen = self.split or tuple(splits)
        for split in chosen:
            rows = splits[split]
            with self._opening():
                names = rows.column_names or list(next(iter(rows.take(1)), {}))
            self._columns.check(f"{self.dataset}#{split}", names)
        return [f"{self.dataset}#{split}" for split in chosen]

    @property
    def _columns(self) -> Columns:
        return Columns(self.caption_column, self.image_column, self.id_column)

    def _open(self) -> dict[str, Any]:
        """Split → its rows; streamed, or mapped into memory where they were saved to disk."""
        import datasets

        folder = Path(self.dataset)
        with self._opening():
            if (folder / "dataset_dict.json").exists() or (folder / "state.json").exists():
                data: Any = datasets.load_from_disk(self.dataset)
                if not isinstance(data, datasets.DatasetDict):
                    data = {data.split or "train": data}
            else:
                revision = self.revision or None
                data = datasets.load_dataset(
                    self.dataset, self.config or None, revision=revision, streaming=True
                )
            return {str(split): rows for split, rows in data.items()}

    @contextlib.contextmanager
    def _opening(self) -> Iterator[None]:
        from datasets.exceptions import DatasetsError

        try:
            yield
        except (OSError, ValueError, DatasetsError) as error:
            raise ConfigError(f"dataset = {self.dataset!r} cannot be opened ({error})") from error

    def read(self, path: str) -> Iterator[Item]:
        """Rows of one split. An entry is a row, from 1.

        Reasons: those of `Parquet.read`; `broken file` is a single entry here, as nobody knows
        how many rows were to come.
        """
        import pyarrow as pa
        from datasets.exceptions import DatasetsError

        split, columns, done = path.rpartition("#")[2], self._columns, 0
        # As Arrow, nothing is decoded: a broken picture is not the reader's affair.
        data = self._open()[split].with_format("arrow")
        try:
            for table in data.iter(_BATCH):
                wanted = table.select(columns.wanted(table.column_names))
                yield from table_items(wanted, done, columns, split=split)
                done += table.num_rows
        except (pa.ArrowException, ValueError, DatasetsError) as error:
            yield Reject(done + 1, "broken file", str(error))
