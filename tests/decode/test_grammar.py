"""Answers that follow a grammar, by a real decode worker with a random model: only the grammar makes sense of them."""

import asyncio
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import grpc
import jsonschema
import psutil
import pytest
from tokenizers import Tokenizer

from common.errors import OverloadedError
from common.model.decoder import DecoderModel
from common.pb import decode_pb2
from services.decode.grammar import GrammarCompiler
from services.decode.grammar_process import GrammarServer
from tests.conftest import StartWorkers, Workers
from tests.families import tiny_model
from tests.tiny_tokenizer import EOS, TINY_VOCAB_SIZE, write_tiny_tokenizer

PROMPT = [3 + (i * i * 31 + i * 7) % 250 for i in range(60)]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def schema_grammar(schema: object) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


def regex_grammar(regex: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": f"start: /{regex}/"}]})


@pytest.fixture(scope="module")
def model() -> DecoderModel:
    return DecoderModel(tiny_model("llama", vocab_size=TINY_VOCAB_SIZE), "tiny-bytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_tiny_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[GrammarServer]:
    server = GrammarServer(folder, TINY_VOCAB_SIZE)
    yield server
    server.close()


@pytest.fixture
async def workers(model: DecoderModel, server: GrammarServer, start_workers: StartWorkers) -> Workers:
    return await start_workers(model, grammars=GrammarCompiler(server))


def request(workers: Workers, grammar: str, max_tokens: int = 150, **sampling: object) -> decode_pb2.GenerateRequest:
    options: dict[str, object] = {"temperature": 1.0, "stop_token_ids": [EOS], "grammar": grammar}
    return workers.request(PROMPT, max_tokens, **(options | sampling))


def tokens_of(events: list[decode_pb2.GenerateEvent], answer: int = 0) -> list[int]:
    return [token for event in events if event.answer == answer for token in event.token_ids]


async def test_an_answer_is_whole_although_every_token_asks_for_another_ending(
    workers: Workers, tokenizer: Tokenizer
) -> None:
    wish = request(workers, regex_grammar("([ab]{3}|[cd]{5}){20}[xyz]{10}"), 140, temperature=1.0, seed=3)
    events = await workers.generate(wish)
    assert re.fullmatch("([ab]{3}|[cd]{5}){20}[xyz]{10}", tokenizer.decode(tokens_of(events)))


@pytest.mark.parametrize("max_tokens", [60, 150])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {},
        {"top_k": 3, "repetition_penalty": 1.3},
        {"top_p": 0.5, "min_p": 0.1, "frequency_penalty": 2.0, "logit_bias": {5: 100.0}, "top_logprobs": 2},
    ],
)
async def test_an_answer_validates_however_it_is_sampled(
    sampling: dict[str, object], max_tokens: int, workers: Workers, tokenizer: Tokenizer
) -> None:
    for seed in range(5):
        events = await workers.generate(
            request(workers, schema_grammar(PERSON), max_tokens, **(sampling | {"seed": seed}))
        )
        assert events[-1].finish_reason != decode_pb2.FINISH_REASON_UNSPECIFIED
        jsonschema.validate(json.loads(tokenizer.decode(tokens_of(events))), PERSON)


async def test_a_complete_grammar_ends_the_answer_with_its_last_token(workers: Workers, tokenizer: Tokenizer) -> None:
    events = await workers.generate(request(workers, regex_grammar("[a-f]{3}-[0-9]{2}")))
    assert re.fullmatch("[a-f]{3}-[0-9]{2}", tokenizer.decode(tokens_of(events), skip_special_tokens=False))
    assert events[-1].finish_reason == decode_pb2.FINISH_REASON_GRAMMAR


async def test_a_special_tokens_name_is_text_also_where_nothing_else_may_come(
    workers: Workers, tokenizer: Tokenizer
) -> None:
    tokens = tokens_of(await workers.generate(request(workers, regex_grammar(r"a<\|end\|>b"))))
    assert EOS not in tokens
    assert tokenizer.decode(tokens) == "a<|end|>b"


