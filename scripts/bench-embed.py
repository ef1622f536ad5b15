#!/usr/bin/env python3
"""Embeddings per second: pagoda's server against sentence-transformers on the same machine, texts, batches and threads, in turns.

usage: bench-embed.py PAGODA MODEL_FOLDER [--make] [--threads N] [--repeat N] [--texts N] [--batches 1,32,256]
PAGODA: the binary, built with --release. Needs sentence-transformers (made with 6.2.0, torch 2.11.0); without it the same is done by
transformers alone: pad, run, mean of the rows, length one. --make writes MODEL_FOLDER first: random weights in the shape of
all-MiniLM-L6-v2 with a tokeniser of the words below. pagoda is asked over HTTP, one request a batch, base64. A round runs one program, then the other; the table has the median round. CPU seconds count what the program itself used,
so they say more than the clock where other work runs on the machine. Vectors of both must agree (cosine 0.9999).
"""

import argparse
import base64
import http.client
import json
import os
import random
import statistics
import struct
import subprocess
import time

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand part place case week "
    "company system program question work government number night point home water room mother area money story fact month lot right study "
    "book eye job word business issue side kind head house service friend father power hour game line end member law car city community name"
).split()


def texts(count, seed=1):
    """Of 4 to 160 words, most of them short, as passages and queries are."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=int(4 + 156 * rng.random() ** 2))) for _ in range(count)]


class Pagoda:
    def __init__(self, binary, model, threads):
        command = [binary, "serve", model, "--served-model-name", "m", "--port", "0", "--threads", str(threads), "--log-level", "warn", "--device", "cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        url = next(line for line in self.process.stdout if "http://" in line).rsplit(" at ", 1)[1].strip()
        # One connection, as a client that counts keeps it.
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"))

    def embed(self, batch):
        body = json.dumps({"model": "m", "input": batch, "encoding_format": "base64", "truncate": True}).encode()
        self.connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        answer = json.load(self.connection.getresponse())
        self.tokens = answer["usage"]["prompt_tokens"]
        return [struct.unpack(f"<{len(data) // 4}f", data) for data in (base64.b64decode(e["embedding"]) for e in answer["data"])]

    def cpu_seconds(self):
        fields = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class SentenceTransformers:
    def __init__(self, model, threads):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(threads)
        self.model = SentenceTransformer(model, device="cpu")

    def embed(self, batch):
        return self.model.encode(batch, batch_size=len(batch), normalize_embeddings=True, show_progress_bar=False)

    def cpu_seconds(self):
        return time.process_time()


class Transformers:
    """What sentence-transformers does with such a model."""

    def __init__(self, model, threads):
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        self.torch, self.tokenizer, self.model = torch, AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()

    def embed(self, batch):
        inputs = self.tokenizer(batch, padding=True, truncation=True, max_length=256, return_tensors="pt")
        with self.torch.inference_mode():
            rows = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).float()
            pooled = (rows * mask).sum(1) / mask.sum(1)
            return self.torch.nn.functional.normalize(pooled, dim=1).numpy()

    def cpu_seconds(self):
        return time.process_time()


def reference(model, threads):
    """Name and program."""
    try:
        return "sentence-transformers", SentenceTransformers(model, threads)
    except ImportError:
        return "transformers", Transformers(model, threads)


def make(folder):
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: idx for idx, word in enumerate(special + sorted(set(WORDS)))}
    vocab.update({f"unused{idx}": idx for idx in range(len(vocab), 30522)})
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=256, **names).save_pretrained(folder)
    torch.manual_seed(1)
    config = BertConfig(vocab_size=30522, hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, initializer_range=0.1)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)


def measure(program, batches):
    begin, cpu = time.perf_counter(), program.cpu_seconds()
    for batch in batches:
        program.embed(batch)
    return time.perf_counter() - begin, program.cpu_seconds() - cpu


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pagoda")
    parser.add_argument("model")
    parser.add_argument("--make", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--batches", default="1,32,256")
    arguments = parser.parse_args()
    corpus = texts(arguments.texts)
    if arguments.make:
        make(arguments.model)
    ours, (name, theirs) = Pagoda(arguments.pagoda, arguments.model, arguments.threads), reference(arguments.model, arguments.threads)
    try:
        cosines = [sum(float(x) * float(y) for x, y in zip(a, b)) for a, b in zip(ours.embed(corpus), theirs.embed(corpus))]
        tokens = ours.tokens
        assert min(cosines) >= 0.9999, min(cosines)
        print(f"{len(corpus)} texts, {tokens} tokens, {arguments.threads} threads, median of {arguments.repeat}, least cosine {min(cosines):.6f}")
        print("| batch | program | texts/s | tokens/s | CPU s per 1000 texts |\n|---|---|---|---|---|")
        for size in map(int, arguments.batches.split(",")):
            batches = [corpus[i : i + size] for i in range(0, len(corpus), size)]
            rounds = {"pagoda": [], name: []}
            for _ in range(arguments.repeat):
                rounds["pagoda"].append(measure(ours, batches))
                rounds[name].append(measure(theirs, batches))
            for program, times in rounds.items():
                wall, cpu = (statistics.median(column) for column in zip(*times))
                print(f"| {size} | {program} | {len(corpus) / wall:.1f} | {tokens / wall:.0f} | {cpu / len(corpus) * 1000:.2f} |", flush=True)
    finally:
        ours.process.terminate()
        ours.process.wait()


if __name__ == "__main__":
    main()
