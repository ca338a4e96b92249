"""vLLM as a peer: a process in an environment of its own, asked through its standard input.

Run by `benchmarks.peer` with that environment's Python; imports nothing of ours. One JSON object a line in, one out:

    {"op": "prefill", "prompts": [[ids]]}    -> {"seconds"}: until every prompt has its first token
    {"op": "grow", "prompts": [[ids], ...]}  -> {"seconds"}: the same, and these requests stay in the running batch
    {"op": "steps", "count": 32}             -> {"seconds": [...]}: of each step, in which every request gets a token
    {"op": "clear"}                          -> {}: the running batch is dropped

The engine runs in this process, so that its steps can be timed one by one, and rests while nobody asks.
"""

import argparse
import json
import os
import sys
import time
from itertools import count
from typing import Any, TextIO

_ROOM_TOKENS = 2048
"""New tokens that a request of the running batch may have; more than any measurement takes."""


def _answers() -> TextIO:
    """Return the stream for answers; whatever else is printed from now on goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return answers


class Engine:
    """vLLM's engine, and the requests that run in it."""

    def __init__(self, options: argparse.Namespace) -> None:
        import vllm  # noqa: PLC0415  after the environment is set

        self._sampling = vllm.SamplingParams
        self._engine: Any = vllm.LLM(
            options.model,
            tokenizer=options.model,
            dtype=options.dtype,
            max_model_len=options.max_tokens,
            max_num_seqs=options.max_batch,
            enable_prefix_caching=False,
            enforce_eager=options.eager,
            seed=0,
        ).llm_engine
        self._ids = count()
        self._running: list[str] = []
        self.about = {"vllm": vllm.__version__, "dtype": str(self._engine.model_config.dtype)}

    def prefill(self, prompts: list[list[int]]) -> dict[str, object]:
        """Run prompts for one token each."""
        return {"seconds": self._run(prompts, 1)[0]}

    def grow(self, prompts: list[list[int]]) -> dict[str, object]:
        """Run prompts to their first tokens and keep them."""
        seconds, added = self._run(prompts, _ROOM_TOKENS)
        self._running += added
        return {"seconds": seconds}

    def steps(self, steps: int) -> dict[str, object]:
        """Time steps of the running batch: from all of its tokens to the next time that all have one more."""
        seconds = []
        for _ in range(steps):
            started = time.perf_counter()
            waiting = set(self._running)
            while waiting:
                waiting -= {output.request_id for output in self._engine.step()}
            seconds.append(time.perf_counter() - started)
        return {"seconds": seconds}

    def clear(self) -> dict[str, object]:
        """Drop the running batch."""
        self._engine.abort_request(self._running)
        self._running = []
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return {}

    def _run(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, list[str]]:
        sampling = self._sampling(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        started = time.perf_counter()
        added = [str(next(self._ids)) for _ in prompts]
        for request_id, prompt in zip(added, prompts, strict=True):
            self._engine.add_request(request_id, {"prompt_token_ids": prompt}, sampling)
        waiting = set(added)
        while waiting:
            waiting -= {output.request_id for output in self._engine.step() if output.outputs[0].token_ids}
        return time.perf_counter() - started, added


def main() -> None:
    """Load the model, say so, then answer until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder in transformers' layout")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--max-batch", type=int, default=16)
    parser.add_argument("--kv-gib", type=int, default=4)
    parser.add_argument("--eager", action="store_true")
    options = parser.parse_args()
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_gib)
    # By default vLLM leaves a core to its server; here it gets as many threads as everybody else.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{options.threads - 1}"
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    answers = _answers()
    engine = Engine(options)
    print(json.dumps(engine.about), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        op = asked.pop("op")
        reply = engine.steps(asked["count"]) if op == "steps" else getattr(engine, op)(**asked)
        print(json.dumps(reply), file=answers)


if __name__ == "__main__":
    main()
