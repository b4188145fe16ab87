"""One line of the configuration chooses vLLM; what cannot work is refused by name."""

from typing import Any

import pytest
from pydantic import ValidationError

from cluster.settings import Settings
from serve.app import application
from serve.config import AppConfig
from serve.deploy_file import deploy_config
from serve.deployments import VllmExplainReplica
from serve.generation import SMOLLM2_BY_LLAMA
from serve.inspection import LANGUAGE_MODEL, language_model_entry
from serve.stages.explain import ExplainConfig
from serve.vllm.config import VllmConfig

VLLM = {"name": "qwen", "model": "/models/qwen", "gpus": 2}


def configured(engine: str, **more: Any) -> AppConfig:
    return AppConfig.model_validate({"dataset": "shop", "explain": {"engine": engine, "vllm": VLLM}, **more})


def test_one_line_chooses_the_engine() -> None:
    with_llama, with_vllm = configured("llama.cpp").explain, configured("vllm").explain
    assert (with_llama.on_gpus, with_llama.identity) == (None, SMOLLM2_BY_LLAMA)
    assert with_vllm.on_gpus == VllmConfig.model_validate(VLLM)
    assert with_vllm.identity.name == "qwen"
    assert language_model_entry(with_vllm.identity).id == "qwen"
    assert language_model_entry(with_llama.identity) == LANGUAGE_MODEL
    assert ExplainConfig().engine == "llama.cpp"


def test_a_fingerprint_is_of_what_is_configured() -> None:
    one = VllmConfig(name="qwen", model="/models/qwen")
    assert one.identity == VllmConfig(name="qwen", model="/models/qwen").identity
    assert one.identity.fingerprint != VllmConfig(name="qwen", model="/models/qwen-2").identity.fingerprint


@pytest.mark.parametrize(
    ("explain", "graph", "message"),
    [
        ({"engine": "vllm"}, {}, r"engine is 'vllm', and vllm is not set; .*\[explain.vllm\] name and model"),
        ({"engine": "sglang"}, {}, "'llama.cpp' or 'vllm'"),
        ({"engine": "vllm", "vllm": {**VLLM, "gpu": 1}}, {}, "explain.vllm.gpu\n.*Extra inputs"),
        ({"engine": "vllm", "vllm": {**VLLM, "gpus": 0}}, {}, "explain.vllm.gpus\n.*greater than 0"),
        (
            {"engine": "vllm", "vllm": VLLM},
            {"explain": "in_process"},
            "explain.engine is 'vllm', which needs .* graph.explain is 'in_process', expected 'remote'",
        ),
    ],
)
def test_what_cannot_work_is_refused(explain: dict[str, Any], graph: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        AppConfig.model_validate({"dataset": "shop", "explain": explain, "graph": graph})


def test_the_engine_gets_the_context_and_what_is_written_at_once() -> None:
    assert VllmConfig.model_validate(VLLM).llm_config(context=2048, parallel=8) == {
        "model_loading_config": {"model_id": "qwen", "model_source": "/models/qwen"},
        "engine_kwargs": {
            "tensor_parallel_size": 2,
            "gpu_memory_utilization": 0.9,
            "max_model_len": 2048,
            "max_num_seqs": 8,
        },
    }


def test_the_same_deployment_asks_for_gpus() -> None:
    """Nothing of it needs vLLM where the application is built: the replica imports it."""

    def explain(engine: str) -> Any:
        gateway = application(Settings(), configured(engine, explain_replicas={"min": 0, "num_cpus": 2}))
        return gateway._bound_deployment.init_args[2]["explain"]._bound_deployment

    by_llama, by_vllm = explain("llama.cpp"), explain("vllm")
    assert by_vllm.func_or_class is VllmExplainReplica
    assert by_vllm.name == by_llama.name == "ExplainReplica"
    for limit in ("max_ongoing_requests", "max_queued_requests", "graceful_shutdown_timeout_s"):
        assert getattr(by_vllm._deployment_config, limit) == getattr(by_llama._deployment_config, limit)
    assert by_vllm._deployment_config.autoscaling_config.min_replicas == 0
    assert by_llama._replica_config.placement_group_bundles is None
    assert by_vllm._replica_config.placement_group_bundles == [{"GPU": 1}, {"GPU": 1}]
    assert by_vllm._replica_config.placement_group_strategy == "PACK"
    assert (by_llama._replica_config.resource_dict["CPU"], by_vllm._replica_config.resource_dict["CPU"]) == (2, 0)
    environment = by_llama._replica_config.ray_actor_options["runtime_env"]
    assert by_vllm._replica_config.ray_actor_options["runtime_env"] == environment


def test_a_deploy_file_is_written_without_vllm() -> None:
    config = configured("vllm")
    (app,) = deploy_config(Settings(), config)["applications"]
    assert AppConfig.model_validate(app["args"]) == config
    assert app["args"]["explain"]["vllm"] == {**VLLM, "gpu_memory": 0.9}
