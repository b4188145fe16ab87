"""Training with Ray and Horovod beside torch DDP beside a plain loop, one thread a worker; `make bench-train`.

    python -m benchmarks.training --dataset movielens-100k --repeats 3

All sides train the same two-tower with the same global batch and take turns in one run.
"""

import argparse
from collections.abc import Callable, Sequence

import torch

from benchmarks.exchange import Exchange, ExchangeCost, cost_figures, measure
from benchmarks.gpu_training import gpu_figures
from benchmarks.quality import MOVIELENS, opened
from benchmarks.table_training import TableConfig, TableTask
from benchmarks.training_report import print_figures, write_picture
from benchmarks.training_sides import loss_difference, side_figures
from benchmarks.training_task import BenchTask, BenchTaskConfig
from cluster.job import run_job
from cluster.reports import ReportClock
from cluster.settings import Settings
from data.dataset import Dataset
from data.offline.pipeline import build_examples, examples_folder
from data.parallel import in_process
from train.horovod_options import HorovodOptions
from train.retrieval import RetrievalConfig, retrieval_task

PROTOCOL = """\
The two-tower of `RetrievalConfig()` with its global batch, one thread a worker, an epoch being the first `examples` \
rows. Sides take turns, forwards and backwards; each is a training of its own, whose first epoch does not count. \
samples_per_s: all workers together, the median of the epochs of a training, then of the repeats; ratio: the median \
of the ratios within each repeat. cpu_ms_per_batch: computing of all threads of rank 0 for its share of a global \
batch; on a machine that does other work too, its ratios are the steadier ones. plain: a loop without Ray and without \
ours, in a process of its own. start_s: a training's wall time less its epochs. Exchange (two ranks without Ray, \
batches made beforehand): steps with and without the exchange of gradients take turns on the same ranks at the same \
time, and communication_share is what goes when it goes; kb_per_batch is what the kernel says that rank 0's TCP \
connections carried (tcp_info), headers not counted. Four workers on two cores are for correctness: their loss is \
compared with that of one process, dropout off. table: an embedding of 100,000 rows, of which a batch touches few."""


def _with(options: HorovodOptions) -> Callable[[BenchTaskConfig], Exchange]:
    return lambda task: Exchange(BenchTask, task, horovod=options)


EXCHANGES: dict[str, Callable[[BenchTaskConfig], Exchange]] = {
    "horovod/default": _with(HorovodOptions()),
    "ddp/default": lambda task: Exchange(BenchTask, task, "torch"),
    "horovod/no_buckets": _with(HorovodOptions(bucket_mb=0)),
    "horovod/no_buckets_no_fusion": _with(HorovodOptions(bucket_mb=0, fusion_threshold_mb=0)),
    "horovod/cycle_5ms": _with(HorovodOptions(cycle_time_ms=5)),
    "horovod/fp16": _with(HorovodOptions(compression="fp16")),
    "horovod/4_passes": lambda task: Exchange(BenchTask, task, backward_passes_per_step=4),
    "horovod/table_dense": lambda _: Exchange(TableTask, TableConfig(sparse=False)),
    "horovod/table_sparse": lambda _: Exchange(TableTask, TableConfig(sparse=True)),
    "ddp/table_sparse": lambda _: Exchange(TableTask, TableConfig(sparse=True), "torch"),
}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    option = parser.add_argument
    option("--dataset", default=MOVIELENS, help=f"name of an ingested data set; {MOVIELENS} is ingested if need be")
    option("--examples", type=int, default=16 * 1024, help="of an epoch, at most")
    option("--batch-size", type=int, default=RetrievalConfig().batch_size, help="of a global batch")
    option("--epochs", type=int, default=3, help="that count, of each training")
    option("--repeats", type=int, default=3, help="trainings of each side")
    option(
        "--exchange", nargs="*", choices=EXCHANGES, default=list(EXCHANGES), metavar="HOW", help=", ".join(EXCHANGES)
    )
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    """Measure and report."""
    from cluster.session import connect

    asked, settings = parse(arguments), Settings()
    clock = ReportClock("bench_train")
    dataset = opened(settings, asked.dataset)
    folder = settings.home / "bench" / "training"
    folder.mkdir(parents=True, exist_ok=True)
    task = task_config(settings, dataset, asked.examples, asked.batch_size)
    figures = exchange_figures(task, asked.repeats, asked.exchange)
    with connect(settings, log_to_driver=False):
        figures |= side_figures(task, folder, asked.epochs, asked.repeats)
        figures["loss_difference/horovod/w4"] = loss_difference(task, folder)
    if torch.cuda.is_available():
        figures |= gpu_figures(BenchTask(task), torch.device("cuda"), asked.epochs)
    else:
        print("no GPU here, so none was measured")
    report = clock.finish(
        config=vars(asked), protocol=PROTOCOL, data_version=dataset.manifest.data_version, figures=figures
    )
    print_figures(figures)
    path = report.write(settings.home)
    print(f"report {path}, picture {write_picture(figures, path.with_suffix('.png'))}")


def task_config(settings: Settings, dataset: Dataset, examples: int, batch_size: int) -> BenchTaskConfig:
    """The two-tower on some of a data set's examples, which are built if they are not there."""
    built = build_examples(dataset, examples_folder(settings.home, dataset), run=in_process)
    return BenchTaskConfig(retrieval_task(dataset, built, RetrievalConfig(batch_size=batch_size)), examples)


def exchange_figures(task: BenchTaskConfig, repeats: int, chosen: Sequence[str]) -> dict[str, float]:
    """What the exchange costs: both backends, Horovod's features, sparse gradients beside dense ones."""
    costs: dict[str, list[ExchangeCost]] = {name: [] for name in chosen}
    for repeat in range(repeats):
        for name in chosen if repeat % 2 == 0 else reversed(chosen):
            cost = measure(EXCHANGES[name](task))
            costs[name].append(cost)
            print(f"exchange {name}: {cost.seconds * 1e3:.1f} ms, {cost.bytes_sent / 1e3:,.0f} kB a batch", flush=True)
    return {name: value for how, runs in costs.items() for name, value in cost_figures(how, runs).items()}


if __name__ == "__main__":
    run_job(main)