async def test_a_stop_token_ends_the_answer_only_where_the_grammar_may_end(
    workers: Workers, tokenizer: Tokenizer
) -> None:
    wish = request(workers, regex_grammar("[a-f]{2}[0-9]*"), logit_bias={EOS: 100.0})
    tokens = await workers.tokens(wish)
    assert tokens[-1] == EOS
    assert re.fullmatch("[a-f]{2}", tokenizer.decode(tokens[:-1]))


async def test_ignore_eos_and_min_tokens_hold_back_the_end_while_anything_else_is_allowed(
    workers: Workers, tokenizer: Tokenizer
) -> None:
    for wish in ({"stop_token_ids": []}, {"min_tokens": 20}):
        events = await workers.generate(
            request(workers, regex_grammar("[a-f]{2}[0-9]*"), 20, logit_bias={EOS: 100.0}, **wish)
        )
        assert re.fullmatch("[a-f]{2}[0-9]{18}", tokenizer.decode(tokens_of(events)))
        assert events[-1].finish_reason == decode_pb2.FINISH_REASON_LENGTH
        events = await workers.generate(request(workers, regex_grammar("[a-f]{2}"), 20, **wish))
        assert re.fullmatch("[a-f]{2}", tokenizer.decode(tokens_of(events)))
        assert events[-1].finish_reason == decode_pb2.FINISH_REASON_GRAMMAR


async def test_an_answer_is_whole_although_max_tokens_are_short(workers: Workers, tokenizer: Tokenizer) -> None:
    endless = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    events = await workers.generate(request(workers, schema_grammar(endless), 100, logit_bias={40: 50.0}))
    tokens = tokens_of(events)
    assert len(tokens) == 100
    assert len(json.loads(tokenizer.decode(tokens))["text"]) > 50
    assert events[-1].finish_reason == decode_pb2.FINISH_REASON_LENGTH, "the model would have gone on"


async def test_an_answer_that_nothing_could_make_whole_is_cut(workers: Workers, tokenizer: Tokenizer) -> None:
    events = await workers.generate(request(workers, regex_grammar("[a-f]{90}"), 40))
    assert re.fullmatch("[a-f]{40}", tokenizer.decode(tokens_of(events)))
    assert events[-1].finish_reason == decode_pb2.FINISH_REASON_LENGTH


async def test_a_thousand_optional_properties_can_be_written(workers: Workers, tokenizer: Tokenizer) -> None:
    properties = {f"property_{place}": {"enum": [1]} for place in range(1000)}
    grammar = schema_grammar({"type": "object", "properties": properties, "additionalProperties": False})
    answer = json.loads(tokenizer.decode(await workers.tokens(request(workers, grammar, 60, seed=1))))
    assert answer.keys() <= properties.keys()


