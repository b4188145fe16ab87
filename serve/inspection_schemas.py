"""What goes over HTTP when the endpoint is asked about itself: features and models."""

from datetime import datetime
from typing import Literal

from serve.schemas import HttpModel

FeatureValue = int | float | str | datetime | None


class FeatureViewReading(HttpModel):
    """The features of one view."""

    name: str
    description: str
    fingerprint: str
    """Of the view's definition: another one, once the view is defined otherwise."""

    features: dict[str, FeatureValue | tuple[FeatureValue, ...]]
    """Feature to value, as the models see it; lists are oldest first."""


class UserFeaturesResponse(HttpModel):
    """What is known of a user at this moment."""

    user_id: str
    known_user: bool
    """Whether the store has an event or an attribute of this user. Without, the features are their defaults, and the
    user gets recommendations nevertheless."""

    at: datetime
    """The moment as of which the features are computed."""

    known_until: datetime | None
    """When the system learnt of the newest of the user's events; none without events."""

    data_version: str | None
    """Version of the data set that was published to the online store; feedback counts on top of it."""

    attributes: tuple[str, ...]
    """`name=value` tokens."""

    views: tuple[FeatureViewReading, ...]


class ServedModel(HttpModel):
    """One model version, and where it comes from."""

    model: str
    """Kind of model: `two-tower` or `ranker`."""

    version: str
    """In the registry."""

    data_version: str
    """Version of the data set that it was trained on."""

    git_commit: str
    """Of the code that trained it."""

    history_length: int
    """Events of a user's history that it reads."""

    feature_views: dict[str, str]
    """Feature view that it was trained on to the fingerprint of its definition."""


class ServedVariant(HttpModel):
    """Models that were made for each other and answer together."""

    variant: str
    items: int
    """Items that it can recommend."""

    new_items: int
    """Of these, those that the data set has got since the training: they are placed by their content."""

    models: tuple[ServedModel, ...]


class LanguageModelEntry(HttpModel):
    """A model that writes completions, as OpenAI's clients read it."""

    id: str
    """What `model` is to be in a request for a completion."""

    object: Literal["model"] = "model"
    created: int
    """When it was published, in seconds since the epoch; 0 if that is not known."""

    owned_by: str


class ModelsResponse(HttpModel):
    """The variants that answer, and the language model, in the shape of OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: tuple[LanguageModelEntry, ...] = ()
    """The models that write completions."""

    champion: str
    """The variant that the registry names. It takes over within seconds, unless it is refused."""

    refused: str | None = None
    """Why the champion, or its newest items, do not answer although they were tried; they are tried again."""

    data_version: str | None
    """Version of the data set that was published to the online store."""

    variants: tuple[ServedVariant, ...]
