import shutil
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import polars as pl
import pytest

from cluster.errors import TowerlineError
from cluster.provenance import git_commit, versions
from data.features import feature_fingerprints
from data.offline.store import read_examples
from tests.train.conftest import RANKING, RETRIEVAL, DonePath
from tests.train.planted import HISTORY, NEVER_CHOSEN, Planted
from train.card import ModelCard
from train.models.candidate_features import ranker_fingerprints
from train.models.ensemble import CandidatesConfig
from train.models.ials import IALSConfig
from train.models.item_item import ItemItemConfig
from train.models.retrieval import RetrievalModel
from train.promotion import promote
from train.ranking import RankingConfig
from train.registry import (
    CHALLENGER,
    RegisteredPair,
    champion_cards,
    find_pair,
    load_challenger,
    load_champion,
    load_pair,
    newest_pair,
    read_evaluated,
    register_ranking,
    register_retrieval,
    registered_name,
)
from train.tracking import TrackingTarget, connect, start_run
from train.training_rows import ALL_EVENTS, TRAIN_SPLIT

Register = Callable[..., RegisteredPair]
ENSEMBLED = RANKING.model_copy(update={"sources": (ItemItemConfig(), IALSConfig())})


@pytest.fixture
def card(path: DonePath) -> ModelCard:
    return load_champion(path.workflow.settings.tracking_uri, "planted").cards["two-tower"]


@pytest.fixture
def register(path: DonePath, card: ModelCard) -> Register:
    """Put the pair into the registry under another data set's name, with changes to its cards."""

    def register(
        dataset: str, served: RetrievalModel | None = None, ranking: RankingConfig = RANKING, **changes: object
    ) -> RegisteredPair:
        uri = path.workflow.settings.tracking_uri
        fresh = {"dataset": dataset, "variant": uuid.uuid4().hex}
        changed = ModelCard.model_validate(card.model_dump() | fresh | changes)
        of_ranker = changed.model_copy(update={"kind": "ranker", "config": ranking.model_dump(mode="json")})
        items = path.workflow.dataset.items()
        with start_run(TrackingTarget(tracking_uri=uri, experiment=dataset, run_name="test")) as run:
            register_retrieval(run, served or path.served, changed, items)
            register_ranking(run, path.ranking.model, of_ranker, path.measured.values)
        return find_pair(uri, dataset, changed.variant)

    return register


def test_the_champion_gives_the_scores_of_the_models_that_were_registered(path: DonePath, planted: Planted) -> None:
    loaded = load_champion(path.workflow.settings.tracking_uri, "planted")
    rows = read_examples(planted.folder)[-80:]
    vectors_BD = path.refitted.model.encode_users(rows)
    np.testing.assert_array_equal(loaded.retrieval.encode_users(rows), vectors_BD)
    codes_BK, scores_BK = path.refitted.model.index.search(vectors_BD, 20)
    again_BK, scores_again_BK = loaded.retrieval.index.search(loaded.retrieval.encode_users(rows), 20)
    np.testing.assert_array_equal(again_BK, codes_BK)
    np.testing.assert_array_equal(scores_again_BK, scores_BK)
    items_BKF = np.random.default_rng(0).random((80, 20, 4), dtype=np.float32)
    np.testing.assert_array_equal(
        loaded.ranking.score(rows, codes_BK, scores_BK, items_BKF, loaded.retrieval),
        path.ranking.model.score(rows, codes_BK, scores_BK, items_BKF, path.served),
    )


