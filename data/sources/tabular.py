"""Tables that people bring along: Parquet, CSV or JSON Lines, in one file or many, whatever their columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cluster.errors import TowerlineError
from data.sources.csv_rows import CsvPart
from data.sources.json_lines import JsonLinesPart
from data.sources.location import PLAIN_SUFFIXES, DataFile, find_files, without_secrets
from data.sources.parquet import parquet_columns, parquet_parts
from data.sources.partitions import Partitions
from data.sources.source import Part

Kind = Literal["Parquet", "CSV", "JSON Lines"]


@dataclass(frozen=True)
class FileSource:
    """Files of rows of one kind, in the order of their paths."""

    name: str
    files: tuple[DataFile, ...]
    kind: Kind
    delimiter: str | None = None
    """Of CSV files; by default a comma, in .tsv a tab."""
    quoted: bool = True
    """Whether `"` quotes a field of a CSV file."""

    @property
    def has_types(self) -> bool:
        """Whether columns have types; else everything is text."""
        return self.kind == "Parquet"

    def columns(self) -> list[str]:
        """Names of the columns that any of the files has."""
        return list(dict.fromkeys(name for file in self.files for name in self.columns_of(file)))

    def columns_of(self, file: DataFile) -> list[str]:
        """Names of the columns of one of the files."""
        if self.kind == "Parquet":
            return parquet_columns(file)
        return self._csv(file).columns() if self.kind == "CSV" else JsonLinesPart(file).columns()

    def parts(self) -> list[Part]:
        """Parquet by row groups, text by file."""
        readers: dict[Kind, Callable[[DataFile], Sequence[Part]]] = {
            "Parquet": parquet_parts,
            "CSV": lambda file: [self._csv(file)],
            "JSON Lines": lambda file: [JsonLinesPart(file)],
        }
        return [part for file in self.files for part in readers[self.kind](file)]

    def _csv(self, file: DataFile) -> CsvPart:
        return CsvPart(file, self.delimiter or ("\t" if file.suffix() == ".tsv" else ","), self.quoted)


def open_table(
    address: str | Path, delimiter: str | None = None, partitions: Partitions | None = None, *, quoted: bool = True
) -> FileSource:
    """The rows at `address`: a file, folder or glob, local or at an address such as s3://.

    Raises TowerlineError if there is nothing there, or files of more than one kind.
    """
    if delimiter is not None and len(delimiter := delimiter.replace("\\t", "\t")) != 1:
        raise TowerlineError(f"--delimiter is {delimiter!r}, expected one character")
    name, files = without_secrets(str(address)), find_files(address, partitions)
    kinds = {_kind(file): file for file in files}
    if len(kinds) > 1:
        listed = " and ".join(f"{kind} ({file.name})" for kind, file in sorted(kinds.items()))
        raise TowerlineError(f"{name} holds {listed}; pass files of one kind, e.g. with a glob: {name}/*.parquet")
    (kind,) = kinds
    return FileSource(name, tuple(files), kind, delimiter, quoted)


def _kind(file: DataFile) -> Kind:
    match file.suffix():
        case ".parquet" | ".pq":
            return "Parquet"
        case ".csv" | ".tsv":
            return "CSV"
        case ".jsonl" | ".ndjson":
            return "JSON Lines"
    raise TowerlineError(f"{file.name}: unknown kind of file; it must end in {PLAIN_SUFFIXES}")
