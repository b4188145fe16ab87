import pytest

from cluster.errors import TowerlineError
from train.horovod_options import HorovodOptions
from train.ray_workers import _backend_config
from train.scaling import Scaling


def test_horovod_is_told_in_its_own_units() -> None:
    options = HorovodOptions(fusion_threshold_mb=0.5, cycle_time_ms=2.5)
    assert options.environment() == {"HOROVOD_FUSION_THRESHOLD": "524288", "HOROVOD_CYCLE_TIME": "2.5"}


def test_adasum_without_gpus_is_refused_before_workers_start() -> None:
    adasum = {"backend": "horovod", "horovod": {"reduction": "adasum"}}
    with pytest.raises(TowerlineError, match=r"scaling\.horovod\.reduction is 'adasum'.*travel over Gloo"):
        _backend_config(Scaling.model_validate(adasum))
    assert _backend_config(Scaling.model_validate(adasum | {"use_gpu": True}))


def test_what_changes_the_gradients_makes_another_training() -> None:
    plain, faster, rounded, other = (
        Scaling.model_validate(values).decisive
        for values in (
            {},
            {"horovod": {"cycle_time_ms": 5, "fusion_threshold_mb": 1}},
            {"horovod": {"compression": "fp16"}},
            {"horovod": {"compression": "fp16"}, "backend": "torch"},
        )
    )
    assert plain == faster
    assert plain != rounded
    assert "compression" not in other
