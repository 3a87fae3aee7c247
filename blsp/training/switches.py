"""How the frozen parts compute: precision, recomputation, compilation, and where an LLM's layers lie."""

import os
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from blsp.model.modeling import BlspForConditionalGeneration

if TYPE_CHECKING:
    from blsp.params import Train


def set_switches(model: BlspForConditionalGeneration, settings: "Train") -> None:
    """Make the model compute as the settings say, on this process's device."""
    for backbone in (model.language_model, model.audio_tower):
        backbone.to(getattr(torch, settings.precision))
    if settings.gradient_checkpointing:
        recompute(model.language_model)
    if settings.shard_llm:
        shard(model.language_model)
    if settings.compile:
        # Layer by layer: one graph serves them all, however deep the LLM, and `encode` calls the encoder's itself.
        for module in model.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile(dynamic=True)
    model.to(PartialState().device)


def recompute(llm: PreTrainedModel) -> None:
    """Nothing; the LLM's layers are computed again in the backward pass."""
    llm.activation_checkpointing_enable()
    for module in llm.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module._can_checkpoint_with_cache = True  # a PrefixReader's is never written to
    # transformers makes words ask for gradients too, for the older kind of checkpoint; speech vectors already do.
    llm.disable_input_require_grads()


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
