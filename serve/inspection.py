"""What the endpoint says of itself: the features that a user has now, and the models that answer."""

from collections.abc import Mapping
from datetime import UTC, datetime

from data.features import views
from data.online.store import OnlineStore
from data.views import USER, views_of
from serve.generation import MODEL, Identity
from serve.inspection_schemas import (
    FeatureViewReading,
    LanguageModelEntry,
    ServedModel,
    ServedVariant,
    UserFeaturesResponse,
)
from serve.variant import Variant

LANGUAGE_MODEL = LanguageModelEntry(
    id=MODEL, created=int(datetime(2024, 11, 1, tzinfo=UTC).timestamp()), owned_by="HuggingFaceTB"
)
"""The one that llama.cpp runs."""


def language_model_entry(identity: Identity) -> LanguageModelEntry:
    """The language model in the list of models. Of one that vLLM runs nobody told us when, and by whom, it was made."""
    return (
        LANGUAGE_MODEL if identity.name == MODEL else LanguageModelEntry(id=identity.name, created=0, owned_by="vllm")
    )


def user_features(
    store: OnlineStore, history_length: int, fingerprints: Mapping[str, str], user_id: str, at: datetime
) -> UserFeaturesResponse:
    """The features of a user as of a moment, one reading per view; a user nobody knows has the defaults. Blocks.

    `fingerprints`: view to the fingerprint of its definition.
    """
    data_version = store.published_version()
    values = store.read(USER, [user_id], at).row(0, named=True)
    attributes = dict(store.user_attributes([user_id]).iter_rows()).get(user_id)
    readings = tuple(
        FeatureViewReading(
            name=view.name,
            description=view.description,
            fingerprint=fingerprints[view.name],
            features={name: values[name] for name in view.features},
        )
        for view in views_of(USER, views(history_length))
    )
    return UserFeaturesResponse(
        user_id=user_id,
        known_user=values["known"] or attributes is not None,
        at=at,
        known_until=values["known_until"],
        data_version=data_version,
        attributes=tuple(attributes or ()),
        views=readings,
    )


def served(variant: Variant) -> ServedVariant:
    """A variant and where its models come from."""
    return ServedVariant(
        variant=variant.name,
        items=len(variant.catalogue),
        new_items=variant.new_items.table.height,
        models=tuple(
            ServedModel(
                model=kind,
                version=variant.versions[kind],
                data_version=card.data_version,
                git_commit=card.git_commit,
                history_length=card.history_length,
                feature_views=card.feature_fingerprints,
            )
            for kind, card in variant.cards.items()
        ),
    )
