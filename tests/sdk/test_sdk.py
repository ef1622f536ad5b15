"""The official Python SDKs of Anthropic and OpenAI against a running pagoda.

BASE_URL=http://127.0.0.1:8000 MODEL=name [API_KEY=key] python tests/sdk/test_sdk.py
Needs the packages anthropic and openai (any recent generation). Without API_KEY the checks of wrong keys are skipped aloud.
Every function whose name begins with test_ is run (pytest works too); the last line counts, and the exit status is 0 if all passed.
"""

import json
import os
import re
import sys
import time
import traceback
import urllib.request

import anthropic
import openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000").rstrip("/").removesuffix("/v1")
MODEL = os.environ.get("MODEL", "")
API_KEY = os.environ.get("API_KEY", "")
TIMEOUT_S = 300
QUESTION = "Say hello to the world, please."
GREEDY = {"temperature": 0}


class Skipped(Exception):
    """The check does not apply to this server."""


def claude(key=API_KEY or "none"):
    return anthropic.Anthropic(base_url=BASE_URL, api_key=key, max_retries=0, timeout=TIMEOUT_S)


def gpt(key=API_KEY or "none"):
    return openai.OpenAI(base_url=BASE_URL + "/v1", api_key=key, max_retries=0, timeout=TIMEOUT_S)


def user(text=QUESTION):
    return [{"role": "user", "content": text}]


def raises(kind, call, **wanted):
    """Runs `call` and returns the exception, which must be of `kind` exactly enough."""
    try:
        call()
    except kind as error:
        for name, value in wanted.items():
            assert getattr(error, name) == value, (name, getattr(error, name), value)
        return error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def message(max_tokens=24, text=QUESTION, **extra):
    extra_body = {**GREEDY, **extra.pop("extra_body", {})}
    return claude().messages.create(model=MODEL, max_tokens=max_tokens, messages=user(text), extra_body=extra_body, **extra)


def text_of(answer):
    return "".join(block.text for block in answer.content)


def num_prompt_tokens(usage):
    return usage.input_tokens + (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)


def raw_events(path, body):
    """The (event, data) pairs of a stream, read without an SDK."""
    headers = {"content-type": "application/json", "x-api-key": API_KEY or "none"}
    request = urllib.request.Request(BASE_URL + path, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=TIMEOUT_S) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events, name = [], None
        for line in answer.read().decode().split("\n"):
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                events.append((name, line.removeprefix("data: ")))
                name = None
        return events


# Anthropic


def test_message():
    answer = message()
    assert answer.type == "message" and answer.role == "assistant" and answer.model == MODEL
    assert answer.id.startswith("msg_") and answer._request_id.startswith("req_")
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.stop_sequence is None
    assert 0 < answer.usage.output_tokens <= 24
    assert text_of(answer)


