"""What is kept of the teacher's distribution: the likeliest tokens, and others as often as they are probable."""

import pytest
import torch

from blsp.continuation.teacher import keep


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_others_are_drawn_in_proportion_to_their_probability(temperature):
    torch.manual_seed(0)
    logits, k, draws = 2 * torch.randn(1, 40), 5, 2000
    numbers = ((torch.arange(draws * k) + 0.5) / (draws * k)).view(draws, k)
    ids, logprobs = keep(logits.expand(draws, -1), k, temperature, numbers)
    expected = (logits / temperature).log_softmax(-1)
    assert torch.equal(ids[:, :k], logits.topk(k).indices.expand(draws, -1))
    others = expected.exp().scatter(-1, ids[:1, :k], 0.0)
    torch.testing.assert_close(logprobs[:, :k], expected.expand(draws, -1).gather(-1, ids[:, :k]))
    among = (others / others.sum()).log().expand(draws, -1).gather(-1, ids[:, k:])
    torch.testing.assert_close(logprobs[:, k:], among)
    found = torch.bincount(ids[:, k:].flatten(), minlength=40) / (draws * k)
    torch.testing.assert_close(found, (others / others.sum())[0], atol=1e-3, rtol=0)


def test_where_there_are_no_others_what_is_drawn_is_some_token():
    ids, logprobs = keep(torch.tensor([[3.0, 1.0, 2.0]]), 3, 1.0, torch.rand(1, 3))
    assert ids[0, :3].tolist() == [0, 2, 1] and set(ids[0, 3:].tolist()) <= {0, 1, 2}
    assert logprobs.isfinite().all()
