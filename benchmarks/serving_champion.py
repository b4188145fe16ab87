"""The models that the serving benchmark asks for."""

from cluster.errors import TowerlineError
from cluster.session import connect
from cluster.settings import Settings
from data.dataset import Dataset, open_dataset
from serve.loading import online_store
from train.registry import champion_cards

MADE_HERE = "movielens-100k"


def require_champion(settings: Settings, name: str) -> Dataset:
    """The data set, which has a champion and is published to the online store.

    MovieLens-100K is read, and a champion trained on it as the demo does, where there is none.

    Raises:
        TowerlineError: another data set is missing, or has no champion.
    """
    try:
        cards = champion_cards(settings.tracking_uri, name)
    except TowerlineError:
        if name != MADE_HERE:
            raise
        _train(settings)
        cards = champion_cards(settings.tracking_uri, name)
    dataset = open_dataset(settings.home, name)
    store = online_store(settings, name, cards["two-tower"].history_length)
    store.publish(dataset)
    store.close()
    return dataset


def _train(settings: Settings) -> None:
    from jobs import quickstart
    from jobs.console import Console
    from jobs.training import TrainingConfig, open_workflow
    from train import tracking

    config, console = TrainingConfig(), Console(first_step=1)
    tracking.connect(settings.tracking_uri)
    with connect(settings, log_to_driver=False):
        with console.step("Data: MovieLens-100K"):
            quickstart.ingest(settings)
        with console.step("Features"):
            workflow = open_workflow(settings, MADE_HERE, config.scaling, console)
        quickstart.train(workflow, config, console)
