"""The two recipes of one training step, on the same model: the published one, and ours.

Axes: B utterances, M mel bins, T mel frames, S encoder frames, L tokens, N tokens to predict, K top tokens.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from benchmarks.workload import PREFIX, Utterance, precision
from blsp.model import BlspForConditionalGeneration
from blsp.model.adapter import adapter_length
from blsp.model.responses import prompted
from blsp.training.examples import Batch
from blsp.training.objective import AlignmentObjective
from blsp.training.plan import Choice, Plan, Sizes

IGNORED = -100
PREFIXES = ((), tuple(PREFIX))
TOP_K = 20


def random_batches(utterances: Sequence[Utterance], batch_size: int) -> list[list[Utterance]]:
    """The utterances in batches, as the published recipe draws them."""
    order = np.random.default_rng(1).permutation(len(utterances))
    return [[utterances[row] for row in order[at : at + batch_size]] for at in range(0, len(order), batch_size)]


def published_loss(model: BlspForConditionalGeneration, batch: Sequence[Utterance]) -> torch.Tensor:
    """The mean cross-entropy of the batch as the authors' code computes it; audio beyond 30 s is cut.

    Source: github.com/cwang621/blsp at 61aa8ac, blsp/src/modeling_blsp.py and modeling_whisper_encoder.py. The encoder
    computes its whole window, its frames are cut to the batch's longest clip. Prefix, speech and suffix are each
    padded to their own longest and put one after the other; logits are made at every position.
    """
    device, window = model.device, 2 * model.audio_tower.config.max_source_positions
    clips = [u.features[:, :window] for u in batch]
    features = torch.stack([pad(clip, (0, window - clip.shape[1])) for clip in clips])
    counts = torch.tensor([(clip.shape[1] + 1) // 2 for clip in clips])
    longest = int(counts.max())
    tower = model.audio_tower
    with torch.no_grad(), torch.autocast(device.type, enabled=False):  # as ours, which encodes before the objective
        frames = tower(features.to(device, tower.dtype)).last_hidden_state[:, :longest]
    adapter = model.multi_modal_projector
    # Its adapter does not know which frames are padding: all count as the longest's.
    speech, _ = adapter(frames.to(adapter.norm.weight.dtype), torch.full((len(batch),), longest, device=device))
    vectors = torch.tensor([adapter_length(count, model.config.downsampling) for count in counts.tolist()])
    embeddings = model.get_input_embeddings()
    prefix, prefix_mask = _padded([u.prefix for u in batch])
    suffix, suffix_mask = _padded([u.closing + u.response for u in batch])
    suffix_labels, _ = _padded([[IGNORED] * len(u.closing) + u.response for u in batch], IGNORED)
    inputs = [embeddings(prefix.to(device)), speech, embeddings(suffix.to(device))]
    speech_mask = torch.arange(speech.shape[1]) < vectors[:, None]
    mask = torch.cat([prefix_mask, speech_mask.long(), suffix_mask], dim=1)
    before = torch.full((len(batch), prefix.shape[1] + speech.shape[1]), IGNORED)
    output = model.language_model(
        inputs_embeds=torch.cat([part.to(inputs[0].dtype) for part in inputs], dim=1),
        attention_mask=mask.to(device),
        labels=torch.cat([before, suffix_labels], dim=1).to(device),
        use_cache=False,
    )
    return output.loss


def published_step(model: BlspForConditionalGeneration, batch: Sequence[Utterance]) -> torch.Tensor:
    """The loss of one batch, after its forward and backward."""
    with precision(model):
        loss = published_loss(model, batch)
    loss.backward()
    model.zero_grad()
    return loss.detach()


def our_step(objective: AlignmentObjective, batch: Batch) -> torch.Tensor:
    """The loss of one micro-batch whose frames are there, after its forward and backward."""
    with precision(objective.model):
        loss = objective(batch) / len(batch.targets)
    loss.backward()
    objective.model.zero_grad()
    return loss.detach()


def encoded(model: BlspForConditionalGeneration, micro: Sequence[Utterance]) -> list[torch.Tensor]:
    """The encoder frames (S, E) of each utterance, encoded together as the model's configuration says."""
    lengths = torch.tensor([u.features.shape[1] for u in micro])
    features = pad_sequence([u.features.T for u in micro], batch_first=True).transpose(1, 2)
    if model.config.encoding == "padded":
        window = 2 * model.audio_tower.config.max_source_positions
        features = pad(features, (0, -features.shape[2] % window))
    mask = (torch.arange(features.shape[2]) < lengths[:, None]).long()
    frames, counts = model.encode_audio(features, mask)
    return [clip[:count] for clip, count in zip(frames, counts.tolist(), strict=True)]


def our_batch(
    model: BlspForConditionalGeneration, micro: Sequence[Utterance], clips: Sequence[torch.Tensor] | None = None
) -> Batch:
    """The batch that the Collator makes of such utterances, each after prefix 1 of PREFIXES.

    `clips` are their frames, where a cache has them.
    """
    clips = encoded(model, micro) if clips is None else list(clips)
    counts = [len(clip) for clip in clips]
    audio = [[model.config.audio_token_id] * adapter_length(count, model.config.downsampling) for count in counts]
    responses = [u.response for u in micro]
    targets = torch.tensor([token for response in responses for token in response])
    utterance = torch.repeat_interleave(torch.arange(len(micro)), torch.tensor([len(r) for r in responses]))
    return Batch(
        ids=[str(row) for row in range(len(micro))],
        written=prompted([u.transcript + u.closing for u in micro], responses),
        spoken=prompted([a + u.closing for u, a in zip(micro, audio, strict=True)], responses),
        prefix=torch.ones(len(micro), dtype=torch.long),
        targets=targets,
        utterance=utterance,
        kept_ids=torch.arange(TOP_K).expand(len(targets), -1),
        kept_logprobs=torch.full((len(targets), TOP_K), -4.0),
        audio={"frames": pad_sequence(clips, batch_first=True), "counts": torch.tensor(counts)},
        audio_s=sum(u.seconds for u in micro),
    ).to(model.device)


def our_micro_batches(
    model_size: tuple[int, int], downsampling: int, utterances: Sequence[Utterance], budget: float
) -> list[list[Utterance]]:
    """The utterances of one global batch as the plan cuts it for one process.

    `model_size` are the parameters of encoder and LLM, whose ratio says what a frame costs in LLM positions.
    """
    frames = np.array([u.frames for u in utterances])
    positions = np.array([spoken_positions(u, downsampling) for u in utterances])
    targets = np.array([len(u.response) for u in utterances])
    sizes = Sizes(frames, {"a": positions}, {"a": targets}, frame_cost=model_size[0] / (3 * model_size[1]))
    plan = Plan(sizes, {"a": 1.0}, len(utterances), seed=0)
    choices = [Choice(row, "a") for row in range(len(utterances))]
    return [[utterances[c.row] for c in micro] for micro in plan.micro_batches(choices, budget, 1)[0]]


def spoken_positions(utterance: Utterance, downsampling: int) -> int:
    """LLM positions of the utterance when it is heard, after the prefix."""
    around = len(utterance.closing) + len(utterance.response)
    return around + adapter_length(utterance.frames, downsampling)


def _padded(rows: Sequence[list[int]], value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows (B, L) padded on the right, and their mask (B, L)."""
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
