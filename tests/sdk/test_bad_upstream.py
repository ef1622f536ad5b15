"""The official Python SDKs against a pagoda whose model runs on a service that misbehaves.

PAGODA=path/to/pagoda KIND=vllm_remote|remote_openai python tests/sdk/test_bad_upstream.py
Starts a scripted OpenAI-compatible service and a pagoda in front of it. The last message of a request says what the service does.
Every function whose name begins with test_ is run; the last line counts, and the exit status is 0 if all passed.
"""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request

import anthropic
import openai

KIND = os.environ.get("KIND", "remote_openai")
SECRET = "sk-upstream-secret"
OUTER = "sk-outer"
SILENCE_S = 1.5
GOOD = "The answer is fine."
TOOL = {"name": "get_weather", "description": "d", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


class Service(http.server.BaseHTTPRequestHandler):
    """A chat service that does what the last message says: `429 2` is 429 twice, then an answer."""

    protocol_version = "HTTP/1.1"
    counts = {}
    num_gone = 0
    lock = threading.Lock()

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.whole(200, {"object": "list", "data": [{"id": "scripted", "object": "model", "max_model_len": 4096}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["authorization"] != f"Bearer {SECRET}":
            return self.fail(401, f"wrong key, not {SECRET}")
        if self.path != "/v1/chat/completions":
            return self.fail(404, "no such route")
        word = body["messages"][-1]["content"]
        with Service.lock:
            Service.counts[word] = num = Service.counts.get(word, 0) + 1
        what, _, times = word.partition(" ")
        if times and num > int(times):
            what = "fine"
        getattr(self, f"do_{what}", lambda _: self.fail(int(what), f"because of {what}"))(body)

    def whole(self, status, value, **headers):
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"content-type": "application/json", "content-length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status, message):
        headers = {"retry_after": "0.2"} if status == 429 else {}
        self.whole(status, {"error": {"message": message, "type": "x", "param": None, "code": None}}, **headers)

    def begin(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True

    def event(self, value):
        self.wfile.write(f"data: {json.dumps(value) if value != '[DONE]' else value}\n\n".encode())
        self.wfile.flush()

    def delta(self, finish_reason=None, **delta):
        self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]})

    def end(self, reason):
        self.delta(finish_reason=reason)
        self.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}})
        self.event("[DONE]")

    def do_fine(self, _):
        self.begin()
        for piece in GOOD.split(" "):
            self.delta(content=piece if piece == "The" else " " + piece)
        self.end("stop")

    def do_tool(self, body):
        assert body["tools"][0]["function"]["name"] == "get_weather"
        self.begin()
        self.delta(content="Let me look.")
        function = {"name": "get_weather", "arguments": ""}
        self.delta(tool_calls=[{"index": 0, "id": "call_42", "type": "function", "function": function}])
        for piece in ['{"ci', 'ty": "Oslo"', "}"]:
            self.delta(tool_calls=[{"index": 0, "function": {"arguments": piece}}])
        self.end("tool_calls")

    def do_silent(self, _):
        time.sleep(2 * SILENCE_S)
        self.close_connection = True

    def do_slow(self, _):
        self.begin()
        for piece in GOOD.split(" "):
            time.sleep(SILENCE_S / 3)
            self.delta(content=piece if piece == "The" else " " + piece)
        self.end("stop")

    def do_cut(self, _):
        self.begin()
        self.delta(content="The answer")

    def do_early(self, _):
        self.begin()

    def do_garbage(self, _):
        self.begin()
        self.delta(content="The answer")
        self.wfile.write(b"data: {garbage\n\n")

    def do_endless(self, _):
        self.begin()
        try:
            while True:
                self.delta(content="and ")
                time.sleep(0.01)
        except OSError:
            with Service.lock:
                Service.num_gone += 1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def raises(kind, call, status=None):
    try:
        call()
    except kind as error:
        assert SECRET not in str(error) and SECRET not in json.dumps(error.body, default=str), error
        assert status is None or error.status_code == status, (status, error)
        return error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")


def claude():
    return anthropic.Anthropic(base_url=BASE_URL, api_key=OUTER, max_retries=0, timeout=60)


def gpt():
    return openai.OpenAI(base_url=BASE_URL + "/v1", api_key=OUTER, max_retries=0, timeout=60)


def message(word, **extra):
    messages = [{"role": "user", "content": word}]
    return claude().messages.create(model="scripted", max_tokens=50, messages=messages, **extra)


def chat(word, **extra):
    return gpt().chat.completions.create(model="scripted", max_tokens=50, messages=[{"role": "user", "content": word}], **extra)


def streamed(word):
    """The text so far, and the error that ended it."""
    text = ""
    try:
        for event in message(word, stream=True):
            assert event.type != "message_stop" or text == GOOD
            text += getattr(getattr(event, "delta", None), "text", None) or ""
    except anthropic.APIError as error:
        return text, error
    return text, None


def test_models_come_from_the_service():
    assert [model.id for model in claude().models.list().data] == ["scripted"]
    assert gpt().models.retrieve("scripted").model_extra["max_model_len"] == 4096


