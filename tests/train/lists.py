"""Random candidate lists for the ranker."""

import torch
from torch import Tensor
from torch.nn import functional

from train.encoding import MAX_ATTRIBUTES, UserBatch
from train.models.candidate_features import CANDIDATE_FEATURES, RETRIEVAL_SCORE, USER_FEATURES
from train.models.ranker import RankerInputs
from train.models.ranker_heads import ChosenEvents
from train.vocabulary import UNKNOWN, Vocabulary

USERS, CANDIDATES, EVENTS = 24, 7, 6


def random_inputs(vocabulary: Vocabulary) -> RankerInputs:
    """Lists, best first; the second one is short and the third one has a single candidate."""
    generator = torch.Generator().manual_seed(1)
    candidates_BK = torch.stack(
        [torch.randperm(vocabulary.num_items, generator=generator)[:CANDIDATES] + 1 for _ in range(USERS)]
    )
    features_BKF = torch.randn(USERS, CANDIDATES, len(CANDIDATE_FEATURES), generator=generator)
    features_BKF[:, :, RETRIEVAL_SCORE] = features_BKF[:, :, RETRIEVAL_SCORE].sort(dim=1, descending=True).values
    candidates_BK[1, 4:], candidates_BK[2, 1:] = UNKNOWN, UNKNOWN
    return RankerInputs(
        users=random_users(vocabulary, generator),
        user_features_BF=torch.randn(USERS, len(USER_FEATURES), generator=generator),
        candidates_BK=candidates_BK,
        candidate_features_BKF=features_BKF.masked_fill((candidates_BK == UNKNOWN).unsqueeze(2), 0.0),
        item_directions_ID=functional.normalize(torch.randn(vocabulary.num_items + 1, 5, generator=generator)),
    )


def random_users(vocabulary: Vocabulary, generator: torch.Generator) -> UserBatch:
    """Histories of 0 to `EVENTS` events; the first user has none."""
    absent_BL = torch.arange(EVENTS, 0, -1) > torch.arange(USERS).remainder(EVENTS + 1).unsqueeze(1)

    def codes(most: int, dtype: torch.dtype) -> Tensor:
        drawn_BL = torch.randint(1, most + 1, (USERS, EVENTS), generator=generator)
        return drawn_BL.masked_fill(absent_BL, UNKNOWN).to(dtype)

    return UserBatch(
        history_BL=codes(vocabulary.num_items, torch.int32),
        history_values_BL=codes(len(vocabulary.value_edges) + 1, torch.int8),
        history_types_BL=codes(len(vocabulary.event_types), torch.int16),
        history_ages_BL=(torch.rand(USERS, EVENTS, generator=generator) * 1e6).masked_fill(absent_BL, 0.0),
        attributes_BA=torch.randint(0, 8, (USERS, MAX_ATTRIBUTES), generator=generator, dtype=torch.int32),
    )


def random_chosen(count: int) -> ChosenEvents:
    """Values from 1 to 5, all of the first type."""
    values_B = torch.randint(1, 6, (count,), generator=torch.Generator().manual_seed(2)).float()
    return ChosenEvents(values_B, torch.ones(count, dtype=torch.int64))
