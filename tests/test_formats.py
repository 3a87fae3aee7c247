"""Checkpoints in other formats, written out for transformers, and held against independent implementations."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from blsp import ctranslate2_format, formats
from blsp.errors import BlspError
from blsp.miniature.llm import train_tokenizer

TEMPLATE = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
LANGUAGES = ["en", "zh", "de", *(f"x{a}{b}" for a in "abcdefgh" for b in "abcdefghijkl")]  # 99, as a real one has


# --- CTranslate2 ----------------------------------------------------------------------------------------------------


def save_whisper(folder, multilingual):
    """A small random Whisper with a vocabulary of a real one's size, and its tokenizer, as transformers saves them."""
    torch.manual_seed(0)
    text = 50257 if multilingual else 50256  # tokens before <|endoftext|>
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*letters, *(f"word{n}" for n in range(text))][:text])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    marks = ["endoftext", "startoftranscript", *LANGUAGES, "translate", "transcribe"]
    tokenizer.add_special_tokens(
        [f"<|{mark}|>" for mark in (*marks, "startoflm", "startofprev", "nospeech", "notimestamps")]
    )
    tokenizer.save(str(folder / "raw.json"))
    end = "<|endoftext|>"
    spoken = WhisperTokenizer(
        tokenizer_file=str(folder / "raw.json"), bos_token=end, eos_token=end, unk_token=end, pad_token=end
    )
    size = len(spoken) + ctranslate2_format.TIMESTAMPS
    assert size == (51865 if multilingual else 51864)
    ids = {"bos_token_id": text, "eos_token_id": text, "pad_token_id": text, "decoder_start_token_id": text + 1}
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=size,
            d_model=128,
            encoder_layers=2,
            decoder_layers=3,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=256,
            decoder_ffn_dim=320,
            init_std=0.1,
            **ids,
        )
    ).eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias") and "k_proj" not in name:
            torch.nn.init.normal_(weight, std=0.1)  # fresh ones are all zero: a reader that mixes them up would pass
    tokens = spoken.get_vocab()
    languages = {f"<|{code}|>": tokens[f"<|{code}|>"] for code in LANGUAGES}
    more = {"task_to_id": {n: tokens[f"<|{n}|>"] for n in ("transcribe", "translate")}, "lang_to_id": languages}
    model.generation_config = GenerationConfig(
        **ids,
        suppress_tokens=[1, 2, 7, text + 1],
        begin_suppress_tokens=[5, text],
        alignment_heads=[[1, 0], [2, 1]],
        is_multilingual=multilingual,
        no_timestamps_token_id=tokens["<|notimestamps|>"],
        **(more if multilingual else {}),
    )
    model.save_pretrained(folder / "whisper")
    spoken.save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder / "whisper")
    return model


def converted(folder, quantization=None):
    """The checkpoint in folder/whisper in CTranslate2's format, by CTranslate2's own converter."""
    converters = pytest.importorskip("ctranslate2.converters")
    converter = converters.TransformersConverter(str(folder / "whisper"), copy_files=["tokenizer.json"])
    converter.convert(str(folder / "ct2"), quantization=quantization, force=True)
    return folder / "ct2"


@pytest.fixture(scope="module", params=["english", "multilingual"])
def whisper(request, tmp_path_factory):
    """A Whisper, where its CTranslate2 folder is, and the folder that our reader wrote from that."""
    folder = tmp_path_factory.mktemp(request.param)
    model = save_whisper(folder, request.param == "multilingual")
    ct2 = converted(folder)
    formats.write_checkpoint(ct2, "speech", folder / "ours")
    return model, ct2, folder / "ours"


def features(clips=3):
    rng = np.random.default_rng(0)
    extractor = WhisperFeatureExtractor(feature_size=80)
    audio = [rng.normal(0, 0.1, 16000 * (2 + clip)).astype(np.float32) for clip in range(clips)]
    return extractor(audio, sampling_rate=16000, return_tensors="pt").input_features


def test_a_whisper_of_ctranslate2_has_the_weights_and_settings_it_was_made_from(whisper):
    model, ct2, ours = whisper
    read = WhisperForConditionalGeneration.from_pretrained(ours)
    expected = model.state_dict()
    assert read.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read.state_dict().items())
    for key in (
        "d_model",
        "encoder_layers",
        "decoder_layers",
        "decoder_ffn_dim",
        "max_source_positions",
        "eos_token_id",
    ):
        assert getattr(read.config, key) == getattr(model.config, key), key
    kept = ["suppress_tokens", "begin_suppress_tokens", "alignment_heads", "is_multilingual", "no_timestamps_token_id"]
    kept += ["lang_to_id", "task_to_id"] if model.generation_config.is_multilingual else []
    for key in kept:
        assert getattr(read.generation_config, key) == getattr(model.generation_config, key), key
    assert getattr(read.generation_config, "forced_decoder_ids", None) is None
    assert (
        WhisperTokenizer.from_pretrained(ours).get_vocab()
        == WhisperTokenizer.from_pretrained(ct2.parent / "whisper").get_vocab()
    )
    assert WhisperFeatureExtractor.from_pretrained(ours).chunk_length == 30


