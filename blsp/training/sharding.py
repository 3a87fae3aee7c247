"""An LLM too large for one device: its layers in pieces over a machine's processes, each whole while it computes."""

import os

from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def shard(llm: PreTrainedModel) -> None:
    """Nothing; each process keeps its share of every layer of this frozen LLM, on its device (FSDP2).

    Layers are gathered one ahead of the computation, forwards and backwards, and let go again. The pieces of one
    machine make a whole: nothing is fetched from another. Embeddings and head stay whole, as the objective looks
    words up and makes logits outside the LLM's own forward pass. The processes must do as many passes as each other.
    """
    state = PartialState()
    local = processes_per_machine()
    mesh = init_device_mesh(
        state.device.type, (state.num_processes // local, local), mesh_dim_names=("machine", "here")
    )
    layers = [module for module in llm.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        fully_shard(layer, mesh=mesh["here"])
    in_layers = {parameter for layer in layers for parameter in layer.parameters()}
    # The LLM itself holds nothing more, but knows the order of its layers.
    fully_shard(llm.base_model, mesh=mesh["here"], ignored_params=set(llm.parameters()) - in_layers)


def processes_per_machine() -> int:
    """Processes of this run on this machine, as many as on every other."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", PartialState().num_processes))
