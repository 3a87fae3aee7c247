"""A Whisper in CTranslate2's format, as faster-whisper uses it, written out as transformers reads it."""

import math
import mmap
import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from blsp.errors import BlspError
from blsp.files import read_json

if TYPE_CHECKING:
    import torch

VERSION, REVISION = 6, 3
DTYPES = ("float32", "int8", "int16", "int32", "float16", "bfloat16")
# What a Whisper's variables say of its making, and the values that transformers' Whisper stands for (3: exact GELU).
FIXED = {
    "decoder/activation": 3,
    "decoder/alibi": 0,
    "decoder/pre_norm": 1,
    "decoder/scale_embeddings": 0,
    "decoder/start_from_zero_embedding": 0,
}
# Of other models: of translation (config.json has a Whisper's alignment heads), and of those with ALiBi.
IGNORED = (
    "decoder/alibi_use_positive_positions",
    "decoder/alignment_heads",
    "decoder/alignment_layer",
    "decoder/scale_alibi",
)
TIMESTAMPS = 1501  # tokens from <|0.00|> to <|30.00|>, behind <|notimestamps|>
MULTILINGUAL_VOCABULARY = 51865  # tokens; an English-only Whisper has one fewer
FRAMES_PER_S = 50  # of the encoder


def write_whisper(source: Path, folder: Path) -> None:
    """Write the Whisper of a CTranslate2 folder in float32, with tokenizer, features and generation settings."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )
    from transformers.utils.logging import disable_progress_bar

    file = source / "model.bin"
    variables = Variables(file)
    weights, sizes = _whisper(variables, file)
    end = "<|endoftext|>"
    tokenizer = WhisperTokenizer.from_pretrained(source, bos_token=end, eos_token=end, unk_token=end, pad_token=end)
    settings = _generation(source, tokenizer, sizes)
    ids = {key: settings[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")}
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(WhisperConfig(**sizes, **ids))
    model.load_state_dict(weights, assign=True)
    model.tie_weights()
    model.generation_config = GenerationConfig(**settings)
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    WhisperFeatureExtractor(
        feature_size=sizes["num_mel_bins"], chunk_length=sizes["max_source_positions"] // FRAMES_PER_S
    ).save_pretrained(folder)


class Variables:
    """The variables of a CTranslate2 Whisper, each to be taken once (as float32), so that none is left over unseen."""

    def __init__(self, file: Path) -> None:
        """Read the file's table. Raises BlspError where it is of another version or model, or cut short."""
        self._file = file
        with file.open("rb") as stream:
            if not file.stat().st_size:
                raise BlspError(f"{file} is empty")
            self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        (version,) = self._numbers("<I")
        if version != VERSION:
            raise BlspError(
                f"{file} is no CTranslate2 model of binary version {VERSION}: it begins with {version}; "
                "convert it anew with CTranslate2 3 or 4"
            )
        name = self._text()
        (revision,) = self._numbers("<I")
        if (name, revision) != ("WhisperSpec", REVISION):
            raise BlspError(
                f"{file} holds {name} of revision {revision}; only WhisperSpec of revision {REVISION} can be read"
            )
        self._left: dict[str, np.ndarray] = {}
        for _ in range(*self._numbers("<I")):
            name = self._text()
            (rank,) = self._numbers("<B")
            shape = self._numbers(f"<{rank}I")
            dtype, size = self._numbers("<BI")
            self._left[name] = self._array(name, shape, dtype, size)
        for _ in range(*self._numbers("<I")):
            alias, name = self._text(), self._text()
            if name not in self._left:
                raise BlspError(f"{file}: {alias} stands for {name}, which is not there")
            self._left[alias] = self._left[name]
            if (scale := self._left.get(f"{name}_scale")) is not None:
                self._left[f"{alias}_scale"] = scale
        if self._at != len(self._bytes):
            raise BlspError(f"{file} goes on behind its last variable, at byte {self._at}")

    def take(self, name: str) -> np.ndarray:
        """The variable, as float32, its scales undone where it is quantised. Raises BlspError where it is missing."""
        if name not in self._left:
            raise BlspError(f"{self._file} lacks the variable {name}")
        value = self._left.pop(name)
        scale = self._left.pop(f"{name}_scale", None)
        if value.dtype in (np.int8, np.int16) and value.ndim:  # whole numbers: the weight, times a scale a row
            if scale is None or scale.size not in (1, value.shape[0]):
                raise BlspError(f"{self._file}: {name} is quantised, but its scales are missing or too few")
            return value.astype(np.float32) / scale.astype(np.float32).reshape(-1, *[1] * (value.ndim - 1))
        if value.dtype == np.uint16:  # bfloat16: the upper half of a float32
            return (value.astype(np.uint32) << 16).view(np.float32)
        return np.array(value, dtype=np.float32)

    def whole_number(self, name: str) -> int:
        """A variable that is one whole number."""
        return int(self.take(name))

    def layers(self, side: str) -> int:
        """How many layers the encoder or the decoder has."""
        numbers = {int(match[1]) for name in self._left if (match := re.match(rf"{side}/layer_([0-9]+)/", name))}
        return len(numbers)

    def discard(self, *names: str) -> None:
        """Leave these unread."""
        for name in names:
            self._left.pop(name, None)

    def refuse_rest(self) -> None:
        """Raise BlspError where a variable was not taken: the model has a part that nobody asked for."""
        if self._left:
            names = ", ".join(sorted(self._left)[:3])
            raise BlspError(f"{self._file} holds what no Whisper of transformers has: {names}")

    def _numbers(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self._next(struct.calcsize(form)))

    def _text(self) -> str:
        (size,) = self._numbers("<H")  # with the zero byte at its end
        return self._next(size)[:-1].decode("utf-8", "replace")

    def _next(self, size: int) -> bytes:
        self._at += size
        if self._at > len(self._bytes):
            raise BlspError(f"{self._file} is cut short, at byte {len(self._bytes)}")
        return self._bytes[self._at - size : self._at]

    def _array(self, name: str, shape: tuple[int, ...], dtype: int, size: int) -> np.ndarray:
        if dtype >= len(DTYPES):
            raise BlspError(f"{self._file}: {name} is of an unknown type ({dtype})")
        kind = np.dtype(DTYPES[dtype].replace("bfloat16", "uint16")).newbyteorder("<")
        if size != math.prod(shape) * kind.itemsize:
            raise BlspError(f"{self._file}: {name} has {size} bytes, which its shape {shape} does not give")
        start = self._at
        self._at += size
        if self._at > len(self._bytes):
            raise BlspError(f"{self._file} is cut short, amid {name}")
        return np.frombuffer(self._bytes, kind, math.prod(shape), start).reshape(shape)


