"""Step 1's engine: the prompts' own order, the same answers in any batch, and how each ended."""

from blsp.continuation.engine import write_answers
from blsp.model.chat import build_prompt

TEXTS = ["play some jazz music in the attic", "stop", "please buy soap at the market which shop", "call anna"]


def tokenised(tokenizer):
    prompts = [build_prompt(tokenizer, "Repeat the following text.", " " + text) for text in TEXTS]
    return [tokenizer(prompt, add_special_tokens=False).input_ids for prompt in prompts]


def test_answers_do_not_depend_on_the_batch_and_keep_the_order(tiny_model):
    model, processor = tiny_model
    tokenizer, llm = processor.tokenizer, model.language_model
    prompts = tokenised(tokenizer)
    seen = []
    together = write_answers(llm, tokenizer, prompts, 3, 6, seen.append)
    alone = [write_answers(llm, tokenizer, [prompt], 1, 6)[0] for prompt in prompts]
    assert together == alone and seen == [3, 1]


def test_an_answer_cut_at_the_limit_has_no_end_token(tiny_model, monkeypatch):
    model, processor = tiny_model
    tokenizer, llm = processor.tokenizer, model.language_model
    prompts = tokenised(tokenizer)
    cut = write_answers(llm, tokenizer, prompts, 4, 3)
    assert {answer.finish_reason for answer in cut} <= {"stop", "length"}
    for answer in cut:
        if answer.finish_reason == "length":
            assert len(answer.token_ids) == 3 and tokenizer.eos_token_id not in answer.token_ids
    # The second token it writes is made its end token: it must stop there, and say so.
    ids = cut[0].token_ids
    monkeypatch.setattr(llm.generation_config, "eos_token_id", ids[1])
    stopped = write_answers(llm, tokenizer, prompts[:1], 1, 3)[0]
    assert stopped.finish_reason == "stop" and stopped.token_ids == ids[: ids.index(ids[1]) + 1]
