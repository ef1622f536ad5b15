"""/metrics of a running pagoda, read by Prometheus' own Python parser: counters move by the usage that clients were told.

BASE_URL=http://127.0.0.1:8000 MODEL=name [API_KEY=key] python tests/sdk/test_metrics.py
Needs the packages prometheus-client and openai, and a server that nobody else uses meanwhile.
"""

import os
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
from prometheus_client.parser import text_string_to_metric_families

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000").rstrip("/")
MODEL = os.environ["MODEL"]
NUM_REQUESTS = 12


def scrape():
    """{(sample name, sorted labels): value}"""
    with urllib.request.urlopen(BASE_URL + "/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers["content-type"]
        families = list(text_string_to_metric_families(answer.read().decode()))
    kinds = {family.name: family.type for family in families}
    assert kinds["vllm:prompt_tokens"] == "counter" and kinds["vllm:num_requests_running"] == "gauge", kinds
    assert kinds["vllm:time_to_first_token_seconds"] == kinds["vllm:iteration_tokens_total"] == "histogram", kinds
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def of(samples, name, **labels):
    [value] = [value for (found, key), value in samples.items() if found == name and labels.items() <= dict(key).items()]
    return value


def ask(idx):
    client = openai.OpenAI(base_url=BASE_URL + "/v1", api_key=os.environ.get("API_KEY") or "none", max_retries=0)
    # A common beginning of several blocks, so that the prefix cache is hit.
    messages = [{"role": "user", "content": "Count the words of this sentence, please. " * 8 + "word " * idx}]
    return client.chat.completions.create(model=MODEL, messages=messages, max_tokens=4 + idx, temperature=0, n=1 + idx % 2).usage


def main():
    before = scrape()
    with ThreadPoolExecutor(4) as pool:
        usages = list(pool.map(ask, range(NUM_REQUESTS)))
    after = scrape()

    def moved(name, **labels):
        return of(after, name, **labels) - of(before, name, **labels)

    prompt, output = sum(usage.prompt_tokens for usage in usages), sum(usage.completion_tokens for usage in usages)
    cached = sum(usage.prompt_tokens_details.cached_tokens for usage in usages)
    assert moved("vllm:prompt_tokens_total") == moved("vllm:request_prompt_tokens_sum") == prompt
    assert moved("vllm:generation_tokens_total") == moved("vllm:request_generation_tokens_sum") == output
    assert moved("vllm:prompt_tokens_cached_total") == cached > 0
    assert sum(moved("vllm:request_success_total", finished_reason=reason) for reason in ("stop", "length")) == NUM_REQUESTS
    for name in ("time_to_first_token", "e2e_request_latency", "request_queue_time", "request_prefill_time", "request_decode_time"):
        assert moved(f"vllm:{name}_seconds_count") == NUM_REQUESTS, name
    # Prompts and answers went through the engine, but for what was cached and each answer's last token.
    assert prompt + output - cached - 2 * NUM_REQUESTS <= moved("vllm:iteration_tokens_total_sum"), "tokens of steps"
    assert moved("vllm:prefix_cache_hits_total") == cached, "hits"
    assert moved("vllm:prefix_cache_queries_total") == prompt, "queries"
    assert of(after, "vllm:num_requests_running") == 0 and 0 <= of(after, "vllm:kv_cache_usage_perc") <= 1
    print(f"metrics: {prompt} prompt, {cached} cached and {output} generated tokens counted exactly")


if __name__ == "__main__":
    sys.exit(main())
