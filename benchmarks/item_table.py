"""A large catalogue: the two-tower's item table with dense gradients beside sparse ones; `make bench-item-table`.

    python -m benchmarks.item_table --items 1000000 --repeats 3

Both sides train the same two-tower on the same generated events, with Horovod on two ranks, and take turns.
"""

import argparse
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
from rich.console import Console

from benchmarks.events import EventStream, write_events
from benchmarks.exchange import Exchange, ExchangeCost, cost_figures, measure
from benchmarks.training_report import EXCHANGE_COLUMNS, figures_table
from benchmarks.training_task import BenchTask, BenchTaskConfig
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings
from data.dataset import Dataset, list_datasets, open_dataset
from data.ingest.ingestion import TabularSource, ingest_files
from data.offline.pipeline import build_examples, examples_folder
from data.parallel import in_process
from data.quality.validation import EventRules
from data.schema import ITEM_ID
from train.models.two_tower import TwoTowerConfig
from train.retrieval import RetrievalConfig, retrieval_task

PROTOCOL = """\
The two-tower with the sampled softmax, on a catalogue of which a batch sees little: `items` items with a brand each, \
and events of users and items by power laws. dense: AdamW on the whole table, every item encoded in each step; sparse: \
`sparse_item_table`, which encodes the items of the batch and steps on their rows alone. Two ranks of one thread each \
without Ray, batches made beforehand; sides take turns, forwards and backwards, and figures are medians of the \
repeats. Steps with and without the exchange of gradients take turns on the same ranks, and communication_share is \
what goes when it goes; kb_per_batch is what rank 0's TCP connections carried; peak_mb is the most that rank 0 held, \
the data and the libraries included."""
BRANDS = 1000
SIDES = ("dense", "sparse")


@dataclass(frozen=True)
class CatalogueStream(EventStream):
    """Events on a catalogue of any size."""

    catalogue: int = 1_000_000

    @property
    def items(self) -> int:
        """Size of the catalogue."""
        return self.catalogue


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.item_table", description=__doc__)
    option = parser.add_argument
    option("--items", type=int, default=CatalogueStream.catalogue, help="of the catalogue")
    option("--dim", type=int, default=32, help="width of the towers, and of the table")
    option("--events", type=int, default=40_000, help="to make the batches of")
    option("--batch-size", type=int, default=RetrievalConfig().batch_size, help="of a global batch")
    option("--rounds", type=int, default=2, help="how often the ranks take steps with the exchange and then without")
    option("--steps", type=int, default=4, help="batches of a round, of either kind")
    option("--repeats", type=int, default=3, help="of each side")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Make the catalogue if it is not there, measure, report."""
    asked, settings = parse(arguments), Settings()
    clock = ReportClock("bench_item_table")
    dataset = catalogue(settings.home, CatalogueStream(asked.events, catalogue=asked.items))
    costs: dict[str, list[ExchangeCost]] = {side: [] for side in SIDES}
    for repeat in range(asked.repeats):
        for side in SIDES if repeat % 2 == 0 else reversed(SIDES):
            task = task_config(settings.home, dataset, asked, sparse=side == "sparse")
            cost = measure(Exchange(BenchTask, task, rounds=asked.rounds, steps=asked.steps))
            costs[side].append(cost)
            print(f"{side}: {cost.seconds:.3f} s and {cost.bytes_sent / 1e6:,.2f} MB a batch", flush=True)
    figures = figures_of(costs)
    report = clock.finish(
        config=vars(asked), protocol=PROTOCOL, data_version=dataset.manifest.data_version, figures=figures
    )
    console = Console(highlight=False, width=110)
    title = f"two ranks, {asked.items:,} items x {asked.dim}"
    console.print(figures_table(title, SIDES, EXCHANGE_COLUMNS, figures))
    for name in ("speedup", "peak", "sent"):
        console.print(f"{name}, sparse to dense: {figures[f'ratio/{name}/sparse_to_dense']:.3g}")
    print(f"report {report.write(settings.home)}, {report.seconds:.0f} s")


def catalogue(home: Path, stream: CatalogueStream) -> Dataset:
    """The data set of a stream and of all items of its catalogue, made if it is not there."""
    name = f"catalogue-{stream.items}-{stream.events}"
    if name not in list_datasets(home):
        folder = home / "events" / name
        write_events(stream, folder / "events")
        number = pl.int_range(stream.items, eager=True)
        items = pl.DataFrame({ITEM_ID: number, "brand": number % BRANDS})
        items.with_columns(pl.format("i{}", ITEM_ID).alias(ITEM_ID)).write_parquet(folder / "items.parquet")
        source = TabularSource(folder / "events", folder / "items.parquet", item_attributes=["brand"])
        ingest_files(home, name, source, EventRules(datetime.now(UTC)))
    return open_dataset(home, name)


def task_config(home: Path, dataset: Dataset, asked: argparse.Namespace, *, sparse: bool) -> BenchTaskConfig:
    """The two-tower on the events of a catalogue."""
    built = build_examples(dataset, examples_folder(home, dataset), run=in_process)
    two_tower = TwoTowerConfig(embedding_dim=asked.dim, loss="sampled_softmax", sparse_item_table=sparse)
    config = RetrievalConfig(two_tower=two_tower, batch_size=asked.batch_size)
    return BenchTaskConfig(retrieval_task(dataset, built, config), examples=asked.events)


def figures_of(costs: dict[str, list[ExchangeCost]]) -> dict[str, float]:
    """Of each side, and the ratios of sparse to dense."""
    figures = {name: value for side, runs in costs.items() for name, value in cost_figures(side, runs).items()}
    for name, metric in (("speedup", "exchange_samples_per_s"), ("peak", "exchange_peak_mb"), ("sent", "kb_per_batch")):
        figures[f"ratio/{name}/sparse_to_dense"] = figures[f"{metric}/sparse"] / figures[f"{metric}/dense"]
    return figures


if __name__ == "__main__":
    run_job(main)