@pytest.mark.parametrize(
    "grammar",
    [
        json.dumps({"grammars": [{"lark_grammar": 'start: "x" NOTHING "y"\nNOTHING: /[^\\s\\S]/'}]}),
        regex_grammar("[^\\s\\S]"),
        schema_grammar({"type": "object", "anyOf": [{"properties": {f"{i}": {}}} for i in range(6000)]}),
    ],
)
async def test_a_grammar_that_leads_nowhere_is_refused_before_the_first_token(workers: Workers, grammar: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await workers.generate(request(workers, grammar))
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_grammar_that_is_too_large_is_told_from_one_that_leads_nowhere(workers: Workers) -> None:
    with pytest.raises(
        grpc.aio.AioRpcError, match="the grammar is too large: lexer error: too many expressions"
    ) as told:
        await workers.generate(request(workers, regex_grammar("a{99999999}")))
    assert "non-verbose" not in str(told.value.details())


@pytest.mark.parametrize("max_tokens", [60, 150])
async def test_an_answer_goes_on_from_tokens_chosen_elsewhere(max_tokens: int, workers: Workers) -> None:
    for seed in range(4):
        wish = request(workers, schema_grammar(PERSON), max_tokens, seed=seed)
        whole = await workers.generate(wish)
        tokens = tokens_of(whole)
        for delivered in {1, len(tokens) // 2, len(tokens) - 10, len(tokens) - 1}:
            again = request(workers, schema_grammar(PERSON), max_tokens, seed=seed)
            again.answers.add(token_ids=tokens[:delivered])
            events = await workers.generate(again)
            assert tokens_of(events) == tokens[delivered:]
            assert events[-1].finish_reason == whole[-1].finish_reason
    await workers.until_idle()


async def test_answers_of_one_prompt_each_have_their_own_way(workers: Workers, tokenizer: Tokenizer) -> None:
    wish = request(workers, schema_grammar(PERSON), seed=5)
    wish.answers.extend([decode_pb2.AnswerSoFar() for _ in range(3)])
    events = await workers.generate(wish)
    for number in range(3):
        alone = await workers.tokens(request(workers, schema_grammar(PERSON), seed=5 + number))
        assert tokens_of(events, number) == alone
        jsonschema.validate(json.loads(tokenizer.decode(alone)), PERSON)


async def test_others_in_the_batch_are_not_changed(workers: Workers) -> None:
    plain = workers.request(PROMPT, 100, temperature=1.0, seed=3)
    alone = await workers.tokens(plain)
    together, _ = await asyncio.gather(
        workers.tokens(plain), workers.tokens(request(workers, schema_grammar(PERSON), 100))
    )
    assert together == alone


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        ("nonsense", "serialised form"),
        (schema_grammar({"not": {"type": "string"}}), r'Unimplemented keys: \["not"\]'),
        (regex_grammar("[a-z"), "unclosed character class"),
        (json.dumps({"grammars": [{"lark_grammar": "start: <|nowhere|>"}]}), "unknown special token"),
        (json.dumps({"grammars": [{"lark_grammar": "start: r0\n" + "r: r\n" * 2000}]}), "1000 rules"),
        (regex_grammar("a" * 300_000), "larger than"),
        (regex_grammar("a{1000}{1000}"), "too many expressions"),
    ],
)
async def test_a_grammar_that_cannot_be_compiled_is_refused(grammar: str, reason: str, workers: Workers) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=reason) as refused:
        await workers.tokens(request(workers, grammar))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert workers.prefill.num_jobs == 0
    await workers.until_idle()


@pytest.mark.parametrize("text", ["xyz", "ab-12", "ab-12c"])
async def test_an_answer_so_far_that_does_not_follow_the_grammar_is_refused(
    text: str, workers: Workers, tokenizer: Tokenizer
) -> None:
    wish = request(workers, regex_grammar("[a-f]{2}-[0-9]{2}"))
    wish.answers.add(token_ids=tokenizer.encode(text).ids)
    with pytest.raises(grpc.aio.AioRpcError, match="does not follow the grammar") as refused:
        await workers.tokens(wish)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_model_without_a_tokenizer_refuses_grammars_with_the_reason(
    model: DecoderModel, tmp_path: Path, start_workers: StartWorkers
) -> None:
    server = GrammarServer(tmp_path, TINY_VOCAB_SIZE)
    workers = await start_workers(model, grammars=GrammarCompiler(server))
    server.close()
    with pytest.raises(grpc.aio.AioRpcError, match=r"has no tokenizer\.json") as refused:
        await workers.tokens(request(workers, regex_grammar("a")))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert len(await workers.tokens(workers.request(PROMPT, 5))) == 5


AMBIGUOUS = json.dumps({"grammars": [{"lark_grammar": 'start: start~2 | start~3 | start~4 | "a"'}]})
"""Takes 20 s for 240 letters."""


async def longest_pause(call: grpc.aio.UnaryStreamCall) -> float:
    """Read a stream to its end; return the longest time between two of its tokens, in seconds."""
    await call.read()
    last, longest = time.monotonic(), 0.0
    while await call.read() != grpc.aio.EOF:
        now = time.monotonic()
        last, longest = now, max(longest, now - last)
    return longest


