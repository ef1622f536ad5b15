#!/usr/bin/env python3
"""Writes a checkpoint of random weights in the shape of a public model, with a word-level tokeniser, so that speed can be measured without
any download: `make_checkpoint.py SHAPE FOLDER [--format awq] [--device cpu]`. Shapes: see SHAPES. Needs PyTorch; a GPU makes 7B in seconds.
Formats: dense bf16, or the linear layers of the decoder in AWQ (GEMM packing) or GPTQ (4 bits, symmetric), groups of 128.

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
GROUP = 128
FORMATS = ("bf16", "awq", "gptq")
ITEM_BYTES = {"BF16": 2, "F16": 2, "I32": 4}
SHARD_BYTES = 2 << 30
# Shards written at once: PyTorch and the system leave Python's lock while they copy.
THREADS = 4


def tensors(shape, form):
    """Name, type, shape and maker (a function of shape, device and generator) of every tensor, in the order of a file."""
    def dense(name, shape, std):
        return name, "BF16", shape, normal(std)

    def linear(name, rows, cols):
        return [dense(f"{name}.weight", (rows, cols), STD)] if form == "bf16" else coded(form, name, rows, cols)

    hidden, layers, heads, kv_heads, intermediate, vocab, tied, bias, _, _ = SHAPES[shape]
    head_dim = hidden // heads
    yield dense("model.embed_tokens.weight", (vocab, hidden), STD)
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        for name, rows in (("q", heads * head_dim), ("k", kv_heads * head_dim), ("v", kv_heads * head_dim)):
            yield from linear(f"{prefix}self_attn.{name}_proj", rows, hidden)
            if bias:
                yield dense(f"{prefix}self_attn.{name}_proj.bias", (rows,), BIAS_STD)
        yield from linear(prefix + "self_attn.o_proj", hidden, heads * head_dim)
        yield from linear(prefix + "mlp.gate_proj", intermediate, hidden)
        yield from linear(prefix + "mlp.up_proj", intermediate, hidden)
        yield from linear(prefix + "mlp.down_proj", hidden, intermediate)
        yield prefix + "input_layernorm.weight", "BF16", (hidden,), ones
        yield prefix + "post_attention_layernorm.weight", "BF16", (hidden,), ones
    yield "model.norm.weight", "BF16", (hidden,), ones
    if not tied:
        yield dense("lm_head.weight", (vocab, hidden), STD)


def coded(form, name, rows, cols):
    """The tensors of a linear layer in four bits; zero points in the middle."""
    packed = (cols, rows // 8) if form == "awq" else (cols // 8, rows)
    # GPTQ stores zero points less one.
    zeros = 0x88888888 - (1 << 32) if form == "awq" else 0x77777777
    yield f"{name}.qweight", "I32", packed, random_words
    fill = lambda shape, device, _: torch.full(shape, zeros, device=device, dtype=torch.int32)
    yield f"{name}.qzeros", "I32", (cols // GROUP, rows // 8), fill
    yield f"{name}.scales", "F16", (cols // GROUP, rows), scales


def normal(std):
    return lambda shape, device, generator: torch.randn(shape, device=device, generator=generator).mul_(std).to(torch.bfloat16)


def ones(shape, device, _):
    return torch.ones(shape, device=device, dtype=torch.bfloat16)


def random_words(shape, device, generator):
    return torch.randint(-(1 << 31), 1 << 31, shape, device=device, generator=generator, dtype=torch.int64).to(torch.int32)


def scales(shape, device, generator):
    """Such that a code less its zero, times the scale, deviates by about STD: codes are equally likely."""
    return torch.rand(shape, device=device, generator=generator).mul_(0.5).add_(0.75).mul_(STD / 4.6).to(torch.float16)


def count(shape):
    total = 1
    for size in shape:
        total *= size
    return total


def num_bytes_of(tensor):
    return ITEM_BYTES[tensor[1]] * count(tensor[2])


def shards(shape, form):
    """The tensors in groups of at most SHARD_BYTES, as far as single ones allow it."""
    group, size = [], 0
    for tensor in tensors(shape, form):
        num_bytes = num_bytes_of(tensor)
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
    for tensor in group:
        start, end = end, end + num_bytes_of(tensor)
        header[tensor[0]] = {"dtype": tensor[1], "shape": list(tensor[2]), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for _, _, shape, make in group:
            bits = make(shape, device, generator).cpu()
            file.write(memoryview(bits.view(torch.int16).numpy()).cast("B"))


def quantization_config(form):
    if form == "awq":
        return {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    return {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}


def write_config(folder, shape, form):
    hidden, layers, heads, kv_heads, intermediate, vocab, tied, bias, theta, eps = SHAPES[shape]
    family = ("Qwen2ForCausalLM", "qwen2") if bias else ("LlamaForCausalLM", "llama")
    put(folder, "config.json", {
        "architectures": [family[0]], "model_type": family[1], "hidden_act": "silu", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "intermediate_size": intermediate, "vocab_size": vocab,
        "tie_word_embeddings": tied, "rms_norm_eps": eps, "rope_theta": theta, "max_position_embeddings": 32768, "torch_dtype": "bfloat16",
        "use_sliding_window": False, "bos_token_id": vocab - 2, "eos_token_id": vocab - 1,
        **({} if form == "bf16" else {"quantization_config": quantization_config(form)}),
    })
    put(folder, "generation_config.json", {"bos_token_id": vocab - 2, "eos_token_id": vocab - 1})


def write_tokenizer(folder, vocab):
    special = ["<unk>", "<|im_start|>", "<|im_end|>"]
    # Printable ASCII first, so that a grammar has texts to choose from.
    ascii_words = [chr(code) for code in range(0x20, 0x7F)]
    words = {word: i for i, word in enumerate(ascii_words)}
    words.update({f"t{i}": i for i in range(len(ascii_words), vocab - len(special))})
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
    parser.add_argument("--format", choices=FORMATS, default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    os.makedirs(arguments.folder, exist_ok=True)
    write_config(arguments.folder, arguments.shape, arguments.format)
    write_tokenizer(arguments.folder, SHAPES[arguments.shape][5])
    groups = list(shards(arguments.shape, arguments.format))
    index, total, written = {}, 0, []
    with ThreadPoolExecutor(THREADS) as threads:
        for i, group in enumerate(groups):
            name = "model.safetensors" if len(groups) == 1 else f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors"
            written.append(threads.submit(write_shard, os.path.join(arguments.folder, name), group, i, arguments.device))
            index.update({tensor[0]: name for tensor in group})
            total += sum(num_bytes_of(tensor) for tensor in group)
    for shard in written:
        shard.result()
    if len(groups) > 1:
        put(arguments.folder, "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": index})
    print(f"{arguments.folder}: {arguments.shape}, {arguments.format}, {total} bytes")


main()
