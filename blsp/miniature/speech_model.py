"""The miniature's speech model: a small Whisper, trained from scratch to recognise English and German speech and to
translate the German into English, as Whisper is.

Axes: B utterances, M mel bins, T mel frames (50 a second), S encoder frames (25 a second), L tokens.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import (
    GenerationConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from blsp.miniature.corpus import ENGLISH, ESPEAK_LANGUAGES, GERMAN, spoken_sentences
from blsp.miniature.grammar import Sentence
from blsp.miniature.mel import HOP, MEL_BINS, all_features, mask_spectrogram, pad, warp_vocal_tract
from blsp.miniature.synthesis import SAMPLING_RATE_HZ, Prosody, Speech, speak
from blsp.miniature.word_alignment import stands_for
from blsp.model.encoder import encode, encoder_length
from blsp.params import Miniature, MiniatureSpeech

START, END, NO_TIMESTAMPS = "<|startoftranscript|>", "<|endoftext|>", "<|notimestamps|>"
TASKS = {"translate": "<|translate|>", "transcribe": "<|transcribe|>"}
# In Whisper's order, by which its tokenizer finds them: all its languages, not only those spoken here.
SPECIAL_TOKENS = [
    START,
    *(f"<|{language}|>" for language in LANGUAGES),
    *TASKS.values(),
    *("<|startoflm|>", "<|startofprev|>", "<|nospeech|>"),
    NO_TIMESTAMPS,
]
MAX_TOKENS = 64
VOCABULARY = 1000
WHOLE_WINDOW_SHARE = 0.2
TRANSLATE_SHARE = 0.5  # of the German utterances; English ones are only transcribed
TASK_POSITION = 2  # in what the decoder writes: after the start token and the language
IGNORED = -100
TimedWords = tuple[tuple[str, float], ...]  # each with when it begins, in seconds


@dataclass(frozen=True, eq=False)
class Lesson:
    """One utterance to learn from: log-mel features (M, T), the number of the English word at each encoder frame (S,),
    and by task what the decoder is to write, from the start token to the end token (L,)."""

    features: torch.Tensor
    english_words: torch.Tensor
    labels: dict[str, list[int]]


def train_speech_model(settings: Miniature, folder: Path) -> None:
    """Nothing; `folder` afterwards holds the trained Whisper, its feature extractor and its tokenizer.

    The loss is the decoder's cross-entropy beside one on the encoder: the word that is being spoken, at every
    frame, as the synthesiser tells it. (CTC has to find that alignment first, and stays near its plateau for the
    first hundreds of steps.) Where German is spoken it is the English word that the German one stands for: this is what
    makes the encoder's space one for both languages, as Whisper's is; docs/zero-shot.md has what happens without.
    The head for it is dropped at the end.
    Most batches are encoded at the length of their audio; the rest fill the whole window, as Whisper's own
    `forward` and `generate` do, so that the checkpoint serves both.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    extractor = WhisperFeatureExtractor(feature_size=MEL_BINS, hop_length=HOP, chunk_length=settings.speech.window_s)
    tokenizer, words, lessons = _lessons(settings, extractor)
    model = _new_model(settings.speech, tokenizer)
    word_head = nn.Linear(settings.speech.width, len(words) + 1)
    parameters = [*model.parameters(), *word_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.speech.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.speech.lr, settings.speech.steps, pct_start=0.15)
    model.train()
    batches = _batches([lesson.features.shape[1] for lesson in lessons], settings.speech.batch_size, rng)
    with tqdm(total=settings.speech.steps, desc="speech model", unit="step", mininterval=2) as progress:
        for _ in range(settings.speech.steps):
            batch = [lessons[row] for row in next(batches)]
            whole_window = rng.random() < WHOLE_WINDOW_SHARE
            picked = [mask_spectrogram(warp_vocal_tract(lesson.features, rng), rng) for lesson in batch]
            padded, mask = pad(picked, extractor.nb_max_frames if whole_window else None)
            frames = (
                model.get_encoder()(padded).last_hidden_state
                if whole_window
                else encode(model.get_encoder(), padded, mask)
            )
            word_loss = _word_loss(word_head(frames), [lesson.english_words for lesson in batch])
            text_loss = _text_loss(model, frames, [_labels(lesson, rng) for lesson in batch])
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


