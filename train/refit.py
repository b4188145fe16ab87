"""The registered configuration, trained again on what a protocol lets it learn from: a champion has seen everything."""

from train.candidates import ItemFeatures
from train.card import Kind, ModelCard
from train.contestants import Contestants
from train.crew import same_workers
from train.ledger import read_ledger
from train.pair import RankedRecommender, TwoTowerRecommender
from train.ranking import RankingConfig
from train.registry import challenger_card, champion_cards
from train.retrieval import RetrievalConfig
from train.workflow import Workflow


def registered_cards(tracking_uri: str, dataset: str) -> dict[Kind, ModelCard]:
    """The cards of the champion; where there is none, that of the challenger two-tower alone.

    Raises:
        TowerlineError: there is neither, or it was trained on features that this code no longer computes.
    """
    if read_ledger(tracking_uri, dataset).champion is None:
        return {"two-tower": challenger_card(tracking_uri, dataset)}
    return champion_cards(tracking_uri, dataset)


@same_workers()
def refit(workflow: Workflow) -> Contestants:
    """Train what is registered on the workflow's protocol, from scratch: for as many epochs as were best for it."""
    cards = registered_cards(workflow.settings.tracking_uri, workflow.dataset.name)
    from_scratch, epochs = cards["two-tower"].from_scratch
    config = RetrievalConfig.model_validate(from_scratch)
    retrieval = workflow.train_retrieval_again(config, epochs).model
    found = Contestants(retrieval.vocabulary, history_length=cards["two-tower"].history_length)
    found.recommenders["two_tower"] = TwoTowerRecommender(retrieval)
    if "ranker" in cards:
        ranking_config = RankingConfig.model_validate(cards["ranker"].config)
        past = workflow.train_past_retrieval(config, epochs, ranking_config.past_share)
        ranking = workflow.train_ranking(ranking_config, past.model, retrieval)
        items = ItemFeatures(workflow.known_events, retrieval.vocabulary)
        found.recommenders["two_tower_ranker"] = RankedRecommender(
            workflow.with_sources(retrieval, ranking_config, workflow.train_split),
            ranking.model,
            items,
            ranking_config.num_candidates,
        )
    return found
