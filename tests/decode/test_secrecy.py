"""Token ids are a prompt in another alphabet: the workers do not log them either."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from common.model.decoder import DecoderModel
from services.decode.grammar import GrammarCompiler
from services.decode.grammar_process import GrammarServer
from tests.conftest import StartWorkers
from tests.tiny_tokenizer import TINY_VOCAB_SIZE, write_tiny_tokenizer

PROMPT = [71, 83, 97, 61, 53]


async def test_no_token_ids_are_logged(
    start_workers: StartWorkers, tiny: Callable[[str], DecoderModel], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    workers = await start_workers(tiny("llama"))
    answer = await workers.tokens(workers.request(PROMPT, 4))
    with pytest.raises(grpc.aio.AioRpcError):
        await workers.generate(workers.request([*PROMPT, 10**6], 4))
    workers.prefill_engine.check = _fail  # type: ignore[method-assign]
    with pytest.raises(grpc.aio.AioRpcError):
        await workers.generate(workers.request(PROMPT, 4))
    assert "request failed" in caplog.text
    for tokens in (PROMPT, answer):
        assert str(tokens)[1:-1] not in caplog.text


async def test_no_grammar_is_logged(
    start_workers: StartWorkers, tiny: Callable[[str], DecoderModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    write_tiny_tokenizer(tmp_path)
    server = GrammarServer(tmp_path, TINY_VOCAB_SIZE)
    workers = await start_workers(tiny("llama"), grammars=GrammarCompiler(server))
    grammar = json.dumps({"grammars": [{"lark_grammar": "start: /secret[/"}]})
    with pytest.raises(grpc.aio.AioRpcError, match="secret"):
        await workers.generate(workers.request(PROMPT, 4, grammar=grammar))
    server.close()
    assert "request refused" in caplog.text
    assert "secret" not in "".join(str(vars(record)) for record in caplog.records)


def _fail(token_ids: list[int]) -> None:
    raise RuntimeError("no such kernel")
