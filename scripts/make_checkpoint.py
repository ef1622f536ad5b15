#!/usr/bin/env python3
"""Writes a checkpoint of random weights in the shape of a public model, with a word-level tokeniser, so that speed can be measured without
any download: `make_checkpoint.py SHAPE FOLDER [--device cpu]`. Shapes: see SHAPES. Needs PyTorch; a GPU makes 7B in seconds.

Weights are normal, never zero: power and clocks of a GPU depend on the bits. The same shape gives the same bytes on the same kind of device.
"""
import argparse
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import torch

# hidden, layers, heads, KV heads, intermediate, vocabulary, head tied to the embedding, bias of q, k and v, rope theta, epsilon.
SHAPES = {
    "tiny": (128, 2, 2, 1, 256, 768, True, True, 1e6, 1e-6),
    "0.5b": (896, 24, 14, 2, 4864, 151936, True, True, 1e6, 1e-6),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, True, True, 1e6, 1e-6),
    "3b": (2048, 36, 16, 2, 11008, 151936, True, True, 1e6, 1e-6),
    "7b": (3584, 28, 28, 4, 18944, 152064, False, True, 1e6, 1e-6),
    "14b": (5120, 48, 40, 8, 13824, 152064, False, True, 1e6, 1e-5),
    "32b": (5120, 64, 40, 8, 27648, 152064, False, True, 1e6, 1e-5),
    "llama-8b": (4096, 32, 32, 8, 14336, 128256, False, False, 5e5, 1e-5),
}
STD = 0.02
BIAS_STD = 0.1
SHARD_BYTES = 2 << 30
# Shards written at once: PyTorch and the system leave Python's lock while they copy.
THREADS = 4


def tensors(shape):
    """Name, shape and standard deviation (None: ones) of every tensor, in the order of a file."""
    hidden, layers, heads, kv_heads, intermediate, vocab, tied, bias, _, _ = SHAPES[shape]
    head_dim = hidden // heads
    yield "model.embed_tokens.weight", (vocab, hidden), STD
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden), STD
            if bias:
                yield f"{prefix}self_attn.{name}_proj.bias", (rows,), BIAS_STD
        yield prefix + "self_attn.o_proj.weight", (hidden, heads * head_dim), STD
        yield prefix + "mlp.gate_proj.weight", (intermediate, hidden), STD
        yield prefix + "mlp.up_proj.weight", (intermediate, hidden), STD
        yield prefix + "mlp.down_proj.weight", (hidden, intermediate), STD
        yield prefix + "input_layernorm.weight", (hidden,), None
        yield prefix + "post_attention_layernorm.weight", (hidden,), None
    yield "model.norm.weight", (hidden,), None
    if not tied:
        yield "lm_head.weight", (vocab, hidden), STD


def count(shape):
    total = 1
    for size in shape:
        total *= size
    return total


def shards(shape):
    """The tensors in groups of at most SHARD_BYTES, as far as single ones allow it."""
    group, size = [], 0
    for tensor in tensors(shape):
        num_bytes = 2 * count(tensor[1])
        if group and size + num_bytes > SHARD_BYTES:
            yield group
            group, size = [], 0
        group.append(tensor)
        size += num_bytes
    yield group


def write_shard(path, group, seed, device):
    """A safetensors file; what is in it follows from the seed."""
    generator = torch.Generator(device).manual_seed(seed)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, _ in group:
        start, end = end, end + 2 * count(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for _, shape, std in group:
            if std is None:
                values = torch.ones(shape, device=device)
            else:
                values = torch.randn(shape, device=device, generator=generator).mul_(std)
            bits = values.to(torch.bfloat16).cpu().view(torch.int16)
            file.write(memoryview(bits.numpy()).cast("B"))


def write_config(folder, shape):
    hidden, layers, heads, kv_heads, intermediate, vocab, tied, bias, theta, eps = SHAPES[shape]
    family = ("Qwen2ForCausalLM", "qwen2") if bias else ("LlamaForCausalLM", "llama")
    put(folder, "config.json", {
        "architectures": [family[0]], "model_type": family[1], "hidden_act": "silu", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "vocab_size": vocab,
        "tie_word_embeddings": tied, "rms_norm_eps": eps, "rope_theta": theta, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
        "use_sliding_window": False, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1,
    })
    put(folder, "generation_config.json", {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1})


def write_tokenizer(folder, vocab):
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    words = {f"t{i}": i for i in range(vocab - len(special))}
    words.update({word: vocab - len(special) + i for i, word in enumerate(special)})
    added = [
        {"id": words[word], "content": word, "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        for word in special
    ]
    put(folder, "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    })
    put(folder, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
        "model_max_length": 32768,
        "chat_template": "{% for m in messages %}<|im_start|> {{ m['content'] }} <|im_end|> {% endfor %}<|im_start|>",
    })


def put(folder, name, value):
    with open(os.path.join(folder, name), "w") as file:
        json.dump(value, file)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, exist_ok=True)
    write_config(arguments.folder, arguments.shape)
    write_tokenizer(arguments.folder, SHAPES[arguments.shape][5])
    groups = list(shards(arguments.shape))
    index, total, written = {}, 0, []
    with ThreadPoolExecutor(THREADS) as threads:
        for i, group in enumerate(groups):
            name = "model.safetensors" if len(groups) == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
            written.append(threads.submit(write_shard, os.path.join(arguments.folder, name), group, i, arguments.device))
            index.update({tensor[0]: name for tensor in group})
            total += sum(2 * count(tensor[1]) for tensor in group)
    for shard in written:
        shard.result()
    if len(groups) > 1:
        put(arguments.folder, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    print(f"{arguments.folder}: {arguments.shape}, {total} bytes")


main()
