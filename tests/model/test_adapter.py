"""Both adapters: exact lengths, vectors that a batch does not change, and the paper's size."""

import pytest
import torch

from blsp.model.adapter import ConvAdapter, StackAdapter, WordAdapter, adapter_length

torch.manual_seed(0)
WORDS = torch.nn.Embedding(9, 6)


def adapter(kind, downsampling, encoder_width=4, llm_width=6, bottleneck=3):
    torch.manual_seed(0)
    if kind == "stack":
        return StackAdapter(encoder_width, llm_width, downsampling, bottleneck)
    if kind == "word":
        return WordAdapter(encoder_width, llm_width, downsampling, 5, bottleneck, vocabulary=len(WORDS.weight))
    return ConvAdapter(encoder_width, llm_width, downsampling, kernel=5, bottleneck=bottleneck)


@pytest.mark.parametrize(
    ("frames", "downsampling", "expected"),
    [(1, 8, 1), (100, 8, 13), (1500, 8, 188), (1500, 4, 375), (9, 4, 3), (11, 8, 2)],
)
@pytest.mark.parametrize("kind", ["conv", "word", "stack"])
def test_adapter_length_is_exact(kind, frames, downsampling, expected):
    assert adapter_length(frames, downsampling) == expected
    vectors, lengths = adapter(kind, downsampling)(torch.randn(1, frames, 4), torch.tensor([frames]), WORDS)
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
    together, lengths = model(frames, counts, WORDS)
    for row, count in enumerate(counts):
        alone, (length,) = model(frames[row : row + 1, :count], count[None], WORDS)
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


@pytest.mark.parametrize("downsampling", [1, 2])
def test_a_word_adapter_gives_at_most_every_other_vector(downsampling):
    with pytest.raises(ValueError, match=f"power of two from 4 on; found {downsampling}"):
        adapter("word", downsampling)


def heard(*rows, counts):
    """The vectors and their counts of a word adapter of down-sampling 4 that marks what is no dot, and reads its digit.

    A row has a character a convolved vector. The vectors come as text: a word's digit, a dot for the filler.
    """
    model = adapter("word", 4).eval()
    marks = torch.tensor([[-1.0 if mark == "." else 1.0 for mark in row] for row in rows])
    valid = [row[: -(-count // 2)] for row, count in zip(rows, counts, strict=True)]
    tokens = torch.tensor([int(mark) for row in valid for mark in row if mark != "."], dtype=torch.long)
    model.mark_logits = lambda frames, lengths: marks
    model.read = lambda vectors, words: (tokens, words(tokens))
    vectors, lengths = model(torch.randn(len(rows), 2 * len(rows[0]), 4), torch.tensor(counts), WORDS)
    kinds = torch.cat([model.filler[None], WORDS.weight]).detach()
    found = [torch.cdist(row[:length].detach(), kinds) for row, length in zip(vectors, lengths, strict=True)]
    assert all((row.min(1).values < 1e-6).all() for row in found)
    return ["".join(".012345678"[at] for at in row.argmin(1)) for row in found]


def test_words_close_the_utterance_in_their_order_after_the_filler():
    assert heard(".1..23", "4.5999", counts=[12, 6]) == ["123", "45"]  # what lies beyond a count is not heard
    assert heard("....1.", counts=[12]) == ["..1"]
    assert heard("......", counts=[12]) == ["..."]


def test_neighbours_of_one_word_are_one_and_words_apart_are_two():
    assert heard("11..", counts=[8]) == [".1"]
    assert heard("1.1.", counts=[8]) == ["11"]
    assert heard("11122211", "3.33.4..", counts=[16, 12]) == [".121", "334"]


def test_of_more_words_than_places_the_first_are_heard():
    assert heard("123456", counts=[12]) == ["123"]


def test_a_vector_at_a_word_gives_the_word_and_one_between_two_known_words_their_middle():
    model = adapter("word", 4)
    model.known.zero_()[[2, 5, 7]] = True
    with torch.no_grad():
        model.log_sharpness.fill_(5.0)
        words = WORDS.weight[[2, 5, 7]]
        torch.testing.assert_close(model.read(words, WORDS)[1], words)
        middle = (words[:1] + words[1:2]) / 2
        torch.testing.assert_close(model.read(middle, WORDS)[1], middle)
        stranger = model.read(WORDS.weight[[3]], WORDS)[1]  # not known: the nearest that is
    nearest = torch.cdist(WORDS.weight[[3]], words).argmin()
    torch.testing.assert_close(stranger[0], words[nearest], atol=1e-3, rtol=0)
