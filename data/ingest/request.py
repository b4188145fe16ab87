"""What a person asks to be ingested, as the command line says it, and doing so."""

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cluster.settings import Settings
from data.expectations import read_expectations
from data.ingest.ingestion import Ingested, TabularSource, ingest, ingest_appended
from data.moments import TimeUnit
from data.online.store import open_online_store
from data.parallel import on_ray_when_needed
from data.quality.validation import EventRules
from data.sources.location import without_secrets
from data.sources.partitions import Partitions


class IngestionRequest(BaseModel):
    """Where the rows are, how to read them, and which data set they are for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    """Name of the data set."""
    append: bool = False
    """Add to what is there."""
    appended: bool = False
    """Add what the online store was told of, instead of reading a source."""
    events: str | None = None
    """Path, folder, glob or address."""
    partitions: str | None = None
    """KEY=FIRST..LAST."""
    allow_missing_partitions: bool = False
    table: str | None = None
    query: str | None = None
    order_by: str | None = None
    items: str | None = None
    users: str | None = None
    columns: list[str] = []
    """NAME=YOURS."""
    time_unit: TimeUnit | None = None
    """Of times that are numbers since 1970 UTC."""
    event_type: str = "interaction"
    """Of events that have no such column."""
    item_title: str | None = None
    item_attributes: list[str] = []
    user_attributes: list[str] = []
    delimiter: str | None = None
    expectations: Path | None = None
    """TOML file."""

    def fulfil(self, settings: Settings) -> Ingested:
        """Read, validate and write, on a Ray that is started when there is something to read.

        Raises TowerlineError, with nothing written, for whatever is wrong with the request or with what is read.
        """
        expectations, source = read_expectations(self.expectations), self._source()
        with ExitStack() as session:
            run = on_ray_when_needed(settings, session)
            if not self.appended:
                return ingest(
                    settings.home,
                    self.dataset,
                    source,
                    self._rules(),
                    expectations=expectations,
                    append=self.append,
                    run=run,
                )
            events = open_online_store(settings, self.dataset).appended_events()
            return ingest_appended(
                settings.home, self.dataset, events, self._rules(), expectations=expectations, run=run
            )

    def shown(self) -> dict[str, object]:
        """All of it, without what is secret."""
        return {**self.model_dump(), "events": without_secrets(self.events or "")}

    def _source(self) -> TabularSource:
        partitions = Partitions.parse(self.partitions, may_have_gaps=self.allow_missing_partitions)
        named = self.model_dump(include=set(TabularSource.__dataclass_fields__) - {"partitions"})
        return TabularSource(**named, partitions=partitions)

    def _rules(self) -> EventRules:
        """Of this moment: no event may be of a later one."""
        columns = dict(pair.partition("=")[::2] for pair in self.columns)
        return EventRules(datetime.now(UTC), columns, self.time_unit, self.event_type)