async def test_an_answer_whose_grammar_takes_too_long_ends_and_others_go_on(
    workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = request(workers, AMBIGUOUS, 400, min_tokens=400)
    slow.answers.extend([decode_pb2.AnswerSoFar() for _ in range(2)])
    attack = asyncio.create_task(workers.generate(slow))
    quick = request(workers, schema_grammar(PERSON), 60)
    for _ in range(3):
        pause = await longest_pause(workers.stub.Generate(workers.request(PROMPT, 40)))
        assert pause < 5
        assert await workers.tokens(quick)
    with pytest.raises(grpc.aio.AioRpcError, match="takes too long") as ended:
        await attack
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await workers.until_idle()


async def test_a_process_that_ends_takes_only_its_grammar_with_it(workers: Workers, server: GrammarServer) -> None:
    call = workers.stub.Generate(request(workers, regex_grammar("[a-f]{800}"), 800))
    await call.read()
    (process,) = psutil.Process(server.pid).children()
    other = asyncio.create_task(workers.tokens(request(workers, schema_grammar(PERSON), 150)))
    process.kill()
    with pytest.raises(grpc.aio.AioRpcError, match="process that followed it has ended") as ended:
        await longest_pause(call)
    assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await other
    assert await workers.tokens(request(workers, regex_grammar("[a-f]{8}")))


async def test_the_server_is_started_again(model: DecoderModel, folder: Path, start_workers: StartWorkers) -> None:
    server = GrammarServer(folder, TINY_VOCAB_SIZE)
    workers = await start_workers(model, grammars=GrammarCompiler(server))
    psutil.Process(server.pid).kill()
    assert await workers.tokens(request(workers, regex_grammar("[a-f]{8}")))
    server.close()


async def test_what_was_refused_is_not_compiled_again(workers: Workers, server: GrammarServer) -> None:
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError, match="unclosed character class"):
            await workers.tokens(request(workers, regex_grammar("[a-y")))
    async with asyncio.timeout(10):
        while psutil.Process(server.pid).children():  # the last one is about to end
            await asyncio.sleep(0.01)


async def test_a_grammar_that_nobody_uses_ends(
    workers: Workers, server: GrammarServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.grammar._IDLE_SECONDS", 0.2)
    for _ in range(2):
        assert await workers.tokens(request(workers, regex_grammar("[a-f]{8}")))
        assert psutil.Process(server.pid).children(), "it is kept for a while"
        async with asyncio.timeout(10):
            while psutil.Process(server.pid).children():
                await asyncio.sleep(0.01)


async def test_a_client_leaves_others_room_for_their_grammars(
    server: GrammarServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.grammar._MAX_PROCESSES", 2)
    monkeypatch.setattr("common.fair_bound._TIMES_FREE", 1)
    compiler = GrammarCompiler(server)
    one, other = (partial(compiler.matchers, regex_grammar(f"{letter}+"), 8, [[]]) for letter in "ab")
    async with one(0), one(0):
        with pytest.raises(OverloadedError, match="1 grammars are in use, 1 of them yours"):
            async with other(0):
                pass
        async with other(1):
            pass
    async with other(0):
        pass
    compiler.close()


async def test_as_many_grammars_as_there_may_be_make_room_for_others(
    server: GrammarServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.decode.grammar._MAX_PROCESSES", 2)
    monkeypatch.setattr("services.decode.grammar_process._QUICK_SECONDS", 60)  # a slow one would make room
    compiler = GrammarCompiler(server)
    one, other, third = (
        partial(compiler.matchers, regex_grammar(f"{letter}+"), 8, [[]], client) for client, letter in enumerate("abc")
    )
    async with one():
        async with other():
            with pytest.raises(OverloadedError, match="2 grammars are in use"):
                async with third():
                    pass
        async with third() as (matcher,):
            assert matcher is not None
    compiler.close()
