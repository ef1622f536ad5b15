#!/usr/bin/env python3
"""Perplexity of a checkpoint as transformers computes it from its bf16 weights, and from the NF4 that bitsandbytes makes of them, beside what
`pagoda eval ppl` says: all in one run, over the same windows of the same text.

usage: perplexity_bitsandbytes.py CHECKPOINT TEXT [--pagoda PATH] [--window 512] [--max-windows N] [--products] [--record OUT.json]

Weights are quantised by bitsandbytes on the CPU, in blocks of 64 without double quantisation, all linear layers but lm_head. Its products on a
CPU are not those of f32 even when asked for, so `nf4` are the weights that bitsandbytes dequantises with f32 products, as ours are; `--products`
adds a row of what it computes itself. Needs torch, transformers and bitsandbytes; `--record` writes the golden."""
import argparse
import hashlib
import json
import math
import subprocess

import bitsandbytes
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

NF4 = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False, bnb_4bit_compute_dtype=torch.float32
)
OURS = ["--quantization", "bitsandbytes"]


def windows(checkpoint, text, size, most):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    front = tokenizer("")["input_ids"]
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    step = size - len(front)
    cut = [front + tokens[i : i + step] for i in range(0, len(tokens), step)]
    return [window for window in cut if len(window) >= 2][:most]


def load(checkpoint, **options):
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, **options).eval()


def dequantised(model):
    """The same model with dense f32 matrices of what bitsandbytes makes of its codes."""
    for module in list(model.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, bitsandbytes.nn.Linear4bit):
                dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                values = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                dense.weight = torch.nn.Parameter(values.float(), requires_grad=False)
                dense.bias = layer.bias
                setattr(module, name, dense)
    return model


@torch.no_grad()
def perplexity(model, cut):
    total, count = 0.0, 0
    for window in cut:
        ids = torch.tensor([window])
        logprobs = model(ids).logits[0, :-1].double().log_softmax(-1)
        total -= logprobs.gather(1, ids[0, 1:, None]).sum().item()
        count += len(window) - 1
    return math.exp(total / count), count


def ours(arguments, flags):
    command = [arguments.pagoda, "eval", "ppl", arguments.text, arguments.checkpoint, "--window", str(arguments.window), "--device", "cpu"]
    if arguments.max_windows:
        command += ["--max-windows", str(arguments.max_windows)]
    return float(subprocess.run(command + flags, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoint")
    parser.add_argument("text")
    parser.add_argument("--pagoda")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--products", action="store_true")
    parser.add_argument("--record")
    arguments = parser.parse_args()
    with open(arguments.text, encoding="utf-8") as file:
        text = file.read()
    cut = windows(arguments.checkpoint, text, arguments.window, arguments.max_windows)
    golden = {"window": arguments.window, "windows": len(cut), "text_sha256": hashlib.sha256(text.encode()).hexdigest()}
    print("weights       transformers      pagoda")

    def row(name, model, flags):
        golden[name], golden["tokens"] = perplexity(model, cut)
        there = f"{ours(arguments, flags):10.4f}" if arguments.pagoda and flags is not None else ""
        print(f"{name:12}  {golden[name]:12.4f}  {there}", flush=True)

    row("bf16", load(arguments.checkpoint), [])
    # Its first product repacks the codes: they are dequantised before.
    row("nf4", dequantised(load(arguments.checkpoint, quantization_config=NF4, device_map="cpu")), OURS)
    if arguments.products:
        row("nf4 products", load(arguments.checkpoint, quantization_config=NF4, device_map="cpu"), None)
    golden["versions"] = {module.__name__: module.__version__ for module in (torch, transformers, bitsandbytes)}
    print(f"{golden['tokens']} tokens, {golden['versions']}")
    if arguments.record:
        with open(arguments.record, "w", encoding="utf-8") as file:
            json.dump(golden, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
