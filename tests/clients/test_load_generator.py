"""A load generator made for LLM serving measures the running service."""

import json
from pathlib import Path

from common.model.source import resolve
from tests.clients.environment import environment, run
from tests.e2e.conftest import MODEL, Up

PROMPT_TOKENS, OUTPUT_TOKENS, REQUESTS = 160, 12, 6


def test_guidellm_counts_what_it_asked_for(up: Up, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command: list[str | Path] = [environment("guidellm") / "guidellm", "run", "--disable-console"]
    command += ["--backend", f"kind=openai_http,target={up.url},model={MODEL}"]
    command += ["--tokenizer", f"kind=hf_auto,model={resolve(MODEL, weights=False)}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens={PROMPT_TOKENS},output_tokens={OUTPUT_TOKENS}"]
    command += ["--profile", "kind=concurrent,streams=3", "--constraint", f"kind=max_requests,count={REQUESTS}"]
    command += ["--output", f"kind=json,path={report}"]

    done = run(command, up, tmp_path)
    assert done.returncode == 0, done.stderr
    (benchmark,) = json.loads(report.read_text())["benchmarks"]
    metrics = benchmark["metrics"]
    assert metrics["request_totals"] == {"successful": REQUESTS, "errored": 0, "incomplete": 0, "total": REQUESTS}
    assert metrics["output_token_count"]["successful"]["total_sum"] == OUTPUT_TOKENS * REQUESTS
    # The chat's template comes on top.
    prompt_tokens = metrics["prompt_token_count"]["successful"]
    assert PROMPT_TOKENS < prompt_tokens["min"] <= prompt_tokens["max"] <= PROMPT_TOKENS + 40
    ttft_ms = metrics["time_to_first_token_ms"]["successful"]["median"]
    assert 0 < ttft_ms / 1000 < metrics["request_latency"]["successful"]["median"]
