"""The engine `openai` against `transformers serve`, a server of its own: the same answers as in process, whatever
befalls the requests, and one message where it cannot go on."""

import copy
import socket

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from blsp import servers
from blsp.backbones import load_llm
from blsp.continuation import writer
from blsp.continuation.engine import write_answers
from blsp.continuation.openai_server import SETTINGS, _as_sent, ask_server, check_server
from blsp.data.shards import iter_shards, read_field
from blsp.errors import BlspError
from blsp.files import write_json
from blsp.model.chat import build_prompt, end_of_turn
from blsp.params import Params
from blsp.servers import Server
from tests.continuation.asking import asking
from tests.contracts import packed
from tests.faults import Proxy, body, dropped, slow, status, truncated, truncated_unseen
from tests.servers import free_port, transformers_serve

TEXTS = ["play some jazz music in the attic", "stop", "please buy soap at the market which shop", "call anna"]
MAX_NEW_TOKENS = 16


@pytest.fixture(scope="module")
def served(pins, tmp_path_factory):
    """The folder of an LLM that writes whole words alone, and stops now and then: its texts have one spelling."""
    folder = tmp_path_factory.mktemp("served") / "llm"
    tokenizer = AutoTokenizer.from_pretrained(pins["llm"]["name"])
    model = AutoModelForCausalLM.from_pretrained(pins["llm"]["name"]).eval()
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    whole = torch.tensor([piece.startswith("Ġ") and piece[1:].isalpha() for piece in pieces])
    rows = model.get_output_embeddings().weight.data
    rows[~whole] = 0
    for seed in range(100):  # until some answers stop and others are cut, whatever the tokenizer's words
        rows[tokenizer.eos_token_id].normal_(std=1.0, generator=torch.Generator().manual_seed(seed))
        answers = dict(write_answers(model, tokenizer, prompts(tokenizer), 4, MAX_NEW_TOKENS)).values()
        if len({answer.finish_reason for answer in answers}) == 2:
            break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llm(served, pins, tmp_path_factory):
    """The LLM in process and its tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        write_json("models/backbones/backbones.json", {**pins, "llm": {**pins["llm"], "name": served}})
        return load_llm()


@pytest.fixture(scope="module")
def address(served):
    """The address of a `transformers serve` of the tiny LLM."""
    with transformers_serve(served) as url:
        yield url


@pytest.fixture
def proxy(address, monkeypatch):
    monkeypatch.setattr(servers, "FIRST_PAUSE_S", 0.01)
    monkeypatch.delenv(servers.KEY_VARIABLE, raising=False)
    proxy = Proxy(address.removeprefix("http://"))
    yield proxy
    proxy.close()


@pytest.fixture
def server(proxy, served):
    return server_of(served, f"{proxy.url}/v1")


def server_of(model, url, timeout_s=60.0):
    return Server(url, model, requests_at_once=3, timeout_s=timeout_s, settings=SETTINGS)


def prompts(tokenizer):
    return [build_prompt(tokenizer, "Repeat the following text.", " " + text) for text in TEXTS]


@pytest.fixture(scope="module")
def expected(llm):
    """What the engine in process writes."""
    answers = dict(write_answers(*llm, prompts(llm[1]), 4, MAX_NEW_TOKENS))
    assert {answer.finish_reason for answer in answers.values()} == {"stop", "length"}
    return answers


def test_answers_are_those_of_the_engine_in_process(llm, server, proxy, expected):
    tokenizer = llm[1]
    check_server(server, tokenizer)
    assert dict(ask_server(server, tokenizer, prompts(tokenizer), MAX_NEW_TOKENS)) == expected
    assert 1 < proxy.most_at_once <= 3


def test_the_stage_writes_the_same_rows_with_either_engine(llm, server, proxy, served, pins, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    packed.pack(packed.good_rows())
    write_json("models/backbones/backbones.json", {**pins, "llm": {**pins["llm"], "name": served}})
    in_process = asking(max_new_tokens=MAX_NEW_TOKENS)
    raw = in_process.model_dump(by_alias=True)
    raw["continuations"] |= {"engine": "openai", "server_model": server.model}
    raw["execution"] |= {"server_url": server.url}
    written = []
    for params in (in_process, Params.model_validate(raw)):
        writer.run(params)
        written.append([read_field(shard, "continuation") for shard in iter_shards("train")])
    assert written[0] == written[1] and all(written[0])
    assert len(proxy.seen) > len(TEXTS)


@pytest.mark.parametrize(
    "faults",
    [
        [status(429), status(503), status(500), status(502), status(504)],
        [dropped, truncated, truncated_unseen, dropped],
    ],
    ids=["statuses", "connections"],
)
def test_what_is_transient_costs_no_row(llm, server, proxy, expected, faults):
    proxy.faults += faults
    assert dict(ask_server(server, llm[1], prompts(llm[1]), MAX_NEW_TOKENS)) == expected
    assert len(proxy.seen) == len(TEXTS) + len(faults)


def test_a_server_that_asks_for_a_pause_gets_it(llm, server, proxy, expected):
    proxy.faults.append(status(429, Retry_After="2"))
    answers = dict(ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS))
    assert answers == {0: expected[0]}
    first, second = proxy.seen
    assert second - first >= 2


def test_an_answer_that_takes_too_long_is_asked_for_again(llm, served, proxy, expected):
    proxy.faults.append(slow(30))
    server = server_of(served, f"{proxy.url}/v1", timeout_s=10.0)
    assert dict(ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS)) == {0: expected[0]}
    assert len(proxy.seen) == 2


@pytest.mark.parametrize("code", [400, 401, 403, 404, 422])
def test_a_refusal_is_not_asked_again(llm, server, proxy, code):
    proxy.faults += [status(code)]
    with pytest.raises(BlspError, match=f"completions: status {code}: as injected"):
        list(ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS))
    assert len(proxy.seen) == 1


def test_a_server_that_stays_ill_is_given_up(llm, server, proxy):
    proxy.faults += [status(503)] * servers.ATTEMPTS
    with pytest.raises(BlspError, match=f"status 503: as injected, {servers.ATTEMPTS} times; run again when"):
        list(ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS))
    assert len(proxy.seen) == servers.ATTEMPTS
    proxy.faults += [status(503, Retry_After="86400")]
    with pytest.raises(BlspError, match="it wants to be left alone for 86400 s"):
        list(ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS))


def test_the_key_comes_from_the_environment_alone(llm, server, proxy, monkeypatch):
    proxy.key = "sk-right"
    with pytest.raises(BlspError, match="status 401: Incorrect API key provided; .* OPENAI_API_KEY is not set"):
        check_server(server, llm[1])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    with pytest.raises(BlspError, match="OPENAI_API_KEY is not the one it wants") as refusal:
        check_server(server, llm[1])
    assert "sk-wrong" not in str(refusal.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
    check_server(server, llm[1])


def test_a_server_without_this_model_is_refused(llm, proxy):
    with pytest.raises(BlspError, match=r"status 400: Server is pinned .* \(continuations.server_model,"):
        check_server(server_of("another/model", f"{proxy.url}/v1"), llm[1])


def test_where_nobody_answers_it_is_said_at_once(llm):
    url = f"http://127.0.0.1:{free_port()}/v1"
    with pytest.raises(BlspError, match=f"no server at {url}: .*; start it, or set execution.server_url"):
        check_server(server_of("any/model", url), llm[1])


def test_an_address_where_nothing_is_said_is_given_up_soon(llm, monkeypatch):
    """A full backlog: connections are neither taken nor refused."""
    monkeypatch.setattr(servers, "CONNECT_TIMEOUT_S", 0.5)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        address = deaf.getsockname()
        with socket.create_connection(address), pytest.raises(BlspError, match="no server at .*: no connection within"):
            check_server(server_of("any/model", f"http://127.0.0.1:{address[1]}/v1"), llm[1])


def test_a_server_that_reads_prompts_otherwise_is_refused(llm, server, monkeypatch):
    """As one does that has another tokenizer, or puts a second start token before what has one."""
    monkeypatch.setattr("blsp.continuation.openai_server._as_sent", lambda _tokenizer, prompt, _ids: prompt + " stop")
    with pytest.raises(BlspError, match=r"reads \d+ tokens where the pinned LLM's tokenizer reads .* under backbones"):
        check_server(server, llm[1])


def test_a_start_token_is_left_to_the_servers_tokenizer(llm):
    """Llama 3's template begins with the token that its tokenizer puts before every text: twice would be wrong."""
    tokenizer = copy.deepcopy(llm[1])
    start = tokenizer.bos_token = "<|user|>"
    number = tokenizer.convert_tokens_to_ids(start)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{start} $A", special_tokens=[(start, number)]
    )
    ids = tokenizer(start + " stop", add_special_tokens=False).input_ids
    assert ids[0] == number and _as_sent(tokenizer, start + " stop", ids) == " stop"
    with pytest.raises(BlspError, match=r"puts '<\|user\|>' before every text .* set continuations.engine to transf"):
        _as_sent(tokenizer, " stop", ids[1:])
    assert _as_sent(llm[1], " stop", ids[1:]) == " stop"