def _whisper(variables: Variables, file: Path) -> tuple[dict[str, "torch.Tensor"], dict[str, int]]:
    """The state dict of transformers' Whisper, in float32, and the sizes for its configuration."""
    import torch

    weights: dict[str, torch.Tensor] = {}

    def put(name: str, value: np.ndarray) -> None:
        weights[name] = torch.from_numpy(np.ascontiguousarray(value))

    def norm(theirs: str, ours: str) -> None:
        put(f"{ours}.weight", variables.take(f"{theirs}/gamma"))
        put(f"{ours}.bias", variables.take(f"{theirs}/beta"))

    def linear(theirs: str, attention: str, *names: str) -> None:
        """One matrix of theirs, of which ours are the equal parts, top to bottom."""
        weight, bias = variables.take(f"{theirs}/weight"), variables.take(f"{theirs}/bias")
        if weight.shape[0] % len(names) or bias.shape != weight.shape[:1]:
            raise BlspError(f"{file}: {theirs} has shapes {weight.shape} and {bias.shape}")
        for name, rows, shift in zip(names, np.split(weight, len(names)), np.split(bias, len(names)), strict=True):
            put(f"{attention}{name}.weight", rows)
            if name != "k_proj":
                put(f"{attention}{name}.bias", shift)
            elif shift.any():
                raise BlspError(f"{file}: {theirs} adds a bias to keys, which no Whisper has")

    sizes: dict[str, int] = {}
    for name, value in FIXED.items():
        if (found := variables.whole_number(name)) != value:
            raise BlspError(f"{file}: {name} is {found}, but a Whisper's is {value}")
    variables.discard(*IGNORED)
    for side, reach in (("encoder", "source"), ("decoder", "target")):
        sizes[f"{side}_layers"] = variables.layers(side)
        sizes[f"{side}_attention_heads"] = variables.whole_number(f"{side}/num_heads")
        ours = f"model.{side}"
        put(f"{ours}.embed_positions.weight", variables.take(f"{side}/position_encodings/encodings"))
        sizes[f"max_{reach}_positions"] = len(weights[f"{ours}.embed_positions.weight"])
        norm(f"{side}/layer_norm", f"{ours}.layer_norm")
        for number in range(sizes[f"{side}_layers"]):
            a, b = f"{side}/layer_{number}", f"{ours}.layers.{number}"
            norm(f"{a}/self_attention/layer_norm", f"{b}.self_attn_layer_norm")
            linear(f"{a}/self_attention/linear_0", f"{b}.self_attn.", "q_proj", "k_proj", "v_proj")
            linear(f"{a}/self_attention/linear_1", f"{b}.self_attn.", "out_proj")
            if side == "decoder":
                norm(f"{a}/attention/layer_norm", f"{b}.encoder_attn_layer_norm")
                linear(f"{a}/attention/linear_0", f"{b}.encoder_attn.", "q_proj")
                linear(f"{a}/attention/linear_1", f"{b}.encoder_attn.", "k_proj", "v_proj")
                linear(f"{a}/attention/linear_2", f"{b}.encoder_attn.", "out_proj")
            norm(f"{a}/ffn/layer_norm", f"{b}.final_layer_norm")
            linear(f"{a}/ffn/linear_0", f"{b}.", "fc1")
            linear(f"{a}/ffn/linear_1", f"{b}.", "fc2")
        sizes[f"{side}_ffn_dim"] = len(weights[f"{ours}.layers.0.fc1.weight"]) if sizes[f"{side}_layers"] else 0
    linear("encoder/conv1", "model.encoder.", "conv1")
    linear("encoder/conv2", "model.encoder.", "conv2")
    put("model.decoder.embed_tokens.weight", variables.take("decoder/embeddings/weight"))
    put("proj_out.weight", variables.take("decoder/projection/weight"))
    if not torch.equal(weights["proj_out.weight"], weights["model.decoder.embed_tokens.weight"]):
        raise BlspError(f"{file}: the decoder's output is not its embeddings, as a Whisper's is")
    variables.refuse_rest()
    sizes["vocab_size"], sizes["d_model"] = weights["model.decoder.embed_tokens.weight"].shape
    sizes["num_mel_bins"] = weights["model.encoder.conv1.weight"].shape[1]
    _check_sizes(sizes, file)
    return weights, sizes


