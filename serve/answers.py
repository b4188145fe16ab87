"""What the outcome of a request becomes: the response, and the decision log's entry that it can be rebuilt from."""

from collections.abc import Sequence
from typing import Any

from data.features import feature_fingerprints
from data.schema import ITEM_ID
from serve.batch import Batch, Call
from serve.decisions import Answered, Decision, StoreVersion
from serve.generation import SMOLLM2_BY_LLAMA, Identity
from serve.graph import Outcome
from serve.schemas import RecommendedItem, RecommendRequest, RecommendResponse
from serve.stages import explain, rerank
from serve.variant import Catalogue, Variant
from train.vocabulary import UNKNOWN


def call_of(request: RecommendRequest, decision_id: str) -> Call:
    """What the graph is asked for."""
    return Call(
        decision_id=decision_id,
        user_id=request.user_id,
        count=request.count,
        recent_items=request.recent_items,
        explain=request.explain,
        allow=request.allow_items,
        deny=request.deny_items,
        budget_s=None if request.budget_ms is None else request.budget_ms / 1e3,
    )


class Answers:
    """Of one variant in one replica."""

    def __init__(self, replica: str, variant: Variant, language_model: Identity = SMOLLM2_BY_LLAMA) -> None:
        """`language_model`: that writes the sentences, where some are asked for."""
        self._replica = replica
        self._variant = variant
        self._language_model = f"{language_model.name} {language_model.fingerprint}"
        self._prompt_version = explain.prompt_version()
        self._rerank_prompt_version = rerank.prompt_version()
        self.feature_views = feature_fingerprints(variant.history_length)
        """Feature view to the fingerprint of its definition."""

    def response(self, call: Call, outcome: Outcome) -> RecommendResponse:
        """The answer to the client."""
        return RecommendResponse(
            decision_id=call.decision_id,
            user_id=call.user_id,
            known_user=outcome.batch.known[0],
            items=self._items(call, outcome.batch),
            variant=self._variant.name,
            models=dict(self._variant.versions),
            degraded=outcome.degraded,
            timings_ms=dict(outcome.timings_ms),
        )

    def decision(self, call: Call, outcome: Outcome, items: Sequence[RecommendedItem]) -> Decision:
        """The log's entry for an answer with these items."""
        batch = outcome.batch
        return Decision(
            decision_id=call.decision_id,
            kind="recommend",
            at=batch.at,
            replica=self._replica,
            variant=self._variant.name,
            models=self._variant.versions,
            new_items=self._variant.new_items.digest,
            request={
                "user_id": call.user_id,
                "count": call.count,
                "recent_items": call.recent_items,
                "explain": call.explain,
                "allow_items": call.allow,
                "deny_items": call.deny,
            },
            store=self._store_version(batch),
            user_features=batch.users.row(0, named=True),
            everything=batch.everything,
            candidates=_candidates(batch, self._variant.catalogue),
            answer=tuple(
                Answered(item_id=item.item_id, score=item.score, explanation=item.explanation) for item in items
            ),
            prompt_version=self._prompt_version if batch.explanations else None,
            language_model=self._language_model if batch.explanations else None,
            rerank_prompt_version=self._rerank_prompt_version if batch.profiles else None,
            degraded=outcome.degraded,
            timings_ms=outcome.timings_ms,
        )

    def _items(self, call: Call, batch: Batch) -> tuple[RecommendedItem, ...]:
        catalogue = self._variant.catalogue
        sentences = batch.explanations[0] if batch.explanations else {}
        ranked = zip(batch.codes_BK[0, : call.count].tolist(), batch.scores_BK[0].tolist(), strict=False)
        return tuple(
            RecommendedItem(
                item_id=catalogue.item_id(code),
                title=catalogue.title(code),
                score=score,
                explanation=sentences.get(code),
            )
            for code, score in ranked
            if code != UNKNOWN
        )

    def _store_version(self, batch: Batch) -> StoreVersion | None:
        if batch.data_version is None:
            return None
        return StoreVersion(data_version=batch.data_version, fingerprints=self.feature_views)


def _candidates(batch: Batch, catalogue: Catalogue) -> dict[str, list[Any]]:
    """The candidates of a single request as columns, the empty slots left out."""
    filled = int((batch.codes_BK[0] != UNKNOWN).sum())
    features = batch.item_features[:filled].to_dict(as_series=False)
    if not features:
        features = {ITEM_ID: [catalogue.item_id(code) for code in batch.codes_BK[0, :filled].tolist()]}
    return {
        **features,
        "retrieval_score": batch.retrieval_BK[0, :filled].tolist(),
        "ranking_score": batch.scores_BK[0, :filled].tolist(),
    }