@torch.no_grad()
def test_it_hears_and_writes_what_ctranslate2_does(whisper):
    ctranslate2 = pytest.importorskip("ctranslate2")
    model, ct2, ours = whisper
    read = WhisperForConditionalGeneration.from_pretrained(ours).eval()
    theirs = ctranslate2.models.Whisper(str(ct2), device="cpu", compute_type="float32", intra_threads=1)
    mel = features()
    frames = np.array(theirs.encode(ctranslate2.StorageView.from_array(mel.numpy()), to_cpu=True))
    np.testing.assert_allclose(read.get_encoder()(mel).last_hidden_state.numpy(), frames, atol=2e-3)

    settings, said = model.generation_config, {"max_new_tokens": 12, "do_sample": False, "num_beams": 1}
    prompt = [settings.decoder_start_token_id]
    if settings.is_multilingual:
        said |= {"language": "de", "task": "transcribe"}
        prompt += [settings.lang_to_id["<|de|>"], settings.task_to_id["transcribe"]]
    prompt.append(settings.no_timestamps_token_id)
    answers = theirs.generate(
        ctranslate2.StorageView.from_array(mel.numpy()), [prompt] * len(mel), beam_size=1, max_length=len(prompt) + 12
    )
    for ids, answer in zip(read.generate(mel, **said).tolist(), answers, strict=True):
        ids = [number for number in ids if number not in (*prompt, settings.eos_token_id)]
        assert len(ids) > 3 and ids[: len(answer.sequences_ids[0])] == answer.sequences_ids[0][: len(ids)]


@pytest.mark.parametrize(("quantization", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 1 / 254)])
def test_smaller_precisions_are_undone(tmp_path, quantization, tolerance):
    model = save_whisper(tmp_path, multilingual=False)
    formats.write_checkpoint(converted(tmp_path, quantization), "speech", tmp_path / "ours")
    read, expected = load_file(tmp_path / "ours/model.safetensors"), model.state_dict()
    for name, tensor in read.items():
        assert tensor.dtype is torch.float32
        rows = tensor.reshape(len(tensor), -1)
        largest = expected[name].reshape(rows.shape).abs().amax(1, keepdim=True)  # a row's scale in int8
        assert ((rows - expected[name].reshape(rows.shape)).abs() <= tolerance * largest + 1e-6).all(), name


def model_bin(version=6, spec="WhisperSpec", revision=3, variables=(), behind=b""):
    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text(spec) + struct.pack("<II", revision, len(variables))
    for name, array in variables:
        out += text(name) + struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)
        out += struct.pack("<BI", ctranslate2_format.DTYPES.index(array.dtype.name), array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 0) + behind


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (model_bin(version=5), "binary version 6: it begins with 5"),
        (model_bin(spec="TransformerSpec", revision=7), "holds TransformerSpec of revision 7"),
        (model_bin(variables=[("encoder/conv1/bias", np.zeros(4, np.float32))])[:-9], "is cut short"),
        (model_bin(behind=b"more"), "goes on behind its last variable"),
        (model_bin(), "lacks the variable decoder/activation"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_whisper_of_this_version_is_refused(tmp_path, content, said):
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "model.bin").write_bytes(content)
    with pytest.raises(BlspError, match=said):
        formats.write_checkpoint(tmp_path, "speech", tmp_path / "out")


def test_a_variable_that_nobody_takes_is_refused(whisper, tmp_path):
    _, ct2, _ = whisper
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((ct2 / name).read_bytes())
    content = (ct2 / "model.bin").read_bytes()
    at = 4 + 2 + len("WhisperSpec") + 1 + 4  # where the count of variables stands
    (count,) = struct.unpack_from("<I", content, at)
    name = b"decoder/final_logit_softcapping\0"
    extra = struct.pack("<H", len(name)) + name + struct.pack("<BBI", 0, 1, 1) + b"\1"
    (tmp_path / "model.bin").write_bytes(content[:at] + struct.pack("<I", count + 1) + extra + content[at + 4 :])
    with pytest.raises(BlspError, match="holds what no Whisper of transformers has: decoder/final_logit_softcapping"):
        formats.write_checkpoint(tmp_path, "speech", tmp_path / "out")


# --- GGUF -----------------------------------------------------------------------------------------------------------


