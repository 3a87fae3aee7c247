"""Checkpoints in the formats that people have them in, written out as transformers reads them.

Three formats: a transformers folder, a GGUF file (an LLM), a folder of CTranslate2's (a Whisper).
"""

import fnmatch
import re
import shutil
from pathlib import Path
from typing import Any, Literal

from blsp.ctranslate2_format import write_whisper
from blsp.errors import BlspError
from blsp.files import read_json, sha256_of

# What a checkpoint needs beside its weights; code and weights in other formats (pickle among them) stay behind.
PATTERNS = ("*.json", "*.txt", "*.model", "*.jinja")
TEMPLATES = "additional_chat_templates"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

GGUF_MAGIC = b"GGUF"
# Tensors that carry a rotary scaling, which transformers' reader of GGUF leaves out: the model would be another one.
UNREAD_TENSORS = re.compile(r"rope_(freqs|factors_long|factors_short)\.weight")

Format = Literal["transformers", "gguf", "ctranslate2"]


def format_of(source: Path) -> Format:
    """What is at `source`, by its contents. Raises BlspError where it is none of the formats."""
    if source.is_file():
        with source.open("rb") as stream:
            if stream.read(4) == GGUF_MAGIC:
                return "gguf"
        raise BlspError(f"{source} is a file, but no GGUF file: it does not begin with the bytes GGUF")
    if not (source / "config.json").is_file():
        raise BlspError(f"{source} is not a transformers checkpoint: it has no config.json{_ggufs_in(source)}")
    if (source / "model.bin").is_file() and not list(source.glob("*.safetensors")):
        return "ctranslate2"
    return "transformers"


def _ggufs_in(folder: Path) -> str:
    found = sorted(file.name for file in folder.glob("*.gguf"))
    return f"; name one of its GGUF files itself: {', '.join(found)}" if found else ""


def files_of(source: Path) -> list[Path]:
    """The files that a checkpoint is made of; all others (other formats, other precisions, code) are left behind.

    Of safetensors those that transformers loads: model.safetensors, or else what model.safetensors.index.json names.
    Raises BlspError where one is missing.
    """
    match format_of(source):
        case "gguf":
            return [source]
        case "ctranslate2":
            if not (source / "tokenizer.json").is_file():
                raise BlspError(f"{source} has no tokenizer.json; copy it there from the checkpoint it was made from")
            return [source / name for name in ("config.json", "model.bin", "tokenizer.json")]
    found = [file for pattern in PATTERNS for file in source.glob(pattern) if not is_index(file.name)]
    found += (source / TEMPLATES).glob("*.jinja")
    if (source / WEIGHTS).is_file():
        return sorted({*found, source / WEIGHTS})
    if not (source / INDEX).is_file():
        raise BlspError(f"{source} has no *.safetensors file that transformers loads: neither {WEIGHTS} nor {INDEX}")
    shards = shards_of(source / INDEX)
    if missing := [name for name in shards if not (source / name).is_file()]:
        raise BlspError(f"{source} lacks {missing[0]}, which its {INDEX} names")
    return sorted({*found, source / INDEX, *(source / name for name in shards)})


def is_index(name: str) -> bool:
    """Whether a file lists the pieces of weights: model.safetensors.index.json, or a twin of it."""
    return fnmatch.fnmatch(name, "*.index*.json")


def shards_of(index: Path) -> list[str]:
    """The names of the files, all beside it, that an index of weights names. Raises BlspError where it is none."""
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BlspError(f"{index} is no index of safetensors files: {error!r}") from error
    if strange := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
        raise BlspError(f"{index} names {strange[0]!r}, which is no safetensors file beside it")
    return names


def sha256_of_checkpoint(source: Path) -> str:
    """The SHA-256 of the files that a checkpoint is made of; of a GGUF file what `sha256sum` says.

    Of a transformers folder it is what `sha256_of` says of a copy by `write_checkpoint`.
    """
    return sha256_of(source, files_of(source))


def write_checkpoint(source: Path, part: str, folder: Path) -> None:
    """Write the checkpoint at `source`, for this part ("speech" or "llm"), into `folder`, as transformers reads it.

    Raises BlspError where there is none, its format cannot be read, or is not one of this part's.
    """
    kind = format_of(source)
    if (part, kind) in (("speech", "gguf"), ("llm", "ctranslate2")):
        wanted = {"speech": "a transformers or CTranslate2 folder", "llm": "a transformers folder or a GGUF file"}
        raise BlspError(f"{source} is in the format {kind}; it must be {wanted[part]}")
    files = files_of(source)
    folder.mkdir()
    if kind == "gguf":
        _write_gguf(source, folder)
    elif kind == "ctranslate2":
        write_whisper(source, folder)
    else:
        for file in files:
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _write_gguf(file: Path, folder: Path) -> None:
    """Write the LLM of a GGUF file, dequantised, with its tokenizer and chat template.

    Quantised weights are written in bfloat16 (docs/own-models.md has what that changes), others as they are.
    """
    try:
        import gguf
    except ImportError as error:
        raise BlspError(f"reading {file} needs the package gguf: `pip install gguf`") from error
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    try:
        reader = gguf.GGUFReader(file)
        dtype = getattr(torch, _gguf_precision(reader, file))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        # Dequantised in float32, since a step of arithmetic lies between the stored numbers and the weights.
        read, found = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, output_loading_info=True
        )
    except (ValueError, KeyError, IndexError, NotImplementedError, OSError, RuntimeError) as error:
        raise BlspError(f"transformers cannot read {file}: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise BlspError(f"{file} lacks weights that transformers needs: {', '.join(missing[:3])}")
    stored = sum(int(tensor.n_elements) for tensor in reader.tensors)
    used = sum({tensor.data_ptr(): tensor.numel() for tensor in read.state_dict().values()}.values())
    if stored != used:  # transformers passes over tensors that it does not know, without a word
        raise BlspError(f"of the {stored:,} weights in {file}, transformers reads {used:,}: it is another LLM")
    # transformers saves no model that it knows as quantised: the weights go into a plain one.
    config = read.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    with torch.device("meta"):
        plain = AutoModelForCausalLM.from_config(type(read.config).from_dict(config), dtype=dtype)
    plain.load_state_dict({name: tensor.to(dtype) for name, tensor in read.state_dict().items()}, assign=True)
    plain.tie_weights()
    plain.generation_config = read.generation_config
    disable_progress_bar()
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _gguf_precision(reader: Any, file: Path) -> str:
    """The name of the torch precision that most of the weights want. Raises BlspError where some would be left out."""
    weights: dict[str, int] = {}
    for tensor in reader.tensors:
        if UNREAD_TENSORS.fullmatch(tensor.name):
            raise BlspError(
                f"{file} holds {tensor.name}, a scaling of positions that transformers does not read from "
                "GGUF: the LLM would be another one. Take its safetensors checkpoint"
            )
        weights[tensor.tensor_type.name] = weights.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    split = reader.fields.get("split.count")
    if split is not None and int(split.contents()) > 1:
        raise BlspError(f"{file} is one of several pieces; join them with llama.cpp's `llama-gguf-split`")
    if not weights:
        raise BlspError(f"{file} holds no weights")
    return {"F32": "float32", "F16": "float16"}.get(max(weights, key=weights.__getitem__), "bfloat16")