def _lessons(
    settings: Miniature, extractor: WhisperFeatureExtractor
) -> tuple[WhisperTokenizer, list[str], list[Lesson]]:
    """The tokenizer, the English words by their numbers less one, and every utterance of the train split."""
    spoken = [
        (language, sentence, prosody)
        for language in ESPEAK_LANGUAGES
        for sentence, prosody in spoken_sentences(settings, "train", language)
    ]
    texts = [sentence.text if language == ENGLISH else sentence.text_german for language, sentence, _ in spoken]
    tokenizer = _train_tokenizer(texts)
    speech = [
        speak(text, ESPEAK_LANGUAGES[language], prosody)
        for text, (language, _, prosody) in zip(tqdm(texts, desc="speaking", unit="utt"), spoken, strict=True)
    ]
    features = all_features(extractor, [utterance.samples for utterance in speech])
    english = _in_english(spoken, speech)
    words = sorted({word for utterance in english for word, _ in utterance})
    lessons = []
    for (language, sentence, _), text, timed, clip in zip(spoken, texts, english, features, strict=True):
        labels = {"transcribe": _label(tokenizer, text, language, "transcribe")}
        if language == GERMAN:
            labels["translate"] = _label(tokenizer, sentence.text, language, "translate")
        lessons.append(Lesson(clip, _word_at_each_frame(timed, words, clip.shape[1]), labels))
    return tokenizer, words, lessons


def _in_english(spoken: list[tuple[str, Sentence, Prosody]], speech: list[Speech]) -> list[TimedWords]:
    """The spoken words and when each begins; of German speech, the English words that they stand for."""
    timed = [utterance.words for utterance in speech]
    german = [row for row, (language, _, _) in enumerate(spoken) if language == GERMAN]
    pairs = [([word for word, _ in timed[row]], spoken[row][1].text.split()) for row in german]
    for row, english in zip(german, stands_for(pairs), strict=True):
        timed[row] = tuple((word, start_s) for word, (_, start_s) in zip(english, timed[row], strict=True))
    return timed


def _label(tokenizer: WhisperTokenizer, text: str, language: str, task: str) -> list[int]:
    """What the decoder writes (L,): start, language, task, no timestamps, the text, end."""
    prompt = tokenizer.convert_tokens_to_ids([START, f"<|{language}|>", TASKS[task], NO_TIMESTAMPS])
    return [*prompt, *tokenizer(" " + text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]


def _labels(lesson: Lesson, rng: random.Random) -> list[int]:
    translate = "translate" in lesson.labels and rng.random() < TRANSLATE_SHARE
    return lesson.labels["translate" if translate else "transcribe"]


def _train_tokenizer(texts: list[str]) -> WhisperTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator((" " + text for text in texts), trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    whisper = WhisperTokenizer(vocab=tokenizer.get_vocab(), merges=merges, pad_token=END)
    whisper.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS})
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
    spoken = [f"<|{language}|>" for language in ESPEAK_LANGUAGES]
    # A new one: that of the model's own configuration would be saved without what is Whisper's.
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        max_length=MAX_TOKENS,
        is_multilingual=True,
        lang_to_id=dict(zip(spoken, tokenizer.convert_tokens_to_ids(spoken), strict=True)),
        task_to_id={task: tokenizer.convert_tokens_to_ids(token) for task, token in TASKS.items()},
        no_timestamps_token_id=no_timestamps,
        return_timestamps=False,
        task="transcribe",  # unless another one is asked for
    )
    return model


def _batches(lengths: list[int], batch_size: int, rng: random.Random) -> Iterator[list[int]]:
    """Endless batches of row numbers, each of similar lengths; every row once an epoch."""
    while True:
        order = sorted(range(len(lengths)), key=lambda row: lengths[row] * rng.uniform(0.9, 1.1))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        rng.shuffle(batches)
        yield from batches


def _word_at_each_frame(timed: TimedWords, words: list[str], mel_frames: int) -> torch.Tensor:
    """The number, from 1, of the word being spoken in the middle of each encoder frame (S,); 0 before the first."""
    middles = (torch.arange(encoder_length(mel_frames)) + 0.5) * 2 * HOP / SAMPLING_RATE_HZ
    starts = torch.tensor([start_s for _, start_s in timed])
    numbers = torch.tensor([0, *(words.index(word) + 1 for word, _ in timed)])
    return numbers[torch.searchsorted(starts, middles, right=True)]


def _word_loss(logits: torch.Tensor, spoken_words: list[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the word at each real frame; logits (B, S, words)."""
    targets = pad_sequence(spoken_words, batch_first=True, padding_value=IGNORED)
    targets = nn.functional.pad(targets, (0, logits.shape[1] - targets.shape[1]), value=IGNORED)
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def _text_loss(model: WhisperForConditionalGeneration, frames: torch.Tensor, labels: list[list[int]]) -> torch.Tensor:
    """The decoder's cross-entropy of its labels, given the encoder's frames (B, S, E).

    The language is learned from the speech, the task is not: it is asked for.
    """
    rows = [torch.tensor(label) for label in labels]
    ids = pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    targets = pad_sequence(rows, batch_first=True, padding_value=IGNORED)
    targets[:, TASK_POSITION] = IGNORED
    logits = model(encoder_outputs=(frames,), decoder_input_ids=ids[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED)
