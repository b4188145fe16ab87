"""Retrieval from parts of the catalogue gives what retrieval from all of it gives."""

import numpy as np
import polars as pl
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.buckets import bucket_of
from tests.train.letters import letters
from tests.train.test_ensemble import ALPHABET, ASKED, RECIPROCAL, equal, fitted
from train.index import Floats
from train.models.ensemble import CandidatesConfig, Ensemble
from train.models.retrieval import RetrievalModel
from train.models.shards import Shard, elect
from train.models.two_tower import TwoTower, TwoTowerConfig

ITEMS = len(ALPHABET)
ENSEMBLES = {
    "none": fitted(CandidatesConfig()),
    "beside": fitted(CandidatesConfig(), "popularity", "ease"),
    "blended": fitted(RECIPROCAL, "item_item", "ease", "ials"),
}


class Given(RetrievalModel):
    """A retrieval model whose users have the vectors that they are given, whatever their features are."""

    def __init__(self, model: RetrievalModel, users_BD: Floats) -> None:
        vars(self).update(vars(model))
        self._users_BD = users_BD

    def encode_users(self, rows: pl.DataFrame) -> Floats:
        return self._users_BD


def model_of(items_ID: Floats, users_BD: Floats, ensemble: Ensemble) -> RetrievalModel:
    """Real but for the vectors, which are given: whole numbers, so that there are ties and no rounding."""
    config, vocabulary = TwoTowerConfig(embedding_dim=2, history_length=4), letters(ALPHABET)
    network = TwoTower(config, vocabulary, torch.zeros(ITEMS + 1, 1, dtype=torch.int32))
    pairs = scipy.sparse.csr_array((ITEMS + 1, ITEMS + 1), dtype=np.float32)
    model = RetrievalModel(config, vocabulary, network.state_dict(), pairs, ensemble)
    model.item_vectors_ID = items_ID
    return Given(model, users_BD)


@pytest.mark.parametrize("kind", ENSEMBLES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    shards=st.integers(1, 5),
    count=st.integers(1, ITEMS + 3),
    excluded=st.lists(st.sets(st.integers(0, ITEMS)), min_size=len(ASKED), max_size=len(ASKED)),
)
def test_shards_elect_what_the_whole_catalogue_finds(
    kind: str, seed: int, shards: int, count: int, excluded: list[set[int]]
) -> None:
    """Codes, scores, ties, empty slots, and who named what: bit for bit."""
    random = np.random.default_rng(seed)
    items_ID = random.integers(-2, 3, (ITEMS + 1, 3)).astype(np.float32)
    users_BD = random.integers(-2, 3, (len(ASKED), 3)).astype(np.float32)
    model = model_of(items_ID, users_BD, ENSEMBLES[kind])
    exclude = [np.array(sorted(codes), dtype=np.int64) for codes in excluded]
    expected = model.find(ASKED, exclude, count)
    nominated = [Shard(model, number, shards).nominate(ASKED, exclude, count) for number in range(shards)]
    equal(elect(model.ensemble, nominated, count, ITEMS), expected)


def test_every_item_is_in_one_shard() -> None:
    model = model_of(np.zeros((ITEMS + 1, 3), np.float32), np.zeros((5, 3), np.float32), ENSEMBLES["none"])
    held = [Shard(model, number, 3).codes_P.tolist() for number in range(3)]
    assert [codes[0] for codes in held] == [0, 0, 0]
    assert sorted(code for codes in held for code in codes[1:]) == list(range(1, ITEMS + 1))
    assert all(bucket_of(ALPHABET[code - 1], 3) == number for number, codes in enumerate(held) for code in codes[1:])
