"""The teacher's distribution beside each token that it wrote, so that training needs no pass of it.

Axes: B answers, L tokens, N tokens of all answers, K most likely tokens.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from blsp.model.decoding import Answer, chunk_rows, logits_of
from blsp.model.responses import prompted


@torch.inference_mode()
def top_logprobs(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], answers: Sequence[Answer], k: int
) -> list[tuple[list[list[int]], list[list[float]]]]:
    """For each answer the ids and the log-probabilities of the `k` most likely tokens at each of its tokens.

    They are those of the plain distribution at temperature 1, computed in one forward over prompt and answer.
    """
    read = prompted(prompt_ids, [a.token_ids for a in answers])
    ids, mask, predicts = (tensor.to(model.device) for tensor in (read.ids, read.mask, read.predicts))
    states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[predicts]
    top = [logits_of(model, chunk).float().log_softmax(-1).topk(k) for chunk in states.split(chunk_rows(model))]
    counts = [len(a.token_ids) for a in answers]
    top_ids = torch.cat([chunk.indices for chunk in top]).cpu().split(counts)
    logprobs = torch.cat([chunk.values for chunk in top]).cpu().split(counts)
    return [
        (i.tolist(), [[round(x, 5) for x in row] for row in p.tolist()]) for i, p in zip(top_ids, logprobs, strict=True)
    ]