@pytest.mark.parametrize(
    "choice, tail, reason",
    [
        ({"text": " stop", "finish_reason": "stop"}, ["<eos>"], "stop"),
        ({"text": " stop", "finish_reason": "stop", "stop_reason": 2}, [2], "stop"),
        ({"text": " stop", "finish_reason": "length", "stop_reason": None}, [], "length"),
        ({"text": " stop\ufffd", "finish_reason": "length"}, [], "length"),
    ],
)
def test_token_ids_are_the_tokenizers_with_the_end_token_that_was_meant(llm, server, proxy, choice, tail, reason):
    proxy.faults.append(body({"choices": [choice]}))
    ((_, answer),) = ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS)
    stop = llm[1](" stop", add_special_tokens=False).input_ids
    assert answer.token_ids == [*stop, *(llm[1].eos_token_id if end == "<eos>" else end for end in tail)]
    assert (answer.text, answer.finish_reason) == ("stop", reason)


def test_an_answer_that_ended_otherwise_is_refused(llm, server, proxy):
    proxy.faults.append(body({"choices": [{"text": " stop", "finish_reason": "content_filter"}]}))
    with pytest.raises(BlspError, match="ended an answer for 'content_filter'; it must be 'stop' or 'length': ' stop'"):
        list(ask_server(server, llm[1], prompts(llm[1])[:1], MAX_NEW_TOKENS))


def test_the_rows_asked_for_are_let_go_where_the_caller_stops(llm, server, proxy):
    answers = ask_server(server, llm[1], prompts(llm[1]) * 5, MAX_NEW_TOKENS)
    next(answers)
    answers.close()
    assert len(proxy.seen) < 5 * len(TEXTS)


def test_the_end_of_a_turn_is_the_chat_templates(llm):
    assert end_of_turn(llm[1]) == llm[1].eos_token_id
    tokenizer = copy.deepcopy(llm[1])
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}<|assistant|>{% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids("<|assistant|>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
