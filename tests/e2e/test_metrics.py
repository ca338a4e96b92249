"""The metrics of `structkv up`: every process tells of its part in a request, where its user looks for it."""

import httpx

from tests.e2e.conftest import MODEL, Up
from tests.e2e.processes import wait_for
from tests.samples import Samples, changes, of_text

WORDS = "The harbour of the town was quiet that morning. " * 30


def scrape(up: Up) -> dict[str, Samples]:
    ports = {"prefill": up.metrics_port, "decode": up.metrics_port + 1}
    urls = {"gateway": up.url} | {kind: f"http://127.0.0.1:{port}" for kind, port in ports.items()}
    return {kind: of_text(httpx.get(f"{url}/metrics").text) for kind, url in urls.items()}


def test_one_request_is_counted_by_each_service(up: Up) -> None:
    before = scrape(up)
    answer = up.client.completions.create(
        model=MODEL, prompt=WORDS, max_tokens=5, temperature=0, extra_body={"ignore_eos": True}
    )
    wait_for(lambda: scrape(up)["gateway"]["structkv_requests_in_flight"] == 0)
    after = scrape(up)
    changed = {kind: changes(before[kind], after[kind]) for kind in after}
    prompt_tokens = answer.usage.prompt_tokens
    assert changed["gateway"] == {
        "structkv_request_success_total{finish_reason=length}": 1,
        "structkv_prompt_tokens_total": prompt_tokens,
        "structkv_generation_tokens_total": 5,
        "structkv_request_prompt_tokens_count": 1,
        "structkv_request_generation_tokens_count": 1,
        "structkv_time_to_first_token_seconds_count": 1,
        "structkv_inter_token_latency_seconds_count": 4,
        "structkv_e2e_request_latency_seconds_count": 1,
    }
    assert changed["prefill"]["structkv_prefill_tokens_total"] == prompt_tokens
    assert changed["decode"]["structkv_decode_step_seconds_count"] == 5
    assert changed["decode"]["structkv_kept_tokens_count"] == 1
    assert after["decode"]["structkv_kv_blocks_total"] > 0
    for kind, samples in after.items():
        (build,) = (name for name in samples if name.startswith("structkv_build_info"))
        assert f"service={kind}" in build
        assert f"model={MODEL}" in build
