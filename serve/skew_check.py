"""Whether what was served is what the batch computes: logged decisions against the data set and the online store."""

from dataclasses import dataclass

from cluster.errors import TowerlineError
from cluster.settings import Settings
from data.checks.skew import Skew, find_skew
from data.dataset import Dataset, open_dataset
from data.features import feature_fingerprints, views
from serve.decisions import StoreVersion
from serve.loading import online_store
from serve.logged_reads import Sample, logged_reads, sample_decisions
from train.registry import champion_cards


@dataclass(frozen=True)
class Checked:
    """What was looked at, and what was found."""

    dataset: Dataset
    sample: Sample
    skew: Skew

    def __str__(self) -> str:
        return (
            f"{len(self.sample.decisions):,} of {self.sample.logged:,} logged decisions, {self.skew.values:,} values "
            f"computed again: {self.skew.differences.height or 'no'} differences"
        )

    def figures(self) -> dict[str, float]:
        """For a report."""
        return {**self.skew.figures(), "logged": self.sample.logged, "skipped": sum(self.sample.skipped.values())}


def check_skew(settings: Settings, dataset_name: str, size: int, seed: int) -> Checked:
    """Compare the features of a sample of logged decisions with those that the events give.

    Raises:
        TowerlineError: there is nothing to compare: no such data set, no champion, another version of the data set in
            the online store, or no decision that was made from it.
    """
    if size < 1:
        raise TowerlineError(f"--sample is {size}, expected 1 or more decisions")
    dataset = open_dataset(settings.home, dataset_name)
    history_length = champion_cards(settings.tracking_uri, dataset_name)["two-tower"].history_length
    store = online_store(settings, dataset_name, history_length)
    published, current = store.published_version(), dataset.manifest.data_version
    if published != current:
        raise TowerlineError(
            f"the online store of data set {dataset_name!r} holds version {published and published[:12]} of it, which "
            f"is now {current[:12]}; `python -m jobs.serve_models --dataset {dataset_name}` publishes it"
        )
    version = StoreVersion(data_version=current, fingerprints=feature_fingerprints(history_length))
    sample = sample_decisions(settings.home / "decisions" / dataset_name, size, seed, version)
    if not sample.decisions:
        skipped = "; ".join(f"{count} {reason}" for reason, count in sample.skipped.items()) or "the log is empty"
        raise TowerlineError(
            f"no logged decision of data set {dataset_name!r} can be checked ({skipped}); ask the endpoint for "
            "recommendations first"
        )
    declared = views(history_length)
    # The events come last: all that a decision can have known is among them.
    skew = find_skew(dataset, store.appended_events(), declared, logged_reads(sample.decisions, declared))
    store.close()
    return Checked(dataset, sample, skew)
