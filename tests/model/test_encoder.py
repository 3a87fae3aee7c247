"""The encoder in both modes: exact lengths, exact masks, the same counts."""

import pytest
import torch

from blsp.model.encoder import encode, encoder_length
from tests import tiny


@pytest.fixture(scope="module")
def padded(pins):
    return tiny.build(pins, encoding="padded")


@pytest.mark.parametrize("mel_frames", [1, 2, 3, 35, 200])
def test_encoder_length_is_exact(tiny_model, mel_frames):
    encoder = tiny_model[0].audio_tower
    frames = encode(encoder, torch.randn(1, 80, mel_frames), torch.ones(1, mel_frames, dtype=torch.long))
    assert frames.shape[1] == encoder_length(mel_frames)


def test_a_full_window_is_encoded_as_whisper_does(tiny_model):
    encoder = tiny_model[0].audio_tower
    features = torch.randn(2, 80, 2 * encoder.config.max_source_positions)
    ours = encode(encoder, features, torch.ones(2, features.shape[-1], dtype=torch.long))
    torch.testing.assert_close(ours, encoder(features).last_hidden_state, atol=1e-5, rtol=1e-4)


def test_variable_frames_do_not_depend_on_the_batch(tiny_model, clips):
    model, processor = tiny_model
    together, counts = model.encode_audio(**processor.features(clips))
    for row, clip in enumerate(clips):
        alone, (count,) = model.encode_audio(**processor.features([clip]))
        assert count == counts[row]
        torch.testing.assert_close(together[row, :count], alone[0], atol=1e-5, rtol=1e-4)


def test_padded_features_are_the_extractors_own(padded, clips):
    _, processor = padded
    extractor = processor.feature_extractor
    features = processor.features(clips)
    windows = [clips[0], clips[1], *(clips[2][start : start + 32_000] for start in (0, 32_000, 64_000))]
    own = extractor(windows, sampling_rate=16_000, return_tensors="pt").input_features
    assert features["input_features"].shape == (3, 80, 600)
    assert torch.equal(features["input_features"][:2, :, :200], own[:2])
    assert torch.equal(features["input_features"][2], torch.cat(list(own[2:]), dim=-1))


def test_padded_mode_is_the_encoders_own_forward_on_the_extractors_features(padded, clips):
    model, processor = padded
    own = processor.feature_extractor(clips[:2], sampling_rate=16_000, return_tensors="pt").input_features
    expected = model.audio_tower(own).last_hidden_state
    frames, counts = model.encode_audio(**processor.features(clips[:2]))
    assert counts.tolist() == [18, 55] and not frames.requires_grad
    for row, count in enumerate(counts):
        assert torch.equal(frames[row, :count], expected[row, :count])


def test_both_modes_give_the_same_counts_and_only_padded_hears_the_padding(tiny_model, padded, clips):
    (variable_model, variable), (padded_model, padded_processor) = tiny_model, padded
    frames, counts = variable_model.encode_audio(**variable.features(clips))
    padded_frames, padded_counts = padded_model.encode_audio(**padded_processor.features(clips))
    assert counts.tolist() == padded_counts.tolist() == [18, 55, 265]
    # A full window has no padding to hear: there the modes are one. A short clip differs.
    torch.testing.assert_close(frames[2, :200], padded_frames[2, :200], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(frames[0, :18], padded_frames[0, :18], atol=1e-2)
    for model, processor in (tiny_model, padded):
        vectors = model.get_audio_features(**processor.features(clips)).pooler_output
        assert len(vectors) == sum(processor.audio_token_count(len(clip)) for clip in clips)


def test_features_of_the_other_mode_are_refused(tiny_model, padded, clips):
    with pytest.raises(ValueError, match="expects the mel input features to be of length 200, but found 110"):
        padded[0].encode_audio(**tiny_model[1].features(clips[:2]))
