"""The miniature's speech model: a small Whisper trained from scratch to recognise English speech.

Axes: B utterances, M mel bins, T mel frames (100 a second), S encoder frames (50 a second), L tokens.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from tqdm import tqdm
from transformers import (
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.audio_utils import hertz_to_mel, mel_to_hertz

from blsp.miniature.corpus import ESPEAK_LANGUAGE, spoken_sentences
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Speech, speak
from blsp.model.encoder import encode, encoder_length
from blsp.params import Miniature, MiniatureSpeech

START, END, NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
MEL_BINS = 80
HOP = 320  # samples: mel frames every 20 ms, encoder frames every 40 ms, half of what Whisper computes
MAX_TOKENS = 64
VOCABULARY = 600
CLIPS_AT_ONCE = 50
WHOLE_WINDOW_SHARE = 0.2
IGNORED = -100
VOCAL_TRACT_WARP = 0.12  # share of a formant's frequency


def train_speech_model(settings: Miniature, folder: Path) -> None:
    """Nothing; `folder` afterwards holds the trained Whisper, its feature extractor and its tokenizer.

    The loss is the decoder's cross-entropy beside one on the encoder: the word that is being spoken, at every
    frame, as the synthesiser tells it. (CTC has to find that alignment first, and stays near its plateau for the
    first hundreds of steps.) The head for it is dropped at the end.
    Most batches are encoded at the length of their audio; the rest fill the whole window, as Whisper's own
    `forward` and `generate` do, so that the checkpoint serves both.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    spoken = spoken_sentences(settings, "train")
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS, hop_length=HOP, chunk_length=settings.speech.window_s)
    tokenizer = _train_tokenizer([sentence.text for sentence, _ in spoken])
    speech = [
        speak(sentence.text, ESPEAK_LANGUAGE, prosody)
        for sentence, prosody in tqdm(spoken, desc="speaking", unit="utt")
    ]
    features = _all_features(extractor, [utterance.samples for utterance in speech])
    words = sorted({word for utterance in speech for word, _ in utterance.words})
    spoken_words = [_word_at_each_frame(u, words, f.shape[1]) for u, f in zip(speech, features, strict=True)]
    labels = [tokenizer(sentence.text, add_special_tokens=False).input_ids for sentence, _ in spoken]
    model = _new_model(settings.speech, tokenizer)
    word_head = nn.Linear(settings.speech.width, len(words) + 1)
    parameters = [*model.parameters(), *word_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.speech.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.speech.lr, settings.speech.steps, pct_start=0.15)
    model.train()
    batches = _batches([clip.shape[1] for clip in features], settings.speech.batch_size, rng)
    with tqdm(total=settings.speech.steps, desc="speech model", unit="step", mininterval=2) as progress:
        for _ in range(settings.speech.steps):
            rows = next(batches)
            whole_window = rng.random() < WHOLE_WINDOW_SHARE
            picked = [_mask_spectrogram(_warp_vocal_tract(features[row], rng), rng) for row in rows]
            padded, mask = _pad(picked, extractor.nb_max_frames if whole_window else None)
            frames = (
                model.get_encoder()(padded).last_hidden_state
                if whole_window
                else encode(model.get_encoder(), padded, mask)
            )
            word_loss = _word_loss(word_head(frames), [spoken_words[row] for row in rows])
            text_loss = _text_loss(model, frames, [labels[row] for row in rows])
            loss = settings.speech.word_weight * word_loss + (1 - settings.speech.word_weight) * text_loss
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(word=f"{word_loss.item():.2f}", text=f"{text_loss.item():.2f}", refresh=False)
            progress.update()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    extractor.save_pretrained(folder)


def _train_tokenizer(texts: list[str]) -> WhisperTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((" " + text for text in texts), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    whisper = WhisperTokenizer(vocab=tokenizer.get_vocab(), merges=merges, pad_token=END)
    whisper.add_special_tokens({"additional_special_tokens": [START, NO_TIMESTAMPS]})
    return whisper


def _new_model(settings: MiniatureSpeech, tokenizer: WhisperTokenizer) -> WhisperForConditionalGeneration:
    start, end, no_timestamps = tokenizer.convert_tokens_to_ids([START, END, NO_TIMESTAMPS])
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(tokenizer),
            num_mel_bins=MEL_BINS,
            d_model=settings.width,
            encoder_layers=settings.encoder_layers,
            decoder_layers=settings.decoder_layers,
            encoder_attention_heads=settings.heads,
            decoder_attention_heads=settings.heads,
            encoder_ffn_dim=4 * settings.width,
            decoder_ffn_dim=4 * settings.width,
            max_source_positions=SAMPLING_RATE_HZ // (2 * HOP) * settings.window_s,
            max_target_positions=MAX_TOKENS,
            decoder_start_token_id=start,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    )
    generation = model.generation_config
    generation.is_multilingual = False
    generation.no_timestamps_token_id = no_timestamps
    generation.return_timestamps = False
    generation.max_length = MAX_TOKENS
    return model


