"""A micro-batch of the real objective on tensors that have a shape and no contents: what it holds, what it computes.

torch's FakeTensorMode runs the model's own code and computes nothing. So what autograd keeps of a frozen layer, the
chunks of the loss and recomputation are those of the code itself, for any LLM, without weights and without a GPU.

Axes: B utterances, W windows, M mel bins, T mel frames, S encoder frames, A adapter frames, L tokens, R tokens of a
response, D LLM width, K most likely tokens kept.
"""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from transformers import AutoModelForCausalLM
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from blsp.estimate.lengths import Lengths
from blsp.model.adapter import adapter_length
from blsp.model.configuration import BlspConfig
from blsp.model.decoding import has_keys_alone
from blsp.model.encoder import encode
from blsp.model.modeling import BlspForConditionalGeneration
from blsp.training.objective import AlignmentObjective
from blsp.training.prefixes import NONE, PrefixReader
from blsp.training.switches import recompute

if TYPE_CHECKING:
    from blsp.params import Train

FRAMES_PER_S = 50  # of Whisper's encoder
STORED_LOGPROBS = 32  # kept by a stored teacher: their number hardly shows


@dataclass(frozen=True)
class Rehearsal:
    """What one micro-batch takes beside weights, gradients and moments: bytes, and FLOPs by phase.

    The phases are encoder, student, teacher, loss and backward. `kept_bytes` live from the student's forward pass to
    the backward pass; `transient_bytes` are what each phase needs for a moment, on top of those it finds.
    """

    kept_bytes: int
    transient_bytes: dict[str, int]
    flops: dict[str, int]

    @property
    def peak_bytes(self) -> int:
        """The most bytes that live at once."""
        on_top = max(count for phase, count in self.transient_bytes.items() if phase != "encoder")
        return max(self.transient_bytes["encoder"], self.kept_bytes + on_top)


