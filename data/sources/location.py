"""Where files are: one file, a folder, a glob or a hive-partitioned tree, local or at any `pyarrow.fs` address."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.errors import TowerlineError
from data.sources.partitions import Partition, Partitions

SUFFIXES = (".parquet", ".pq", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
PLAIN_SUFFIXES = ".parquet, .csv, .tsv, .jsonl (or .gz of a text file)"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_USER = re.compile(r"(?<=://)[^/]*@")
_GLOB = re.compile(r"[*?\[]")
_ANY_FOLDERS = ".*"
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class DataFile:
    """One file of rows."""

    name: str
    """As people know it."""
    path: str
    """Inside the file system."""
    size: int
    filesystem: pafs.FileSystem = field(repr=False)
    partition: Partition = ()

    @contextmanager
    def open(self) -> Iterator[pa.NativeFile]:
        """The file, to be read at random. Raises TowerlineError if it is gone, or cannot be reached."""
        try:
            file = self.filesystem.open_input_file(self.path)
        except FileNotFoundError as error:
            raise TowerlineError(f"{self.name} does not exist any more; was it moved while it was read?") from error
        except OSError as error:
            raise TowerlineError(
                f"{self.name} cannot be opened ({error}); check that you may read it and that its storage answers, "
                "then run the job again"
            ) from error
        with file:
            yield file

    def suffix(self) -> str:
        """The end of the name that says what is in it, without `.gz`."""
        return Path(self.path.lower().removesuffix(".gz")).suffix


def is_address(text: str) -> bool:
    """Whether it begins with a scheme, as `s3://` does; else it is a path."""
    return _SCHEME.match(text) is not None


def without_secrets(address: str) -> str:
    """The address as it may be shown and stored: without user, password and options."""
    bare = address.partition("?")[0] if is_address(address) and "=" in address.rpartition("?")[2] else address
    return _USER.sub("", bare)


def find_files(address: str | Path, partitions: Partitions | None = None) -> list[DataFile]:
    """The files of rows at an address, sorted by path: only those of the partitions asked for, if any are.

    Files whose name begins with `.` or `_` are no data. Raises TowerlineError if there is nothing, or if a partition
    that was asked for, or one between the first day and the last, is missing.
    """
    place = _Place.of(str(address))
    files = sorted(place.files(), key=lambda file: file.path)
    if not files:
        raise TowerlineError(
            f"{place.address} holds no files of rows; pass a file, a folder or a glob of {PLAIN_SUFFIXES}"
        )
    chosen = (partitions or Partitions()).choose(place.address, [file.partition for file in files])
    return [file for file, is_chosen in zip(files, chosen, strict=True) if is_chosen]


@dataclass(frozen=True)
class _Place:
    """An address, taken apart."""

    address: str
    scheme: str
    """What stands before a path to make it an address again."""
    filesystem: pafs.FileSystem
    path: str

    @classmethod
    def of(cls, address: str) -> "_Place":
        scheme = _SCHEME.match(address)
        if not scheme:
            return cls(address, "", pafs.LocalFileSystem(), str(Path(address).expanduser().absolute()))
        bare, _, options = address.partition("?") if "=" in address.rpartition("?")[2] else (address, "", "")
        base = bare[: glob.start()] if (glob := _GLOB.search(bare)) else bare
        try:
            filesystem, path = pafs.FileSystem.from_uri(f"{base}?{options}" if options else base)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise TowerlineError(
                f"{without_secrets(address)} cannot be opened ({_USER.sub('', str(error))}); expected a path or an "
                "address such as s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, hdfs://HOST/FOLDER or file:///FOLDER"
            ) from error
        before = _USER.sub("", base[: -len(path)] if path and base.endswith(path) else scheme.group())
        slash = "/" if base.endswith("/") and not path.endswith("/") else ""
        return cls(without_secrets(address), before, filesystem, path + slash + bare[len(base) :])

    def files(self) -> Iterator[DataFile]:
        """Everything that the path can mean."""
        try:
            is_plain = self.filesystem.get_file_info(self.path).type != pafs.FileType.NotFound
            glob = None if is_plain else _GLOB.search(self.path)
            root = self.path[: glob.start()].rpartition("/")[0] if glob else self.path.rstrip("/")
            infos = self._infos(root or "/", is_glob=bool(glob))
        except (pa.ArrowException, OSError) as error:
            raise TowerlineError(
                f"{self.address} cannot be listed ({error}); check the address and your credentials"
            ) from error
        is_wanted = re.compile(_expression(self.path) if glob else ".*", re.DOTALL)
        for info in infos:
            if info.path == root or (is_wanted.fullmatch(info.path) and _is_data(info.path[len(root) :])):
                inside = info.path[len(root.rpartition("/")[0]) :].rpartition("/")[0]
                name = self.scheme + info.path
                yield DataFile(name, info.path, info.size or 0, self.filesystem, _partition(inside))

    def _infos(self, root: str, *, is_glob: bool) -> list[pafs.FileInfo]:
        info = self.filesystem.get_file_info(root)
        if info.type == pafs.FileType.NotFound:
            raise TowerlineError(f"{self.address} does not exist; pass a file, a folder or a glob of {PLAIN_SUFFIXES}")
        if info.is_file and not is_glob:
            return [info]
        infos = self.filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
        return [info for info in infos if info.is_file]


def _expression(glob: str) -> str:
    """`*` and `?` stay inside a folder, `**` does not."""
    parts = [_ANY_FOLDERS if part == "**" else _inside_folder(part) for part in glob.split("/")]
    return "/".join(parts).replace(f"{_ANY_FOLDERS}/", f"(?:{_ANY_FOLDERS}/)?")


def _inside_folder(glob: str) -> str:
    texts = re.split(r"(\*+|\?|\[[^\]]+\])", glob)
    return "".join({"*": "[^/]*", "?": "[^/]", "[": text}.get(text[:1], re.escape(text)) for text in texts)


def _is_data(inside: str) -> bool:
    names = inside.strip("/").split("/")
    return inside.lower().endswith(SUFFIXES) and not any(name.startswith((".", "_")) for name in names)


def _partition(folders: str) -> Partition:
    pairs = [folder.partition("=") for folder in folders.split("/") if "=" in folder]
    return tuple((unquote(key), None if value == _HIVE_NULL else unquote(value)) for key, _, value in pairs)
