"""The two-tower by which a variant can be judged: what serves has seen the answers of every held-out question."""

from cluster.errors import TowerlineError
from data.splits import TRAIN
from train.card import ModelCard
from train.ledger import versions_of
from train.models.retrieval import RetrievalModel
from train.registry import RegisteredPair, load_two_tower_version, registered_name, registered_pairs
from train.retrieval import RetrievalConfig
from train.tracking import connect
from train.training_rows import TrainingRows

DATA_VERSION_TAG = "data_version"


def held_out_twin(tracking_uri: str, pair: RegisteredPair, card: ModelCard, rows: TrainingRows) -> RetrievalModel:
    """The newest registered two-tower with the configuration of `pair`'s, `card` being that, fitted on `rows` alone.

    It is what the pair's figures in the registry were measured with. `rows`: the train split of the protocol.

    Raises:
        TowerlineError: there is none.
    """
    assert rows.splits == (TRAIN,)
    paired = {str(each.models["two-tower"].version) for each in registered_pairs(tracking_uri, pair.dataset)}
    for version in versions_of(connect(tracking_uri), registered_name(pair.dataset, "two-tower"))[::-1]:
        if str(version.version) in paired or version.tags.get(DATA_VERSION_TAG) != card.data_version:
            continue
        try:
            model, found = load_two_tower_version(tracking_uri, pair.dataset, version)
        except TowerlineError:
            continue  # What this code cannot read was not made with the features of the pair, which it could read.
        same = RetrievalConfig.model_validate(found.config) == RetrievalConfig.model_validate(card.config)
        if same and found.trained_on == rows:
            return model
    raise TowerlineError(
        f"the registry has no two-tower of variant {pair.variant}'s configuration and data that was fitted on "
        f"{rows}: `python -m jobs.train_retrieval --dataset {pair.dataset}` with that configuration makes one"
    )
