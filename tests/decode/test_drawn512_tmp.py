import asyncio
import time

from common.model import decoder
from common.pb import decode_pb2
from common.settings import DEFAULT_MODEL

PROMPT = list(range(4000, 4040))
N, TOKENS, TOGETHER = 512, 16, 64


async def test_it(start_workers):
    model = decoder.load(DEFAULT_MODEL, device="cpu", dtype="float32")
    workers = await start_workers(model, max_running=64, num_blocks=30 * 64 * 8)

    def drawn(seed):
        return workers.request(PROMPT, TOKENS, temperature=1.0, seed=seed)

    t = time.time()
    alone = [await workers.tokens(drawn(seed)) for seed in range(N)]
    print("alone", time.time() - t, len({tuple(a) for a in alone}))
    together, several, resumed = [], [], []
    for start in range(0, N, TOGETHER):
        seeds = range(start, start + TOGETHER)
        together += await asyncio.gather(*(workers.tokens(drawn(seed)) for seed in seeds))
        request = drawn(start)
        request.answers.extend(decode_pb2.AnswerSoFar() for _ in seeds)
        of_one = [[] for _ in seeds]
        for event in await workers.generate(request):
            of_one[event.answer] += event.token_ids
        several += of_one
        taken = [drawn(seed) for seed in seeds]
        for request, seed in zip(taken, seeds, strict=True):
            request.answers.add(token_ids=alone[seed][: TOKENS // 2])
        rest = await asyncio.gather(*(workers.tokens(request) for request in taken))
        resumed += [alone[seed][: TOKENS // 2] + more for seed, more in zip(seeds, rest, strict=True)]
    for name, answers in (("64 together", together), ("n=64", several), ("resumed from half", resumed)):
        print(name, "differ:", sum(a != b for a, b in zip(alone, answers, strict=True)), "of", N)