def test_sources_of_all_events_come_back_as_they_were(path: DonePath, planted: Planted, register: Register) -> None:
    served = path.workflow.with_sources(path.refitted.model, ENSEMBLED, ALL_EVENTS)
    pair = register("ensembled", served=served, ranking=ENSEMBLED)
    loaded = load_pair(path.workflow.settings.tracking_uri, pair).retrieval
    rows, nothing = read_examples(planted.folder)[-40:], [np.array([], dtype=np.int64)] * 40
    found, expected = (model.find(rows, nothing, 20) for model in (loaded, served))
    np.testing.assert_array_equal(found.codes_BK, expected.codes_BK)
    np.testing.assert_array_equal(found.sources_BKS, expected.sources_BKS)
    assert found.sources_BKS.shape[2] == len(ENSEMBLED.sources) == 2
    of_less = path.workflow.with_sources(path.refitted.model, ENSEMBLED, TRAIN_SPLIT)
    assert (of_less.source_scores(rows, found.codes_BK) != found.sources_BKS).mean() > 0.2


def test_a_two_tower_without_the_rankers_sources_is_refused(path: DonePath, register: Register) -> None:
    uri, workflow = path.workflow.settings.tracking_uri, path.workflow
    fewer = ENSEMBLED.model_copy(update={"sources": ENSEMBLED.sources[:1]})
    served = workflow.with_sources(path.refitted.model, fewer, ALL_EVENTS)
    pair = register("fewer", served=served, ranking=ENSEMBLED)
    with pytest.raises(TowerlineError, match=r"'fewer-two-tower': .* lacks the sources ials that the ranker reads"):
        load_pair(uri, pair)
    blended = ENSEMBLED.model_copy(update={"candidates": CandidatesConfig(blend="reciprocal_rank", depth=7)})
    served = workflow.with_sources(path.refitted.model, blended, ALL_EVENTS)
    pair = register("blended", served=served, ranking=ENSEMBLED)
    with pytest.raises(TowerlineError, match=r"finds candidates by .*reciprocal_rank.* and the ranker expects"):
        load_pair(uri, pair)


def test_the_pair_comes_with_its_catalogue_and_versions(path: DonePath, planted: Planted) -> None:
    loaded = load_champion(path.workflow.settings.tracking_uri, "planted")
    assert loaded.versions == path.pair.versions
    assert loaded.variant == path.pair.variant
    assert loaded.items.equals(planted.dataset.items())
    assert set(NEVER_CHOSEN) < set(loaded.retrieval.vocabulary.items)
    assert {card.variant for card in loaded.cards.values()} == {loaded.variant}
    assert champion_cards(path.workflow.settings.tracking_uri, "planted") == loaded.cards


def test_the_card_says_enough_to_train_it_again(path: DonePath, planted: Planted) -> None:
    cards = load_champion(path.workflow.settings.tracking_uri, "planted").cards
    for kind, card, config, trained in (
        ("two-tower", cards["two-tower"], RETRIEVAL, path.refitted),
        ("ranker", cards["ranker"], RANKING, path.ranking),
    ):
        assert card.kind == kind
        assert card.config == config.model_dump(mode="json")
        assert card.scaling["backend"] == "none"
        assert card.data_version == planted.dataset.manifest.data_version
        assert card.history_length == HISTORY
        assert card.feature_fingerprints == feature_fingerprints(HISTORY) | ranker_fingerprints(RANKING.ensemble.names)
        assert card.evaluation == path.evaluation
        assert [epoch["loss"] for epoch in card.curve] == [epoch.loss for epoch in trained.history]
        assert len(card.git_commit.removesuffix("-dirty")) == 40
        assert card.git_commit.removesuffix("-dirty").isalnum() or git_commit() == card.git_commit
        assert card.versions == versions()
    assert cards["two-tower"].trained_on == ALL_EVENTS
    assert cards["ranker"].curve[0]["ndcg@10"] > 0


def test_the_registry_shows_where_a_version_comes_from(path: DonePath, planted: Planted) -> None:
    client = connect(path.workflow.settings.tracking_uri)
    version = client.get_model_version_by_alias(registered_name("planted", "ranker"), "champion")
    assert version.tags["data_version"] == planted.dataset.manifest.data_version
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert run.data.metrics["ndcg_at_10.two_tower"] == path.evaluation.figures["ndcg@10/two_tower"]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"two-tower", "ranker"}


