"""Forms of an answer that are small to send and dear to compile, or to follow at every step."""

import asyncio
from collections.abc import Callable, Mapping
from itertools import count

from benchmarks.attack.wire import Attack, Tally, Target, ask, once, repeated


def _grammar(text: str, num_answers: int, num_connections: int = 1) -> Callable[[Target], Attack]:
    def make(target: Target) -> Attack:
        form: dict[str, object] = {"structured_outputs": {"grammar": text}}
        request = target.completion(n=num_answers, max_tokens=400, ignore_eos=True, stream=True, **form)
        return repeated(target, [request], num_connections)

    return make


def _regex(pattern: str, num_answers: int, num_connections: int = 1) -> Callable[[Target], Attack]:
    def make(target: Target) -> Attack:
        form: dict[str, object] = {"structured_outputs": {"regex": pattern}}
        request = target.completion(n=num_answers, max_tokens=400, ignore_eos=True, stream=True, **form)
        return repeated(target, [request], num_connections)

    return make


def _slow(number: int) -> str:
    """A small grammar that compiles slowly, each number another one: repetitions of a class, in a repetition."""
    return f'start: (A | B | "{number}"){{1,900}}\nA: /[a-z]{{1,{900 + number}}}/\nB: /([A-Z]{{1,30}} ){{1,30}}/'


def _thirty_slow(target: Target) -> Attack:
    forms = ({"grammar": _slow(number)} for number in range(30))
    return once(target, [target.completion(max_tokens=4, structured_outputs=form) for form in forms])


def _ever_new(target: Target) -> Attack:
    """Eight connections, and never the same grammar twice: nothing that is kept of one helps."""
    numbers = count()

    async def attack(tally: Tally) -> None:
        async def one() -> None:
            while True:
                form = {"grammar": _slow(next(numbers))}
                await ask(target, target.completion(max_tokens=4, structured_outputs=form), tally)

        await asyncio.gather(*(one() for _ in range(8)))

    return attack


def _wide_schema(target: Target) -> Attack:
    """Schemas whose properties are all optional, so that each may follow each."""
    requests = []
    for number in range(8):
        properties = {f"p{number}_{index}": {"type": ["string", "integer", "null"]} for index in range(900)}
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"properties": properties}}}
        requests.append(target.completion(max_tokens=64, response_format=form))
    return repeated(target, requests, 8)


def _crossed_schema(target: Target) -> Attack:
    parts: list[object] = [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(6)]} for i in range(8)]
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"allOf": parts}}}
    return repeated(target, [target.completion(max_tokens=64, response_format=form)], 8)


def _refused(target: Target) -> Attack:
    patterns = ["(a{1,1000}){1,1000}", "((a|b)*c){900}" * 40, "(" * 5000, r"(\w+\s?){1,500}" * 20]
    requests = [target.completion(max_tokens=16, structured_outputs={"regex": pattern}) for pattern in patterns]
    return repeated(target, requests, 8)


GRAMMARS: Mapping[str, Callable[[Target], Attack]] = {
    "ambiguous-grammar-n32": _grammar('start: a\na: a a | "a"', 32),
    "ambiguous-grammar-of-any-letter-n32": _grammar("start: a\na: a a | /[a-z ]/", 32),
    "ambiguous-gbnf-8-times-n8": _grammar('root ::= root root | "a" | "b"', 8, 8),
    "nullable-grammar-n32": _grammar('start: b b b b b b b b "x"\nb: b b | c |\nc: "a" | "b" |', 32),
    "slow-grammars-30": _thirty_slow,
    "ever-new-grammars": _ever_new,
    "regex-with-far-look-back-n32": _regex("(a|b| )*a(a|b| ){14}", 32),
    "regex-of-words-n32": _regex(r"(\w+ ?){1,300}\.", 32),
    "wide-schemas": _wide_schema,
    "crossed-schemas": _crossed_schema,
    "regex-bombs": _refused,
}