def test_message_stream_equals_message():
    whole = message()
    with claude().messages.stream(model=MODEL, max_tokens=24, messages=user(), extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == text_of(whole) == text_of(final)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert num_prompt_tokens(final.usage) == num_prompt_tokens(whole.usage)


def test_message_stream_order():
    body = {"model": MODEL, "max_tokens": 8, "messages": user(), "stream": True}
    events = [(name, json.loads(data)) for name, data in raw_events("/v1/messages", body)]
    assert all(name == data["type"] for name, data in events)
    names = [name for name, _ in events if name != "ping"]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    middle = names[1:-2]
    if middle:
        assert middle[0] == "content_block_start" and middle[-1] == "content_block_stop"
        assert set(middle[1:-1]) <= {"content_block_delta"}
    assert events[-2][1]["usage"]["output_tokens"] <= 8


def test_message_stop_sequence():
    text = text_of(message())
    stop = text[len(text) // 2 :][:3]
    answer = message(stop_sequences=[stop])
    assert answer.stop_reason == "stop_sequence" and answer.stop_sequence == stop
    assert text_of(answer) == text[: text.index(stop)]


def test_message_max_tokens():
    answer = message(max_tokens=1, extra_body={"ignore_eos": True})
    assert answer.stop_reason == "max_tokens" and answer.usage.output_tokens == 1


def test_message_prefill():
    answer = claude().messages.create(
        model=MODEL, max_tokens=8, messages=[*user(), {"role": "assistant", "content": "Hello"}], extra_body=GREEDY
    )
    assert answer.role == "assistant"


def test_count_tokens_equals_usage():
    system = "You are brief. " * 20
    count = claude().messages.count_tokens(model=MODEL, messages=user(), system=system).input_tokens
    for _ in range(2):
        answer = claude().messages.create(model=MODEL, max_tokens=1, messages=user(), system=system)
        assert num_prompt_tokens(answer.usage) == count
    tool = {"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {}}}
    assert claude().messages.count_tokens(model=MODEL, messages=user(), tools=[tool]).input_tokens > 0


def test_repeated_prefix_is_cached():
    text = f"{os.getpid()} " + "A long text that comes twice. " * 40
    first, second = message(max_tokens=1, text=text).usage, message(max_tokens=1, text=text).usage
    assert second.cache_read_input_tokens > 100, second
    assert num_prompt_tokens(first) == num_prompt_tokens(second)


def test_anthropic_models():
    page = claude().models.list()
    assert MODEL in [model.id for model in page.data]
    model = claude().models.retrieve(MODEL)
    assert model.id == MODEL and model.type == "model" and model.created_at.year >= 2024
    raises(anthropic.NotFoundError, lambda: claude().models.retrieve("no/such-model"))


def test_anthropic_errors():
    def create(**changed):
        return claude().messages.create(**{"model": MODEL, "max_tokens": 8, "messages": user(), **changed})

    error = raises(anthropic.NotFoundError, lambda: create(model="no-such-model"), status_code=404)
    assert error.body["error"]["type"] == "not_found_error"
    assert error.body["request_id"] == error.response.headers["request-id"]
    raises(anthropic.BadRequestError, lambda: create(max_tokens=0), status_code=400)
    raises(anthropic.BadRequestError, lambda: create(messages=[]), status_code=400)
    raises(anthropic.BadRequestError, lambda: create(extra_body={"temperature": "hot"}), status_code=400)
    raises(anthropic.BadRequestError, lambda: create(stream=True, extra_body={"top_p": 2}), status_code=400)
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    error = raises(anthropic.BadRequestError, lambda: create(messages=user([image])))
    assert "images are not supported" in str(error)


def test_anthropic_key():
    if not API_KEY:
        raise Skipped("no API_KEY")
    error = raises(anthropic.AuthenticationError, lambda: claude("wrong").models.list(), status_code=401)
    assert "wrong" not in json.dumps(error.body)
    by_token = anthropic.Anthropic(base_url=BASE_URL, auth_token=API_KEY, max_retries=0)
    assert by_token.models.list().data


def test_prompt_too_long():
    window = gpt().models.retrieve(MODEL).model_extra["max_model_len"]
    text = "many words " * window
    error = raises(anthropic.BadRequestError, lambda: message(text=text))
    assert re.search(r"prompt is too long: \d+ tokens > \d+ maximum", str(error)), str(error)
    error = raises(openai.BadRequestError, lambda: gpt().chat.completions.create(model=MODEL, messages=user(text)))
    assert error.code == "context_length_exceeded"


# OpenAI


def chat(text=QUESTION, **extra):
    return gpt().chat.completions.create(**{"model": MODEL, "messages": user(text), "temperature": 0, "max_tokens": 24, **extra})


def test_chat():
    answer = chat()
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == MODEL
    assert choice.message.role == "assistant" and choice.message.content and choice.message.tool_calls is None
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.completion_tokens <= 24


def test_chat_stream_equals_chat():
    whole = chat()
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    finishes = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert finishes == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_chat_stream_ends_with_done():
    body = {"model": MODEL, "max_tokens": 4, "messages": user(), "stream": True}
    datas = [data for _, data in raw_events("/v1/chat/completions", body)]
    assert datas[-1] == "[DONE]" and all(json.loads(data)["object"] == "chat.completion.chunk" for data in datas[:-1])


def test_chat_choices():
    answer = chat(n=3, max_tokens=4, temperature=1, seed=7, extra_body={"ignore_eos": True})
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage.completion_tokens == 12
    texts = {0: "", 1: ""}
    for chunk in chat(n=2, max_tokens=4, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts[0] == texts[1], "greedy choices are the same"


def test_chat_logprobs():
    answer = chat(max_tokens=6, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True})
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens == 6
    for entry in entries:
        assert entry.logprob <= 0 and len(entry.top_logprobs) == 3
        logprobs = [top.logprob for top in entry.top_logprobs]
        assert logprobs == sorted(logprobs, reverse=True)
    joined = bytes(byte for entry in entries for byte in entry.bytes or [])
    assert joined.decode(errors="ignore").startswith(answer.choices[0].message.content.rstrip("\ufffd"))


def test_chat_stop():
    text = chat().choices[0].message.content
    stop = text[len(text) // 2 :][:3]
    answer = chat(stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == text[: text.index(stop)]


def test_chat_seed():
    first, second = (chat(seed=11, temperature=1).choices[0].message.content for _ in range(2))
    assert first == second


def test_completions():
    answer = gpt().completions.create(model=MODEL, prompt=["One two", "The sky"], n=2, max_tokens=4, temperature=0)
    assert answer.object == "text_completion" and [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.choices[0].text == answer.choices[1].text
    by_prompt = {index: "" for index in range(2)}
    for chunk in gpt().completions.create(model=MODEL, prompt=["One two", "The sky"], max_tokens=4, temperature=0, stream=True):
        for choice in chunk.choices:
            by_prompt[choice.index] += choice.text
    assert [by_prompt[0], by_prompt[1]] == [answer.choices[0].text, answer.choices[2].text]


def test_completion_logprobs_and_echo():
    answer = gpt().completions.create(model=MODEL, prompt="One two three", echo=True, logprobs=2, max_tokens=3, temperature=0)
    choice = answer.choices[0]
    lists = choice.logprobs
    assert choice.text.startswith("One two three")
    assert len(lists.tokens) == len(lists.token_logprobs) == len(lists.top_logprobs) == len(lists.text_offset)
    assert len(lists.tokens) == answer.usage.total_tokens
    assert lists.token_logprobs[0] is None and all(logprob <= 0 for logprob in lists.token_logprobs[1:])
    assert lists.text_offset == sorted(lists.text_offset)


def test_responses():
    answer = gpt().responses.create(model=MODEL, input=QUESTION, instructions="Be brief.", max_output_tokens=16, temperature=0)
    assert answer.status in ("completed", "incomplete") and answer.object == "response"
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens and answer.usage.output_tokens <= 16
    kinds, text, final = [], "", None
    for event in gpt().responses.create(
        model=MODEL, input=user(), instructions="Be brief.", max_output_tokens=16, temperature=0, stream=True
    ):
        kinds.append(event.type)
        text += event.delta if event.type == "response.output_text.delta" else ""
        final = getattr(event, "response", final)
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == f"response.{answer.status}", kinds
    assert text == answer.output_text == final.output_text
    raises(openai.BadRequestError, lambda: gpt().responses.create(model=MODEL, input="x", previous_response_id="resp_1"), status_code=400)


def test_batches():
    batches = claude().messages.batches
    params = {"model": MODEL, "max_tokens": 8, "messages": user(), "temperature": 0}
    batch = batches.create(requests=[{"custom_id": f"r{idx}", "params": params} for idx in range(3)])
    assert batch.type == "message_batch" and batch.request_counts.processing <= 3
    deadline = time.monotonic() + TIMEOUT_S
    while batch.processing_status != "ended" and time.monotonic() < deadline:
        time.sleep(0.1)
        batch = batches.retrieve(batch.id)
    assert batch.request_counts.succeeded == 3, batch
    texts = {text_of(line.result.message) for line in batches.results(batch.id)}
    assert texts == {text_of(message(8))}, texts
    assert batch.id in [listed.id for listed in batches.list(limit=5)]
    assert batches.delete(batch.id).id == batch.id
    raises(anthropic.NotFoundError, lambda: batches.retrieve(batch.id), status_code=404)


def test_openai_models():
    assert MODEL in [model.id for model in gpt().models.list()]
    model = gpt().models.retrieve(MODEL)
    assert model.id == MODEL and model.object == "model"
    assert model.model_extra["capabilities"]["streaming"] is True
    raises(openai.NotFoundError, lambda: gpt().models.retrieve("no/such-model"), code="model_not_found")


def test_openai_errors():
    raises(openai.NotFoundError, lambda: chat(model="no-such-model"), status_code=404, code="model_not_found")
    raises(openai.BadRequestError, lambda: chat(temperature=3), status_code=400, param="temperature")
    raises(openai.BadRequestError, lambda: chat(messages=[]), status_code=400, param="messages")
    raises(openai.BadRequestError, lambda: chat(stream_options={"include_usage": True}), status_code=400)
    raises(openai.BadRequestError, lambda: chat(stream=True, n=0), status_code=400, param="n")
    raises(openai.BadRequestError, lambda: gpt().completions.create(model=MODEL, prompt="x", suffix="y"), param="suffix")


def test_openai_key():
    if not API_KEY:
        raise Skipped("no API_KEY")
    raises(openai.AuthenticationError, lambda: gpt("wrong").models.list(), status_code=401, code="invalid_api_key")


def main(tests):
    """Runs the functions of a module whose names begin with test_."""
    if not MODEL:
        sys.exit("MODEL is not set")
    print(f"anthropic {anthropic.__version__}, openai {openai.__version__}, {BASE_URL}, {MODEL}")
    counts = {"passed": 0, "skipped": 0, "failed": 0}
    for name, test in [(name, test) for name, test in tests.items() if name.startswith("test_")]:
        try:
            test()
            outcome, detail = "passed", ""
        except Skipped as reason:
            outcome, detail = "skipped", f": {reason}"
        except Exception:
            outcome, detail = "failed", "\n" + traceback.format_exc()
        counts[outcome] += 1
        print(f"{outcome} {name}{detail}", flush=True)
    print(json.dumps(counts))
    sys.exit(1 if counts["failed"] or not counts["passed"] else 0)


if __name__ == "__main__":
    main(globals())