class Stage:
    """Where micro-batches of mean utterances are rehearsed: the model of two configurations and the settings.

    `frames`, `spoken` and `written` are the mean utterance's encoder frames and LLM positions, heard and read, after
    the prompt's prefix, which was read before.
    `rehearse` gives the Rehearsal of a micro-batch of so many utterances; it takes seconds for an LLM of 7B.
    """

    def __init__(self, audio_config: Any, text_config: Any, settings: "Train", lengths: Lengths) -> None:
        self.settings = settings
        self.dtype = getattr(torch, settings.precision)
        # Copies: a model writes into its configuration, such as which attention it chose.
        self.config = BlspConfig(
            audio_config=deepcopy(audio_config),
            text_config=deepcopy(text_config),
            audio_token_id=0,
            adapter=settings.adapter,
            downsampling=settings.downsampling,
            bottleneck=settings.bottleneck,
            encoding=settings.encoding,
        )
        self.model = self._build()
        window = audio_config.max_source_positions
        self.frames = max(round(lengths.audio_s * FRAMES_PER_S), 1)
        self.windows = -(-self.frames // window)
        if settings.encoding == "padded":
            self.frames = self.windows * window
        self.responses = lengths.response_tokens
        around = lengths.closing_tokens + lengths.response_tokens
        reads_ahead = not settings.compile and has_keys_alone(self.model.language_model)
        prefixes = ((), (0,) * lengths.prefix_tokens) if reads_ahead else NONE
        with self.fake:
            self.reader = PrefixReader(self.model.language_model, prefixes)
        if not reads_ahead:  # then each row brings its prefix along
            around += lengths.prefix_tokens
        self.spoken = around + adapter_length(self.frames, settings.downsampling)
        self.written = around + lengths.transcript_tokens
        self.rehearse = lru_cache(self._rehearse)

    def _build(self) -> BlspForConditionalGeneration:
        with FakeTensorMode() as self.fake:
            model = BlspForConditionalGeneration(
                self.config,
                WhisperEncoder._from_config(self.config.audio_config, dtype=self.dtype),
                AutoModelForCausalLM.from_config(self.config.text_config, dtype=self.dtype),
            )
            if self.settings.gradient_checkpointing:
                recompute(model.language_model)
            for parameter in model.multi_modal_projector.parameters():
                parameter.grad = torch.zeros_like(parameter)  # there from the second micro-batch on: added to in place
            return model.train()

    def _rehearse(self, utterances: int) -> Rehearsal:
        """What a micro-batch of so many mean utterances takes."""
        is_half = self.settings.precision == "bfloat16"
        needs_teacher = self.settings.objective == "kd" and self.settings.teacher == "live"
        with self.fake, _Meter() as meter, torch.autocast("cpu", torch.bfloat16) if is_half else nullcontext():
            with meter.phase("encoder"):
                frames = self._encode(utterances)
            with meter.phase("student"):
                student = self._student(frames)
            kept = meter.live_bytes
            with meter.phase("teacher"):
                teacher = self._teacher(utterances) if needs_teacher else None
            with meter.phase("loss"):
                loss = _Objective(self.model, self.settings, student, teacher)(self._batch(len(student)))
            with meter.phase("backward"):
                loss.backward()
        transient = {phase: peak - (0 if phase == "encoder" else kept) for phase, peak in meter.peak_bytes.items()}
        return Rehearsal(kept, transient, meter.flops)

    @torch.no_grad()
    def _encode(self, utterances: int) -> torch.Tensor:
        """Frames (B, S, E)."""
        tower = self.model.audio_tower
        windows, length = utterances * self.windows, -(-self.frames // self.windows)
        features = torch.zeros(windows, tower.config.num_mel_bins, 2 * length, dtype=self.dtype)
        if self.settings.encoding == "padded":
            frames = tower(features).last_hidden_state
        else:
            frames = encode(tower, features, torch.ones(windows, 2 * length, dtype=torch.long))
        return frames.reshape(utterances, -1, frames.shape[-1])[:, : self.frames]

    def _student(self, frames: torch.Tensor) -> torch.Tensor:
        """As AlignmentObjective.spoken_states, (B R, D): the speech stands in front, where no index is needed."""
        adapter = self.model.multi_modal_projector
        counts = torch.full((len(frames),), self.frames)
        vectors, _ = adapter(frames.to(adapter.norm.weight.dtype), counts)
        words = self._words(len(frames), self.spoken - vectors.shape[1])
        return self._states(torch.cat([vectors.to(words), words], dim=1))

    @torch.no_grad()
    def _teacher(self, utterances: int) -> torch.Tensor:
        """As AlignmentObjective.written_states, (B R, D)."""
        return self._states(self._words(utterances, self.written))

    def _words(self, utterances: int, tokens: int) -> torch.Tensor:
        return self.model.get_input_embeddings()(torch.zeros(utterances, tokens, dtype=torch.long))

    def _states(self, embeddings: torch.Tensor) -> torch.Tensor:
        mask, prefix = torch.ones(embeddings.shape[:2], dtype=torch.long), torch.ones(len(embeddings), dtype=torch.long)
        return self.reader.states(embeddings, mask, prefix)[:, -self.responses :].flatten(0, 1)

    def _batch(self, targets: int) -> Any:
        top = (targets, STORED_LOGPROBS)
        return SimpleNamespace(
            targets=torch.zeros(targets, dtype=torch.long),
            kept_ids=torch.zeros(top, dtype=torch.long),
            kept_logprobs=torch.zeros(top),
        )


class _Objective(AlignmentObjective):
    """The objective itself, on states that are given: finding them by their indices takes contents."""

    def __init__(self, model: Any, settings: "Train", student: torch.Tensor, teacher: torch.Tensor | None) -> None:
        super().__init__(model, settings.objective, settings.temperature, settings.teacher)
        self.student, self.taught = student, teacher

    def spoken_states(self, batch: Any) -> torch.Tensor:
        return self.student

    def written_states(self, batch: Any) -> torch.Tensor:
        assert self.taught is not None
        return self.taught


class _Meter(TorchDispatchMode):
    """Counts the bytes that are allocated while it is on: those alive, and the most in each phase, and its FLOPs."""

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.most_bytes = self.total_flops = 0
        self.peak_bytes: dict[str, int] = {}
        self.flops: dict[str, int] = {}
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Nothing; what happens within is counted under this name."""
        self.most_bytes, flops = self.live_bytes, self.total_flops
        yield
        self.peak_bytes[name] = self.most_bytes
        self.flops[name] = self.total_flops - flops

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        # What came in was there before: a parameter, or counted already. Views and in-place results share it.
        known = {tensor.untyped_storage() for tensor in _tensors((args, kwargs))}
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if storage not in known and storage not in self._seen:
                self._seen.add(storage)
                self.live_bytes += storage.nbytes()
                weakref.finalize(storage, self._free, storage.nbytes())
        self.most_bytes = max(self.most_bytes, self.live_bytes)
        if count_flops := _FLOPS.get(function.overloadpacket):
            self.total_flops += count_flops(*args, **(kwargs or {}), out_val=output)
        return output

    def _free(self, count: int) -> None:
        self.live_bytes -= count


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, torch.Tensor))


def _attention_flops(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query.shape, key.shape, value.shape)


def _attention_backward_flops(gradient: torch.Tensor, *inputs: torch.Tensor, **_: Any) -> int:
    return sdpa_backward_flop_count(gradient.shape, *(tensor.shape for tensor in inputs[:3]))


# torch counts its GPU kernels of attention, not the CPU's, which tensors without contents take.
_FLOPS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
