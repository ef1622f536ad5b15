"""OpenAI's Python SDK, and plain HTTP where it has no word, against a running pagoda that serves tests/data/pooling/bert.

BASE_URL=http://127.0.0.1:8000 MODEL=name [API_KEY=key] python tests/sdk/test_embeddings.py
With RERANKER=name the server is to serve tests/data/pooling/bert-cross under that name too. Needs the package openai (any recent
generation). Every function whose name begins with test_ is run; the last line counts, and the exit status is 0 if all passed.
"""

import json
import math
import os
import sys
import traceback
import urllib.error
import urllib.request

import openai

BASE_URL = os.environ.get("BASE_URL", "http://127.0.0.1:8000").rstrip("/").removesuffix("/v1")
MODEL = os.environ.get("MODEL", "")
RERANKER = os.environ.get("RERANKER", "")
API_KEY = os.environ.get("API_KEY", "") or "none"
DATA = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "data", "pooling")


class Skipped(Exception):
    """The check does not apply to this server."""


def golden(name):
    with open(os.path.join(DATA, name + ".json")) as file:
        return json.load(file)["cases"]


def client():
    return openai.OpenAI(base_url=BASE_URL + "/v1", api_key=API_KEY, max_retries=0, timeout=300)


def post(path, body):
    headers = {"content-type": "application/json", "authorization": "Bearer " + API_KEY}
    request = urllib.request.Request(BASE_URL + path, json.dumps(body).encode(), headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


# One text of the references is longer than the model takes.
CUT = {"truncate": True}


def same(a, b):
    """Equal but for what a decimal of an f32 leaves out."""
    return len(a) == len(b) and all(abs(x - y) < 1e-6 for x, y in zip(a, b))


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(x * x for x in b))


def test_vectors_are_the_references():
    cases = golden("bert")
    answer = client().embeddings.create(model=MODEL, input=[case["text"] for case in cases], extra_body=CUT)
    assert answer.object == "list" and answer.model == MODEL
    assert [entry.index for entry in answer.data] == list(range(len(cases)))
    for case, entry in zip(cases, answer.data):
        assert cosine(case["pooled"], entry.embedding) >= 0.9999, case["id"]
        assert abs(math.hypot(*entry.embedding) - 1) < 1e-3
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(len(case["ids"]) for case in cases)


def test_text_tokens_and_formats_agree():
    case = golden("bert")[0]
    create = lambda **extra: client().embeddings.create(**{"model": MODEL, "input": case["text"], **extra}).data[0].embedding
    whole = create()
    assert same(create(encoding_format="float"), whole)
    assert create(input=case["ids"]) == whole == create(input=[case["ids"]])
    short = create(dimensions=8)
    assert len(short) == 8 and abs(math.hypot(*short) - 1) < 1e-3 and cosine(short, whole[:8]) > 0.99999


def test_an_answer_depends_on_its_own_text():
    texts = [case["text"] for case in golden("bert")]
    vectors = [entry.embedding for entry in client().embeddings.create(model=MODEL, input=texts, extra_body=CUT).data]
    backwards = [entry.embedding for entry in client().embeddings.create(model=MODEL, input=texts[::-1], extra_body=CUT).data]
    assert backwards[::-1] == vectors
    assert client().embeddings.create(model=MODEL, input=texts[3]).data[0].embedding == vectors[3]


def test_errors():
    def refused(kind, **changed):
        try:
            client().embeddings.create(**{"model": MODEL, "input": "x", **changed})
        except kind as error:
            return error
        raise AssertionError(f"expected {kind.__name__}")

    assert refused(openai.NotFoundError, model="no-such-model").code == "model_not_found"
    assert refused(openai.BadRequestError, input=[]).param == "input"
    assert refused(openai.BadRequestError, dimensions=100_000).param == "dimensions"
    assert refused(openai.BadRequestError, input="word " * 5000).code == "context_length_exceeded"
    try:
        client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "hi"}])
        raise AssertionError("a model of embeddings does not chat")
    except openai.BadRequestError as error:
        assert error.param == "model"


def test_ollamas_route():
    status, answer = post("/api/embed", {"model": MODEL, "input": ["a", "b"]})
    assert status == 200 and len(answer["embeddings"]) == 2 and answer["prompt_eval_count"] > 0
    assert all(abs(math.hypot(*vector) - 1) < 1e-3 for vector in answer["embeddings"])
    assert post("/api/embed", {"model": MODEL, "input": []})[1]["embeddings"] == []
    status, answer = post("/api/embed", {"model": MODEL, "input": "word " * 5000, "truncate": False})
    assert status == 400 and isinstance(answer["error"], str)


def test_rerank_gives_the_references_scores():
    if not RERANKER:
        raise Skipped("no RERANKER")
    for case in golden("bert-cross"):
        status, answer = post("/v1/rerank", {"model": RERANKER, "query": case["query"], "documents": [case["document"]]})
        expected = 1 / (1 + math.exp(-case["logit"]))
        assert status == 200 and abs(answer["results"][0]["relevance_score"] - expected) < 1e-3, (case["id"], answer)
    documents = [case["document"] for case in golden("bert-cross")]
    _, answer = post("/rerank", {"model": RERANKER, "query": "password", "documents": documents, "return_documents": True})
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == sorted(scores, reverse=True) and len(scores) == len(documents)
    assert all(documents[result["index"]] == result["document"]["text"] for result in answer["results"])
    assert post("/v1/rerank", {"model": MODEL, "query": "q", "documents": ["d"]})[0] == 400


def main():
    passed = failed = skipped = 0
    for name, check in list(globals().items()):
        if not name.startswith("test_"):
            continue
        try:
            check()
            passed += 1
        except Skipped as reason:
            skipped += 1
            print(f"SKIPPED {name}: {reason}")
        except Exception:
            failed += 1
            print(f"FAILED {name}")
            traceback.print_exc(file=sys.stdout)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
