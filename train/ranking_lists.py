"""The ranker's candidate lists on disk: what it reads of each, which candidate was chosen, and in what event."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from cluster.errors import TowerlineError
from data.schema import EVENT_TYPE, ITEM_ID, SOURCE_ROW, VALUE
from train.candidates import Candidates
from train.encoding import UserBatch
from train.metrics.accuracy import first_places, hits_of
from train.models.ranker import RankerInputs
from train.models.ranker_heads import ChosenEvents
from train.models.ranking import ranker_inputs
from train.models.retrieval import RetrievalModel
from train.vocabulary import encode

DIRECTIONS = "item_directions_ID"
"""Of all lists of a file, not of each."""
USERS = tuple(field.name for field in fields(UserBatch))
INPUTS = ("user_features_BF", "candidates_BK", "candidate_features_BKF")
EVENTS = tuple(field.name for field in fields(ChosenEvents))


@dataclass(frozen=True)
class RankingLists:
    """B candidate lists."""

    inputs: RankerInputs
    positive_B: Tensor
    """int64: place of the chosen item; -1 where it is not in the list."""
    chosen: ChosenEvents
    row_ids_B: Tensor
    """int64: what tells an event from all others."""

    def __getitem__(self, rows: Tensor) -> "RankingLists":
        return RankingLists(self.inputs[rows], self.positive_B[rows], self.chosen[rows], self.row_ids_B[rows])

    def __len__(self) -> int:
        return len(self.positive_B)

    def chunks(self, size: int) -> Iterator["RankingLists"]:
        """All of them, at most `size` at once."""
        for rows in torch.split(torch.arange(len(self)), size):
            yield self[rows]


def write_lists(path: Path, lists: list[Candidates], model: RetrievalModel, *, keep_all: bool) -> None:
    """Write the lists that hold the chosen item, or all; the candidates were found by `model`.

    Raises:
        TowerlineError: there would be none.
    """
    tensors = [_columns(found, model, keep_all=keep_all) for found in lists]
    columns = {name: torch.cat([some[name] for some in tensors]).contiguous() for name in (tensors or [{}])[0]}
    if not columns or len(columns["positive_B"]) == 0:
        raise TowerlineError(
            f"{path.stem}: retrieval offered no event's item among {lists[0].codes_BK.shape[1] if lists else 0} "
            "candidates; ingest more events, raise num_candidates or train retrieval longer"
        )
    safetensors.torch.save_file({**columns, DIRECTIONS: torch.from_numpy(model.item_directions_ID)}, path)


def read_lists(path: Path) -> RankingLists:
    """What `write_lists` wrote."""
    columns = safetensors.torch.load_file(path)
    users = UserBatch(*(columns[name] for name in USERS))
    inputs = RankerInputs(users, *(columns[name] for name in (*INPUTS, DIRECTIONS)))
    chosen = ChosenEvents(*(columns[name] for name in EVENTS))
    return RankingLists(inputs, columns["positive_B"], chosen, columns["row_ids_B"])


def _columns(found: Candidates, model: RetrievalModel, *, keep_all: bool) -> dict[str, Tensor]:
    """One entry per list of everything but the directions."""
    targets_B = model.vocabulary.encode_items(found.rows[ITEM_ID])
    positive_B = torch.from_numpy(first_places(hits_of(found.codes_BK, list(targets_B[:, np.newaxis]))))
    lists_BK = found.codes_BK, found.scores_BK, found.item_features_BKF
    inputs = ranker_inputs(found.rows, *lists_BK, model, sources_BKS=found.sources_BKS)
    kept = torch.arange(len(positive_B)) if keep_all else torch.nonzero(positive_B >= 0).squeeze(1)
    columns = {name: getattr(inputs.users, name) for name in USERS}
    columns |= {name: getattr(inputs, name) for name in INPUTS}
    columns |= {
        "value_B": torch.tensor(found.rows[VALUE].to_numpy()),
        "type_B": torch.from_numpy(encode(found.rows[EVENT_TYPE].to_arrow(), model.vocabulary.event_type_codes)),
        "positive_B": positive_B,
        "row_ids_B": torch.tensor(found.rows[SOURCE_ROW].to_numpy()),
    }
    return {name: column[kept] for name, column in columns.items()}
