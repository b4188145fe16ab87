"""What `benchmarks.quality` compares: each system with what runs it, what a search may change, and where it begins."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.protocols import EvaluationProtocol
from tune.dimensions import Choices, Dimension, Range

PEERS = Path(__file__).with_name("peers")
Settings = dict[str, Any]
"""Dotted names of a configuration's fields (ours), or arguments (a peer's), to values."""

HISTORY_HALF_LIFE = Range(low=1.0, high=50.0, log=True)
WEIGHT_DECAY = Range(low=1e-3, high=0.3, log=True)
IMPLICIT_FACTORS = Choices(choices=(16, 32, 64, 128))


@dataclass(frozen=True)
class System:
    """A recommender among others."""

    name: str
    peer: str = ""
    """Whose environment (`peers/<peer>.txt`) and runner (`peers/run_<peer>.py`) it takes; none: it is ours."""
    trains_on_validation: bool = False
    """The final fit learns from the validation events too; else they choose the epoch and feed the histories."""
    slow: bool = False
    """It takes minutes, so it is started first."""
    seeded: bool = True
    """Whether the seed changes anything."""
    folds_in: bool = True
    """Whether users may be asked for whom it has not learnt from, by what they have met."""
    start: Settings = field(default_factory=dict)
    """The first trial: what its authors set by default or recommend."""
    space: Mapping[str, Dimension] = field(default_factory=dict)
    """What the search may change."""
    above: str = ""
    """A system of ours that it is built on, with that one's settings."""

    def words(self, protocol: EvaluationProtocol) -> str:
        """What it does with the validation events, for people."""
        if protocol.new_users:
            return "chooses"
        return "trains on" if self.trains_on_validation else "history"

    def answers(self, protocol: EvaluationProtocol) -> bool:
        """Whether it can be asked by a protocol."""
        return self.folds_in or not protocol.new_users


OURS = (
    System("popularity", seeded=False),
    System(
        "popularity_recent",
        seeded=False,
        start={"half_life_days": 30.0},
        space={"half_life_days": Range(low=0.5, high=365.0, log=True)},
    ),
    System(
        "item_item",
        seeded=False,
        start={"neighbours": 50, "shrinkage": 5.0, "history_half_life": 2.0},
        space={
            "neighbours": Range(low=10, high=300, log=True),
            "shrinkage": Range(low=0.1, high=100.0, log=True),
            "history_half_life": HISTORY_HALF_LIFE,
        },
    ),
    System(
        "ease",
        seeded=False,
        start={"regularization": 500.0, "history_half_life": 5.0},
        space={
            "regularization": Range(low=10.0, high=5000.0, log=True),
            "history_half_life": HISTORY_HALF_LIFE,
        },
    ),
    System(
        "ials",
        start={"embedding_dim": 64, "unobserved_weight": 0.3, "regularization": 0.01, "history_half_life": 4.0},
        space={
            "embedding_dim": Choices(choices=(32, 64, 128)),
            "unobserved_weight": Range(low=0.02, high=1.0, log=True),
            "regularization": Range(low=0.001, high=0.1, log=True),
            "history_half_life": HISTORY_HALF_LIFE,
        },
    ),
    System(
        "two_tower",
        slow=True,
        start={
            "learning_rate": 0.002,
            "weight_decay": 0.01,
            "two_tower.dropout": 0.2,
            "two_tower.embedding_dim": 64,
            "two_tower.id_dropout": 0.1,
        },
        space={
            "learning_rate": Range(low=5e-4, high=5e-3, log=True),
            "weight_decay": WEIGHT_DECAY,
            "two_tower.dropout": Range(low=0.1, high=0.5),
            "two_tower.embedding_dim": Choices(choices=(48, 64, 96, 128)),
            "two_tower.id_dropout": Range(low=0.0, high=0.4),
        },
    ),
    System(
        "two_tower_ranker",
        above="two_tower",
        start={"learning_rate": 0.002, "weight_decay": 0.02, "ranker.dropout": 0.2, "past_share": 0.8},
        space={
            "learning_rate": Range(low=3e-4, high=5e-3, log=True),
            "weight_decay": WEIGHT_DECAY,
            "ranker.dropout": Range(low=0.0, high=0.5),
            "past_share": Range(low=0.6, high=0.9),
        },
    ),
)

PEER_SYSTEMS = (
    System(
        "rectools_sasrec",
        peer="rectools",
        slow=True,
        folds_in=False,
        start={
            "n_factors": 64,
            "n_blocks": 2,
            "n_heads": 1,
            "dropout_rate": 0.2,
            "session_max_len": 100,
            "lr": 0.001,
            "batch_size": 128,
        },
        space={
            "n_factors": Choices(choices=(48, 64, 96, 128)),
            "n_blocks": Choices(choices=(1, 2, 3)),
            "n_heads": Choices(choices=(1, 2, 4)),
            "dropout_rate": Range(low=0.1, high=0.5),
            "session_max_len": Choices(choices=(50, 100)),
            "lr": Range(low=5e-4, high=5e-3, log=True),
            "batch_size": Choices(choices=(64, 128)),
        },
    ),
    System(
        "implicit_als",
        peer="implicit",
        trains_on_validation=True,
        start={"factors": 64, "regularization": 0.01, "alpha": 1.0, "iterations": 15},
        space={
            "factors": IMPLICIT_FACTORS,
            "regularization": Range(low=1e-3, high=30.0, log=True),
            "alpha": Range(low=0.1, high=30.0, log=True),
            "iterations": Choices(choices=(5, 10, 15, 30)),
        },
    ),
    System(
        "implicit_bpr",
        peer="implicit",
        trains_on_validation=True,
        folds_in=False,
        start={"factors": 64, "learning_rate": 0.01, "regularization": 0.01, "iterations": 100},
        space={
            "factors": IMPLICIT_FACTORS,
            "learning_rate": Range(low=3e-3, high=0.3, log=True),
            "regularization": Range(low=1e-4, high=0.1, log=True),
            "iterations": Choices(choices=(50, 100, 200, 400)),
        },
    ),
    System(
        "lenskit_itemknn",
        peer="lenskit",
        trains_on_validation=True,
        seeded=False,
        start={"max_nbrs": 20, "min_sim": 1e-6, "save_nbrs": 1000},
        space={
            "max_nbrs": Range(low=5, high=300, log=True),
            "min_sim": Range(low=1e-6, high=0.3, log=True),
            "save_nbrs": Choices(choices=(50, 100, 200, 500, 1000)),
        },
    ),
    System(
        "recbole_bpr",
        peer="recbole",
        slow=True,
        trains_on_validation=True,
        folds_in=False,
        start={"embedding_size": 64, "learning_rate": 0.001, "train_batch_size": 2048, "weight_decay": 1e-7},
        space={
            "embedding_size": Choices(choices=(32, 64, 128)),
            "learning_rate": Range(low=3e-4, high=1e-2, log=True),
            "train_batch_size": Choices(choices=(512, 1024, 2048)),
            "weight_decay": Range(low=1e-7, high=1e-3, log=True),
        },
    ),
    System(
        "recbole_ease",
        peer="recbole",
        trains_on_validation=True,
        folds_in=False,
        seeded=False,
        start={"reg_weight": 250.0},
        space={"reg_weight": Range(low=10.0, high=5000.0, log=True)},
    ),
)

SYSTEMS = {system.name: system for system in (*OURS, *PEER_SYSTEMS)}
