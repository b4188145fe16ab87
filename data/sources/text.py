"""Text files: UTF-8, plain or gzipped, from any file system; bytes that are no UTF-8 survive as surrogates."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pyarrow as pa

from cluster.errors import TowerlineError
from data.sources.location import DataFile

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@contextmanager
def open_text(file: DataFile) -> Iterator[TextIO]:
    """The text, line ends as they are. Raises TowerlineError if it is UTF-16, truncated or cannot be read."""
    try:
        with file.open() as raw:
            if raw.read(2) in UTF16_MARKS:
                raise TowerlineError(f"{file.name} is UTF-16; convert it to UTF-8")
            raw.seek(0)
            binary = gzip.GzipFile(fileobj=raw) if file.path.lower().endswith(".gz") else io.BufferedReader(raw)
            with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
                yield text
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise TowerlineError(f"{file.name} is truncated or corrupt ({error}); get a whole copy") from error
    except (pa.ArrowException, OSError) as error:
        raise TowerlineError(f"{file.name} cannot be read to its end ({error}); try again") from error


def is_undecodable(text: str) -> bool:
    """Whether some of its bytes were no UTF-8."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def printable(text: str) -> str:
    """A line without its end; bytes that are no UTF-8 as `\\xff`."""
    return text.rstrip("\r\n").encode(errors="surrogateescape").decode(errors="backslashreplace")