def test_the_challenger_is_the_model_of_the_train_split(path: DonePath) -> None:
    model, card = load_challenger(path.workflow.settings.tracking_uri, "planted")
    np.testing.assert_array_equal(model.item_vectors_ID, path.retrieval.model.item_vectors_ID)
    assert card.trained_on == TRAIN_SPLIT
    client = connect(path.workflow.settings.tracking_uri)
    assert client.get_model_version_by_alias("planted-two-tower", CHALLENGER).tags["variant"] == card.variant


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            load_champion,
            r"no champion of data set 'nothing'; train .*`python -m jobs.train_ranking --dataset nothing`",
        ),
        (
            load_challenger,
            r"no challenger of model 'nothing-two-tower'; .*`python -m jobs.train_retrieval --dataset nothing`",
        ),
    ],
)
def test_an_empty_registry_names_the_job_to_run(
    load: Callable[[str, str], object], message: str, path: DonePath
) -> None:
    with pytest.raises(TowerlineError, match=message):
        load(path.workflow.settings.tracking_uri, "nothing")


def test_a_registered_pair_does_not_serve_before_it_is_promoted(path: DonePath, register: Register) -> None:
    uri = path.workflow.settings.tracking_uri
    first = register("promotion")
    message = "no champion of data set 'promotion'; 1 variants wait to be promoted with .*promote_model"
    with pytest.raises(TowerlineError, match=message):
        load_champion(uri, "promotion")
    promote(uri, "promotion", first.variant)
    second = register("promotion")
    assert second.versions["ranker"] != first.versions["ranker"]
    assert load_champion(uri, "promotion").versions == first.versions
    promote(uri, "promotion", second.variant, force="test")
    assert load_champion(uri, "promotion").versions == second.versions


def test_a_variant_is_found_by_the_beginning_of_its_name(path: DonePath, register: Register) -> None:
    uri = path.workflow.settings.tracking_uri
    with pytest.raises(TowerlineError, match=r"no variant of data set 'names'; .*train_ranking --dataset names"):
        newest_pair(uri, "names")
    ab, ac = register("names", variant="ab1"), register("names", variant="ac1")
    assert find_pair(uri, "names", "ab").versions == ab.versions
    assert newest_pair(uri, "names").versions == ac.versions
    with pytest.raises(TowerlineError, match=r"2 registered variants .* begin with 'a', expected one of: ac1, ab1"):
        find_pair(uri, "names", "a")
    for name in ("b", ""):
        with pytest.raises(TowerlineError, match=rf"no registered variants .* begin with '{name}', .*: ac1, ab1; "):
            find_pair(uri, "names", name)


def test_a_two_tower_without_a_ranker_is_no_variant_to_promote(path: DonePath) -> None:
    """The challenger is one."""
    challenger = load_challenger(path.workflow.settings.tracking_uri, "planted")[1].variant
    with pytest.raises(TowerlineError, match=f"begin with '{challenger}'"):
        find_pair(path.workflow.settings.tracking_uri, "planted", challenger)


