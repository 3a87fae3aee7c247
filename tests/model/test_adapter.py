"""Both adapters: exact lengths, vectors that a batch does not change, and the paper's size."""

import pytest
import torch

from blsp.model.adapter import ConvAdapter, StackAdapter, WordAdapter, adapter_length


def adapter(kind, downsampling, encoder_width=4, llm_width=6, bottleneck=3):
    torch.manual_seed(0)
    if kind == "stack":
        return StackAdapter(encoder_width, llm_width, downsampling, bottleneck)
    kind = WordAdapter if kind == "word" else ConvAdapter
    return kind(encoder_width, llm_width, downsampling, kernel=5, bottleneck=bottleneck)


@pytest.mark.parametrize(
    ("frames", "downsampling", "expected"), [(1, 8, 1), (100, 8, 13), (1500, 8, 188), (1500, 4, 375), (9, 2, 5)]
)
@pytest.mark.parametrize("kind", ["conv", "word", "stack"])
def test_adapter_length_is_exact(kind, frames, downsampling, expected):
    assert adapter_length(frames, downsampling) == expected
    vectors, lengths = adapter(kind, downsampling)(torch.randn(1, frames, 4), torch.tensor([frames]))
    assert vectors.shape == (1, expected, 6) and lengths.tolist() == [expected]


def test_stacked_lengths_are_exact_for_any_rate():
    for frames in range(1, 20):
        for downsampling in (1, 3, 5, 7):
            vectors, lengths = adapter("stack", downsampling)(torch.randn(1, frames, 4), torch.tensor([frames]))
            assert vectors.shape[1] == lengths.item() == adapter_length(frames, downsampling)


@pytest.mark.parametrize("kind", ["conv", "word", "stack"])
def test_a_batch_gives_the_vectors_of_each_utterance_alone(kind):
    model = adapter(kind, 4)
    counts = torch.tensor([1, 13, 30, 32])
    frames = torch.randn(4, 32, 4)  # frames beyond a count are noise, and must not be heard
    together, lengths = model(frames, counts)
    for row, count in enumerate(counts):
        alone, (length,) = model(frames[row : row + 1, :count], count[None])
        assert length == lengths[row]
        torch.testing.assert_close(together[row, :length], alone[0], atol=1e-6, rtol=1e-5)


def test_stacking_puts_neighbours_side_by_side():
    model = adapter("stack", 2)
    frames = torch.arange(1.0, 13.0).reshape(1, 3, 4)
    seen = []
    model.norm_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(frames, torch.tensor([3]))
    assert seen[0][0].tolist() == [[*range(1, 9)], [9, 10, 11, 12, 0, 0, 0, 0]]


def test_paper_adapter_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = ConvAdapter(encoder_width=768, llm_width=4096, downsampling=8, kernel=5, bottleneck=512)
    assert len(model.convs) == 3
    assert sum(p.numel() for p in model.parameters()) == 47_467_520


@pytest.mark.parametrize("downsampling", [0, 1, 3, 12])
def test_convolutions_halve(downsampling):
    with pytest.raises(ValueError, match=f"power of two from 2 on; found {downsampling}"):
        adapter("conv", downsampling)


def test_words_close_the_utterance_in_their_order_after_the_filler():
    model = adapter("word", 2).eval()
    marks = torch.tensor([[-1.0, 1, -1, -1, 1, 1], [1, -1, 1, 9, 9, 9]])
    model.mark_logits = lambda frames, lengths: marks
    frames, counts = torch.randn(2, 12, 4), torch.tensor([12, 6])
    in_time, lengths = model.vectors(frames, counts)
    vectors, same = model(frames, counts)
    assert lengths.tolist() == same.tolist() == [6, 3]
    assert torch.equal(vectors[0], torch.stack([*[model.filler] * 3, *in_time[0, [1, 4, 5]]]))
    assert torch.equal(vectors[1, :3], torch.stack([model.filler, *in_time[1, [0, 2]]]))
