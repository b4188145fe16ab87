"""What every source of rows offers, be it files, a database or a stream."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from data.sources.chunk import Chunk


class Part(Protocol):
    """Some of a source's rows: small to send to another machine, read there, and again if need be."""

    @property
    def name(self) -> str:
        """For messages. Consecutive parts of one name are pieces of one file, whose lines are counted together."""
        ...

    def chunks(self) -> Iterator[Chunk]:
        """The rows in order."""
        ...


class Source(Protocol):
    """Rows to ingest, cut into parts that can be read apart from each other, again, and on any machine."""

    @property
    def name(self) -> str:
        """For messages and manifests."""
        ...

    @property
    def has_types(self) -> bool:
        """Whether columns have types; else everything is text."""
        ...

    def columns(self) -> list[str]:
        """Names of the columns, the same in all parts."""
        ...

    def parts(self) -> Sequence[Part]:
        """The parts; their order is the order of the rows."""
        ...