def test_features_that_are_computed_otherwise_now_are_refused(path: DonePath, register: Register) -> None:
    """The message holds both fingerprints and the commit that can serve; such a variant cannot be promoted."""
    uri = path.workflow.settings.tracking_uri
    old = feature_fingerprints(HISTORY) | {"user_activity": "0123456789abcdef"}
    pair = register("features", feature_fingerprints=old, git_commit="c0ffee")
    now = feature_fingerprints(HISTORY)["user_activity"]
    message = rf"view 'user_activity' with fingerprint 0123456789abcdef, this code computes {now}; .*commit c0ffee"
    with pytest.raises(TowerlineError, match=message):
        load_pair(uri, pair)
    with pytest.raises(TowerlineError, match=message):
        promote(uri, "features", pair.variant, force="test")


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (shutil.rmtree, r"is missing or cannot be read \(.*\)"),
        (lambda folder: (folder / "contents.json").unlink(), r"is missing or cannot be read \(.*contents.json.*\)"),
        (lambda folder: (folder / "contents.json").write_text('{"a'), r"is missing or cannot be read \(Unterm.*\)"),
        (lambda folder: (folder / "item_vectors.npy").unlink(), "lacks the file item_vectors.npy"),
        (
            lambda folder: (folder / "catalogue.parquet").write_bytes(b"PAR1"),
            r"holds another catalogue.parquet than was registered \(cut short or altered\)",
        ),
        (lambda folder: (folder / "card.json").write_text("{}"), r"holds another card.json than was registered \(.*\)"),
    ],
)
def test_an_artifact_that_is_not_what_was_registered_is_named(
    damage: Callable[[Path], object], problem: str, path: DonePath, register: Register
) -> None:
    """Version, address, what is wrong with it, and what to do; whoever only looks at the cards hears it too."""
    uri = path.workflow.settings.tracking_uri
    pair = register("damage")
    promote(uri, "damage", pair.variant, force="test")
    folder = Path(url2pathname(urlsplit(str(pair.models["two-tower"].source)).path))
    damage(folder)
    version = pair.versions["two-tower"]
    message = (
        rf"version {version} of model 'damage-two-tower': its artifact at file://{folder} {problem}; "
        r"restore that folder, .*`python -m jobs.rollback_model --dataset damage`"
    )
    for look in (load_champion, champion_cards):
        with pytest.raises(TowerlineError, match=message):
            look(uri, "damage")


def test_what_this_code_cannot_read_names_the_commit_that_can(
    path: DonePath, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are whole, but the network has other weights now."""

    def other_network(*_: object) -> None:
        raise RuntimeError("size mismatch for weight")

    pair = register("architecture", git_commit="c0ffee")
    monkeypatch.setattr("train.registry.RankingModel.load", other_network)
    with pytest.raises(TowerlineError, match=r"cannot be read by this code \(size mismatch.*commit c0ffee"):
        load_pair(path.workflow.settings.tracking_uri, pair)


def test_the_values_by_user_come_back(path: DonePath) -> None:
    _, values = read_evaluated(path.workflow.settings.tracking_uri, path.pair)
    assert values.equals(path.measured.values)


def test_a_challenger_of_other_features_is_refused_too(path: DonePath, register: Register) -> None:
    old = feature_fingerprints(HISTORY) | {"item_popularity": "0123456789abcdef"}
    pair = register("challenged", feature_fingerprints=old)
    client = connect(path.workflow.settings.tracking_uri)
    client.set_registered_model_alias("challenged-two-tower", CHALLENGER, pair.versions["two-tower"])
    with pytest.raises(TowerlineError, match="fingerprint 0123456789abcdef, this code computes"):
        load_challenger(path.workflow.settings.tracking_uri, "challenged")


def test_a_server_that_does_not_answer_is_named_quickly() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(TowerlineError, match=f"MLflow server at {uri} does not answer .*TOWERLINE_MLFLOW_TRACKING_URI"):
        load_champion(uri, "planted")
    with pytest.raises(TowerlineError, match="does not answer"):
        promote(uri, "planted", "any")
    assert time.monotonic() - started < 60


def test_the_catalogue_of_a_version_is_the_one_it_was_trained_with(
    path: DonePath, card: ModelCard, tmp_path: Path
) -> None:
    """A new catalogue in the data set does not change a registered model."""
    loaded = load_champion(path.workflow.settings.tracking_uri, "planted")
    listed = loaded.items.filter(pl.col("title").is_not_null())
    assert listed.height == loaded.items.height - 1
    assert card.kind == "two-tower"
    loaded.retrieval.save(tmp_path)
    assert (tmp_path / "vocabulary.json").read_text().count("群") > 40
