"""Which model vLLM runs, and on what."""

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from serve.generation import Identity


class VllmConfig(BaseModel):
    """A language model on GPUs. Its context and how much it writes at once are those of `explain` and `completions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    """What the model is called in requests."""

    model: str = Field(min_length=1)
    """Its weights: a folder that every node with GPUs has, or a name at the hub, from where vLLM fetches them itself.
    It needs a chat template, and room for `explain.context` tokens."""

    gpus: PositiveInt = 1
    """GPUs of a replica, among which the model is divided (tensor parallelism). It sets no CPU aside, so that nodes
    with GPUs can be started without any, and no stage comes to them that their image cannot run. A rollout starts new
    replicas before old ones stop: it needs as many GPUs again."""

    gpu_memory: float = Field(default=0.9, gt=0, le=1)
    """Share of each GPU's memory that vLLM takes."""

    @property
    def identity(self) -> Identity:
        """The weights are not read for it: it changes with what is configured."""
        return Identity(self.name, f"fp_{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]}")

    def llm_config(self, *, context: int, parallel: int) -> dict[str, Any]:
        """The arguments of `ray.serve.llm.LLMConfig`. `parallel`: texts written at once, each of `context` tokens."""
        return {
            "model_loading_config": {"model_id": self.name, "model_source": self.model},
            "engine_kwargs": {
                "tensor_parallel_size": self.gpus,
                "gpu_memory_utilization": self.gpu_memory,
                "max_model_len": context,
                "max_num_seqs": parallel,
            },
        }

    def placed(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options of a deployment, with GPUs in place of CPUs: a bundle for each, the replica in the first.

        So `ray.serve.llm.build_llm_deployment` places it, which only a process that has vLLM can call.
        """
        return options | {
            "ray_actor_options": options["ray_actor_options"] | {"num_cpus": 0},
            "placement_group_bundles": [{"GPU": 1.0}] * self.gpus,
            "placement_group_strategy": "PACK",
        }