def _batches(lengths: list[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of row numbers, each of similar lengths; every row once an epoch."""
    while True:
        order = sorted(range(len(lengths)), key=lambda row: lengths[row] * rng.uniform(0.9, 1.1))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rng.shuffle(batches)
        yield from batches


def _all_features(extractor: WhisperFeatureExtractor, clips: list[np.ndarray]) -> list[torch.Tensor]:
    """The log-mel features (M, T) of each clip, its window's padding cut off."""
    features = []
    for start in tqdm(range(0, len(clips), CLIPS_AT_ONCE), desc="mel", unit="batch"):
        cut = [clip[: extractor.n_samples] for clip in clips[start : start + CLIPS_AT_ONCE]]
        samples = min(max(map(len, cut)) + extractor.n_fft, extractor.n_samples)
        padded = np.zeros((len(cut), -(-samples // HOP) * HOP), dtype=np.float32)
        for row, clip in enumerate(cut):
            padded[row, : len(clip)] = clip
        mel = torch.from_numpy(extractor._torch_extract_fbank_features(padded))
        features += [mel[row, :, : -(-len(clip) // HOP)].clone() for row, clip in enumerate(cut)]
    return features


def _pad(features: list[torch.Tensor], frames: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, M, T) and the mask (B, T) of their valid frames, T the longest or `frames`.

    A longer window is filled with what the extractor makes of silence: the clip's floor.
    """
    lengths = torch.tensor([clip.shape[1] for clip in features])
    length = frames or int(lengths.max())
    padded = torch.stack(
        [nn.functional.pad(clip, (0, length - clip.shape[1]), value=clip.min().item()) for clip in features]
    )
    return padded, (torch.arange(length) < lengths[:, None]).long()


def _warp_vocal_tract(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The features (M, T) as from a longer or shorter vocal tract, formants moved by up to VOCAL_TRACT_WARP.

    A few dozen voices are then heard as many more (VTLP, Jaitly and Hinton 2013).
    """
    top = hertz_to_mel(SAMPLING_RATE_HZ / 2, mel_scale="slaney")
    bins = np.arange(1, MEL_BINS + 1) * top / (MEL_BINS + 1)
    warped = mel_to_hertz(bins, mel_scale="slaney") * rng.uniform(1 - VOCAL_TRACT_WARP, 1 + VOCAL_TRACT_WARP)
    source = hertz_to_mel(warped, mel_scale="slaney") * (MEL_BINS + 1) / top - 1
    position = torch.from_numpy(source).clamp(0, MEL_BINS - 1).float()
    below = position.long().clamp(max=MEL_BINS - 2)
    return torch.lerp(features[below], features[below + 1], (position - below)[:, None])


def _mask_spectrogram(features: torch.Tensor, rng: random.Random) -> torch.Tensor:
    """The features (M, T) with two mel bands and two moments hidden (SpecAugment, Park et al. 2019)."""
    features = features.clone()
    for _ in range(2):
        band, moment = rng.randrange(MEL_BINS - 10), rng.randrange(features.shape[1])
        features[band : band + rng.randrange(10)] = 0
        features[:, moment : moment + rng.randrange(6)] = 0
    return features


def _word_at_each_frame(speech: Speech, words: list[str], mel_frames: int) -> torch.Tensor:
    """The number, from 1, of the word being spoken in the middle of each encoder frame (S,); 0 before the first."""
    middles = (torch.arange(encoder_length(mel_frames)) + 0.5) * 2 * HOP / SAMPLING_RATE_HZ
    starts = torch.tensor([start_s for _, start_s in speech.words])
    numbers = torch.tensor([0, *(words.index(word) + 1 for word, _ in speech.words)])
    return numbers[torch.searchsorted(starts, middles, right=True)]


def _word_loss(logits: torch.Tensor, spoken_words: list[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the word at each real frame; logits (B, S, words)."""
    targets = torch.full(logits.shape[:2], IGNORED)
    for row, numbers in enumerate(spoken_words):
        targets[row, : len(numbers)] = numbers
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def _text_loss(model: WhisperForConditionalGeneration, frames: torch.Tensor, labels: list[list[int]]) -> torch.Tensor:
    """The decoder's cross-entropy of the transcripts, given the encoder's frames (B, S, E)."""
    config = model.config
    longest = max(len(row) for row in labels)
    start, end, no_timestamps = config.decoder_start_token_id, config.eos_token_id, config.vocab_size - 1
    decoder_ids = torch.full((len(labels), longest + 2), end)
    targets = torch.full((len(labels), longest + 2), IGNORED)
    for row, ids in enumerate(labels):
        decoder_ids[row, : len(ids) + 2] = torch.tensor([start, no_timestamps, *ids])
        targets[row, : len(ids) + 2] = torch.tensor([no_timestamps, *ids, end])
    logits = model(encoder_outputs=(frames,), decoder_input_ids=decoder_ids).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