def _check_sizes(sizes: dict[str, int], file: Path) -> None:
    """Raise BlspError where the sizes are no Whisper's."""
    if sizes["num_mel_bins"] not in (80, 128):
        raise BlspError(f"{file} hears {sizes['num_mel_bins']} mel bins; a Whisper hears 80 or 128")
    for side in ("encoder", "decoder"):
        if not sizes[f"{side}_layers"] or sizes["d_model"] % (sizes[f"{side}_attention_heads"] or sizes["d_model"] + 1):
            raise BlspError(
                f"{file}: its {side} has {sizes[f'{side}_layers']} layers of width {sizes['d_model']} "
                f"with {sizes[f'{side}_attention_heads']} attention heads"
            )


def _generation(source: Path, tokenizer: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """What transformers' GenerationConfig wants of a Whisper, from the tokenizer and CTranslate2's config.json."""
    settings = read_json(source / "config.json")
    tokens: dict[str, int] = tokenizer.get_vocab()

    def token_id(text: str) -> int:
        if text not in tokens:
            raise BlspError(f"{source / 'tokenizer.json'} has no token {text}; it is not a Whisper's")
        return tokens[text]

    end, start = token_id("<|endoftext|>"), token_id("<|startoftranscript|>")
    translate, transcribe = token_id("<|translate|>"), token_id("<|transcribe|>")
    plain = token_id("<|notimestamps|>")
    if plain + 1 + TIMESTAMPS != sizes["vocab_size"]:
        raise BlspError(
            f"{source}: tokenizer.json and model.bin are not of one Whisper: <|notimestamps|> is token "
            f"{plain} of {sizes['vocab_size']}, but {TIMESTAMPS} must follow it"
        )
    multilingual = sizes["vocab_size"] >= MULTILINGUAL_VOCABULARY
    generation = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "prev_sot_token_id": token_id("<|startofprev|>"),
        "no_timestamps_token_id": plain,
        "is_multilingual": multilingual,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
        "max_length": sizes["max_target_positions"],
        "suppress_tokens": _ids(settings, "suppress_ids", source),
        "begin_suppress_tokens": _ids(settings, "suppress_ids_begin", source),
        "alignment_heads": settings.get("alignment_heads"),
    }
    if multilingual:
        languages = {text: number for text, number in tokens.items() if start < number < min(translate, transcribe)}
        if set(settings.get("lang_ids") or languages.values()) != set(languages.values()):
            raise BlspError(f"{source}: config.json and tokenizer.json do not have the same languages")
        generation["lang_to_id"] = dict(sorted(languages.items(), key=lambda language: language[1]))
        generation["task_to_id"] = {"transcribe": transcribe, "translate": translate}
    return generation


def _ids(settings: dict[str, Any], key: str, source: Path) -> list[int] | None:
    """A list of token ids of CTranslate2's config.json, or None."""
    ids = settings.get(key)
    if ids is not None and not (isinstance(ids, list) and all(isinstance(number, int) for number in ids)):
        raise BlspError(f"{source / 'config.json'}: {key} must be a list of token ids; found {ids!r:.80}")
    return ids or None