def save_gguf(file, precision="F32", more=()):
    """A small random Llama as a GGUF file, and the same as a model of transformers."""
    gguf = pytest.importorskip("gguf")
    torch.manual_seed(0)
    tokenizer = train_tokenizer(seed=1, conversation_count=200)
    heads, width = 2, 64
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=1,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(5000.0)
    writer.add_rope_dimension_count(width // heads)
    writer.add_vocab_size(len(tokenizer))
    words = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = [tokenizer.convert_ids_to_tokens(number) for number in range(len(tokenizer))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in words["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(TEMPLATE)

    def interleaved(weight, heads):
        """llama.cpp turns neighbours where transformers turns halves: rows (head, half, at) become (head, at, half)."""
        rows, columns = weight.shape
        return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)

    names = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
    blocks = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
    blocks |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
    blocks |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.state_dict().items():
        key = name.removeprefix("model.").removesuffix(".weight")
        weight = tensor.numpy()
        if key.startswith("layers."):
            _, number, inner = key.split(".", 2)
            if inner in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = interleaved(weight, heads if inner.endswith("q_proj") else 1)
            key = f"blk.{number}.{blocks[inner]}"
        else:
            key = names[key]
        kind = gguf.GGMLQuantizationType[precision if weight.ndim > 1 else "F32"]
        writer.add_tensor(f"{key}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    for name in more:
        writer.add_tensor(name, np.ones(16, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, tokenizer


def test_an_unquantised_gguf_becomes_the_very_llm_with_its_tokenizer_and_template(tmp_path):
    model, tokenizer = save_gguf(tmp_path / "tiny.gguf")
    formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in read.state_dict().items())
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = " please book a flight to paris"  # the miniature's own tokenizer would put the blank there
    assert words(text)["input_ids"] == tokenizer(text)["input_ids"] and words.decode(words(text)["input_ids"]) == text
    assert words.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "<|user|>hello"
    assert (words.eos_token, words.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    assert read.generation_config.eos_token_id == tokenizer.eos_token_id
    with torch.no_grad():
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        assert torch.equal(read(ids).logits, model(ids).logits)


def test_a_quantised_gguf_is_dequantised_into_bfloat16(tmp_path):
    gguf = pytest.importorskip("gguf")
    model, _ = save_gguf(tmp_path / "tiny.gguf", "Q8_0")
    formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", tmp_path / "out")
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    kind = gguf.GGMLQuantizationType.Q8_0
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        blocks = gguf.quants.quantize(model.state_dict()[name].numpy(), kind)
        assert torch.equal(weights[name], torch.from_numpy(gguf.quants.dequantize(blocks, kind)).bfloat16())
    again = tmp_path / "again"
    formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", again)
    assert formats.sha256_of_checkpoint(again) == formats.sha256_of_checkpoint(tmp_path / "out")


def test_a_gguf_whose_positions_transformers_would_read_wrongly_is_refused(tmp_path):
    save_gguf(tmp_path / "tiny.gguf", more=["rope_freqs.weight"])
    with pytest.raises(BlspError, match="holds rope_freqs.weight, .* the LLM would be another one"):
        formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", tmp_path / "out")


def test_a_gguf_with_weights_that_transformers_passes_over_is_refused(tmp_path):
    save_gguf(tmp_path / "tiny.gguf", more=["blk.0.attn_sinks.weight"])
    with pytest.raises(BlspError, match="of the .* weights in .*tiny.gguf, transformers reads"):
        formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", tmp_path / "out")


def test_a_damaged_gguf_is_refused(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(8))
    with pytest.raises(BlspError, match="cannot read .*tiny.gguf"):
        formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", tmp_path / "out")


# --- which format, which files --------------------------------------------------------------------------------------


def test_a_format_of_the_other_part_is_refused(tmp_path):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(BlspError, match="tiny.gguf is in the format gguf; it must be a transformers or CTranslate2"):
        formats.write_checkpoint(tmp_path / "tiny.gguf", "speech", tmp_path / "out")
    (tmp_path / "tiny.gguf").write_bytes(b"PK\3\4")
    with pytest.raises(BlspError, match="is a file, but no GGUF file"):
        formats.write_checkpoint(tmp_path / "tiny.gguf", "llm", tmp_path / "out")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(BlspError, match="no config.json; name one of its GGUF files itself: tiny.gguf"):
        formats.format_of(tmp_path)


def filled(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f'{{"name": "{name}"}}')
    return folder


TWINS = ("consolidated.safetensors", "model.fp32.safetensors", "model.fp32-00001-of-00001.safetensors")


def test_twins_of_the_weights_are_left_behind(tmp_path):
    kept = ["additional_chat_templates/tools.jinja", "chat_template.jinja", "config.json", "model.safetensors"]
    left = (*TWINS, "model.safetensors.index.fp32.json", "pytorch_model.bin", "code.py", "onnx/config.json")
    folder = filled(tmp_path / "in", *kept, *left)
    formats.write_checkpoint(folder, "llm", tmp_path / "out")
    found = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file())
    assert found == kept


def test_of_shards_those_are_taken_that_the_index_names(tmp_path):
    shards = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    folder = filled(tmp_path / "in", "config.json", *shards, *TWINS)
    index = {"weight_map": {"a": shards[0], "b": shards[1], "c": shards[1]}}
    (folder / formats.INDEX).write_text(json.dumps(index))
    assert [file.name for file in formats.files_of(folder)] == ["config.json", *shards, formats.INDEX]
    (folder / shards[1]).unlink()
    with pytest.raises(BlspError, match=f"lacks {shards[1]}, which its model.safetensors.index.json names"):
        formats.files_of(folder)
    (folder / formats.INDEX).write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(BlspError, match="names '../elsewhere.safetensors', which is no safetensors file beside it"):
        formats.files_of(folder)
