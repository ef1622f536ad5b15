#!/usr/bin/env python3
"""SmolLM2-135M-Instruct.Q4_1.gguf -> a Hugging Face checkpoint with bf16 weights, bit for bit the one the goldens were made with.

usage: make_smollm2.py GGUF OUT     writes OUT/{config,generation_config,tokenizer,tokenizer_config}.json and OUT/model.safetensors
Does nothing when OUT is already complete. Needs numpy and gguf; rounding to bf16 and the file format are written out here."""
import hashlib
import json
import os
import struct
import sys

import numpy as np

WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def sha256(path):
    h = hashlib.sha256()
    with open(path, "rb") as f:
        while block := f.read(1 << 22):
            h.update(block)
    return h.hexdigest()


def bf16(x):
    """float32 -> bf16 bits, round to nearest even"""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def unpermute(w, heads):
    """GGUF keeps q and k rows interleaved (2i and 2i+1 rotate together); Hugging Face rotates i with i + d/2."""
    return w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def read(path):
    from gguf import GGUFReader, dequantize

    reader = GGUFReader(path)
    meta = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: np.ascontiguousarray(dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}
    return meta, tensors


def hf_tensors(meta, t):
    heads, kv_heads = meta["llama.attention.head_count"], meta["llama.attention.head_count_kv"]
    out = {"model.embed_tokens.weight": t["token_embd.weight"], "model.norm.weight": t["output_norm.weight"]}
    for i in range(meta["llama.block_count"]):
        b, p = f"blk.{i}.", f"model.layers.{i}."
        out[p + "self_attn.q_proj.weight"] = unpermute(t[b + "attn_q.weight"], heads)
        out[p + "self_attn.k_proj.weight"] = unpermute(t[b + "attn_k.weight"], kv_heads)
        for hf, gguf in {
            "self_attn.v_proj": "attn_v",
            "self_attn.o_proj": "attn_output",
            "mlp.gate_proj": "ffn_gate",
            "mlp.up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
            "input_layernorm": "attn_norm",
            "post_attention_layernorm": "ffn_norm",
        }.items():
            out[f"{p}{hf}.weight"] = t[f"{b}{gguf}.weight"]
    if "output.weight" in t:
        out["lm_head.weight"] = t["output.weight"]
    return out


def save(path, tensors):
    """safetensors: names sorted, as its own writer lays out tensors of one type."""
    head, end = {"__metadata__": {"format": "pt"}}, 0
    order = sorted(tensors)
    for name in order:
        size = tensors[name].size * 2
        head[name] = {"dtype": "BF16", "shape": list(tensors[name].shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            f.write(bf16(tensors[name]).tobytes())


def tokenizer_json(meta):
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    flags = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    special = [dict(id=i, content=tokens[i], special=kind == 3, **flags) for i, kind in enumerate(types) if kind in (3, 4)]
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, dict(level, add_prefix_space=False)],
        },
        "post_processor": None,
        "decoder": dict(level, add_prefix_space=True),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": meta["tokenizer.ggml.merges"],
        },
    }


def config_json(meta, tied):
    heads, width = meta["llama.attention.head_count"], meta["llama.embedding_length"]
    ids = {name: meta[f"tokenizer.ggml.{key}_token_id"] for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}
    return dict(
        architectures=["LlamaForCausalLM"],
        model_type="llama",
        hidden_act="silu",
        attention_bias=False,
        mlp_bias=False,
        hidden_size=width,
        intermediate_size=meta["llama.feed_forward_length"],
        num_hidden_layers=meta["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=meta["llama.attention.head_count_kv"],
        head_dim=width // heads,
        max_position_embeddings=meta["llama.context_length"],
        rms_norm_eps=round(float(meta["llama.attention.layer_norm_rms_epsilon"]), 10),
        rope_theta=float(meta["llama.rope.freq_base"]),
        rope_scaling=None,
        vocab_size=len(meta["tokenizer.ggml.tokens"]),
        tie_word_embeddings=tied,
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
        pad_token_id=ids["pad"],
        torch_dtype="bfloat16",
    )


def side_files(out, meta, config):
    def write(name, value):
        with open(os.path.join(out, name), "w") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)

    tokens = meta["tokenizer.ggml.tokens"]
    write("config.json", config)
    write("generation_config.json", {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")})
    write("tokenizer.json", tokenizer_json(meta))
    special = {k: tokens[config[k + "_id"]] for k in ("bos_token", "eos_token", "pad_token")}
    write(
        "tokenizer_config.json",
        dict(
            tokenizer_class="PreTrainedTokenizerFast",
            add_prefix_space=False,
            clean_up_tokenization_spaces=False,
            unk_token=tokens[meta["tokenizer.ggml.unknown_token_id"]],
            model_max_length=config["max_position_embeddings"],
            chat_template=meta["tokenizer.chat_template"],
            **special,
        ),
    )


def main():
    gguf, out = sys.argv[1:]
    weights = os.path.join(out, "model.safetensors")
    if os.path.exists(weights) and sha256(weights) == WEIGHTS_SHA256:
        return
    os.makedirs(out, exist_ok=True)
    meta, tensors = read(gguf)
    side_files(out, meta, config_json(meta, "output.weight" not in tensors))
    save(weights + ".part", hf_tensors(meta, tensors))
    found = sha256(weights + ".part")
    if found != WEIGHTS_SHA256:
        sys.exit(f"{weights}.part: sha256 {found}, expected {WEIGHTS_SHA256}")
    os.replace(weights + ".part", weights)


main()