def test_answers():
    answer = message("fine")
    assert answer.content[0].text == GOOD and answer.stop_reason == "end_turn"
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (7, 5)
    assert streamed("fine") == (GOOD, None)
    assert chat("fine").choices[0].message.content == GOOD
    chunks = list(chat("fine", stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == GOOD
    assert chunks[-1].usage.completion_tokens == 5


def test_tool_calls():
    answer = message("tool", tools=[TOOL])
    call = answer.content[-1]
    assert answer.stop_reason == "tool_use" and (call.id, call.name, call.input) == ("call_42", "get_weather", {"city": "Oslo"})
    with claude().messages.stream(
        model="scripted", max_tokens=50, tools=[TOOL], messages=[{"role": "user", "content": "tool"}]
    ) as stream:
        final = stream.get_final_message()
    assert final.content[0].text == "Let me look." and final.content[1].input == {"city": "Oslo"}
    function = {"type": "function", "function": {"name": "get_weather", "parameters": TOOL["input_schema"]}}
    call = chat("tool", tools=[function]).choices[0].message.tool_calls[0]
    assert (call.id, json.loads(call.function.arguments)) == ("call_42", {"city": "Oslo"})


def test_overload_and_failures_pass_after_retries():
    for word in ["429 2", "500 1", "503 2", "early 1"]:
        assert message(word).content[0].text == GOOD, word
        assert Service.counts[word] == int(word.split()[1]) + 1, (word, Service.counts)


def test_lasting_overload():
    error = raises(anthropic.RateLimitError, lambda: message("429"), 429)
    assert error.body["error"]["type"] == "rate_limit_error" and int(error.response.headers["retry-after"]) >= 1
    assert Service.counts["429"] == 3
    raises(openai.RateLimitError, lambda: chat("429"), 429)
    raises(anthropic.APIStatusError, lambda: message("429", stream=True), 429)


def test_refusals():
    error = raises(anthropic.BadRequestError, lambda: message("400"), 400)
    assert "because of 400" in str(error) and Service.counts["400"] == 1
    error = raises(openai.BadRequestError, lambda: chat("400"), 400)
    assert "because of 400" in str(error)


def test_streams_that_break_off():
    for word in ["cut", "garbage"]:
        text, error = streamed(word)
        assert text == "The answer" and error is not None and Service.counts[word] == 1, (word, text, error)
        assert SECRET not in str(error)
        raises(anthropic.APIStatusError, lambda: message(word), 502)


def test_slow_is_not_silent():
    assert message("slow").content[0].text == GOOD
    error = raises(anthropic.APIStatusError, lambda: message("silent"), 504)
    assert error.body["error"]["type"] == "timeout_error"
    raises(openai.APIStatusError, lambda: chat("silent"), 504)


def test_a_client_that_leaves():
    with claude().messages.stream(model="scripted", max_tokens=50, messages=[{"role": "user", "content": "endless"}]) as stream:
        next(iter(stream.text_stream))
    deadline = time.monotonic() + 10
    while Service.num_gone == 0:
        assert time.monotonic() < deadline, "the service still talks"
        time.sleep(0.05)


def test_zz_lasting_failures():
    """Last: the service is left alone after it."""
    for _ in range(3):
        raises(anthropic.APIStatusError, lambda: message("500"))
    error = raises(anthropic.APIStatusError, lambda: message("fine"), 529)
    assert error.body["error"]["type"] == "overloaded_error" and int(error.response.headers["retry-after"]) >= 1
    time.sleep(2.5)
    assert message("fine").content[0].text == GOOD


def run_tests(log):
    counts = {"passed": 0, "failed": 0}
    for name, test in sorted((name, test) for name, test in globals().items() if name.startswith("test_")):
        try:
            test()
            outcome, detail = "passed", ""
        except Exception:
            outcome, detail = "failed", "\n" + traceback.format_exc()
        counts[outcome] += 1
        print(f"{outcome} {name}{detail}", flush=True)
    if SECRET in log.read_text():
        counts["failed"] += 1
        print("failed: the service's key is in the log")
    print(json.dumps(counts))
    return counts["failed"] == 0 and counts["passed"] > 0


def main():
    global BASE_URL
    import pathlib
    import tempfile

    service = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    service.daemon_threads = True
    threading.Thread(target=service.serve_forever, daemon=True).start()
    port, prefix = free_port(), KIND.upper()
    BASE_URL = f"http://127.0.0.1:{port}"
    variables = {
        "LLM_BACKEND": KIND,
        f"{prefix}_URL": f"http://127.0.0.1:{service.server_address[1]}",
        f"{prefix}_API_KEY": SECRET,
        f"{prefix}_TIMEOUT": str(SILENCE_S),
        "API_KEY": OUTER,
        "RUST_LOG": "debug",
    }
    log = pathlib.Path(tempfile.mkdtemp()) / "log"
    command = [os.environ["PAGODA"], "serve", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        front = subprocess.Popen(command, env={**os.environ, **variables}, stdout=out, stderr=out)
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        for _ in range(100):
            try:
                opener.open(BASE_URL + "/health", timeout=5)
                break
            except OSError:
                assert front.poll() is None, log.read_text()
                time.sleep(0.1)
        print(f"anthropic {anthropic.__version__}, openai {openai.__version__}, {KIND}")
        good = run_tests(log)
    finally:
        front.terminate()
        front.wait(30)
    if not good:
        print(log.read_text()[-4000:], file=sys.stderr)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
