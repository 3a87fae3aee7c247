"""The miniature's chat LLM: a small Llama trained from scratch to follow written instructions."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from blsp.miniature.conversations import conversations
from blsp.model.chat import build_prompt
from blsp.params import MiniatureLlm

END = "<|end|>"
SPECIAL_TOKENS = ["<|pad|>", END, "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = 2000
MAX_POSITIONS = 256
IGNORED = -100
EMBEDDING_STD = 0.02
FINAL_SCALE = 8.0
# Of the embeddings' own size: what keeps a large LLM from being thrown by a slightly strange vector, and this one
# by itself would not learn from a thousand words (after Jain et al. 2023, NEFTune).
EMBEDDING_NOISE = 0.5
BATCHES_A_POOL = 16


def train_llm(settings: MiniatureLlm, seed: int, folder: Path) -> None:
    """Nothing; `folder` afterwards holds the trained LlamaForCausalLM with its tokenizer and chat template.

    Next-token cross-entropy on the answers alone, on the grammar's train split alone.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=settings.width,
            intermediate_size=3 * settings.width,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.heads,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=settings.width**-0.5,
        )
    )
    _initialise(model, settings.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, settings.steps, pct_start=0.1)
    batches = _batches(settings.batch_size, seed)
    model.train()
    with tqdm(total=settings.steps, desc="LLM", unit="step", mininterval=2) as progress:
        for _ in range(settings.steps):
            loss = _answer_loss(model, _collate(tokenizer, next(batches)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            progress.update()
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def _initialise(model: LlamaForCausalLM, width: int) -> None:
    """Nothing; each attention layer then starts by passing on the words it looks at, and that is what is said.

    Answers here mostly repeat words of the prompt. W_O W_V starts near the identity (after Trockman and Kolter
    2023, Mimetic Initialization of Self-Attention Layers), embeddings start small beside what attention brings,
    and the last norm scales that up to confident choices. From independent weights the LLM learns to copy
    three times later.
    """
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.copy_(layer.self_attn.v_proj.weight.T)
    model.model.embed_tokens.weight.mul_(EMBEDDING_STD * width**0.5)
    model.model.norm.weight.fill_(FINAL_SCALE)


def _batches(batch_size: int, seed: int) -> Iterator[list[tuple[str, str, str]]]:
    """Endless batches of conversations of similar lengths."""
    stream, rng = conversations("train", seed), random.Random(seed)
    while True:
        pool = sorted(itertools.islice(stream, BATCHES_A_POOL * batch_size), key=lambda triple: sum(map(len, triple)))
        batches = [pool[start : start + batch_size] for start in range(0, len(pool), batch_size)]
        rng.shuffle(batches)
        yield from batches


def _answer_loss(model: LlamaForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    embeddings = embeddings + EMBEDDING_NOISE * embeddings.detach().std() * torch.randn_like(embeddings)
    hidden = model.model(inputs_embeds=embeddings, attention_mask=batch["attention_mask"]).last_hidden_state
    targets = batch["labels"][:, 1:]
    wanted = targets != IGNORED
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[:, :-1][wanted]), targets[wanted])


def train_tokenizer(seed: int, conversation_count: int = 20_000) -> PreTrainedTokenizerFast:
    """The LLM's byte-level BPE tokenizer with its chat template, trained on written conversations.

    Text after a special token is given the space that a word has within a sentence, so that a word is one and
    the same token wherever it stands.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"{instruction} {text}\n{answer}" for instruction, text, answer in conversations("train", seed))
    tokenizer.train_from_iterator(itertools.islice(texts, conversation_count), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL_TOKENS[0],
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
    )


def _collate(tokenizer: PreTrainedTokenizerFast, triples: list[tuple[str, str, str]]) -> dict[str, torch.Tensor]:
    """Right-padded ids (B, L), mask (B, L) and labels (B, L), IGNORED everywhere but on the answer and its end."""
    rows = []
    for instruction, text, answer in triples:
        prompt = tokenizer(build_prompt(tokenizer, instruction, text), add_special_tokens=False).input_ids
        rows.append((prompt, tokenizer(answer + END, add_special_tokens=False).input_ids))
    longest = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for row, (prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : length] = torch.tensor(answer)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
