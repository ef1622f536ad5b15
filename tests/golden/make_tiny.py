#!/usr/bin/env python3
"""Tiny random-weight checkpoints, bit-identical on any machine: weights come from SplitMix64 (integer arithmetic only), no library RNG.

usage: make_tiny.py OUT [ARCH...] [--seed N]   writes OUT/<arch>-s<seed>/ (config, tokeniser, model.safetensors in bf16)
       make_tiny.py --list

`engine/testing` makes the same files in Rust, which is what the tests use; this script is for tools that read Hugging Face folders.
The tensor named NAME of a checkpoint of seed S has, for element i in row-major order,
  base = FNV1a64(f"{S}/{NAME}");  z = splitmix64(base + (i + 1) * 0x9E3779B97F4A7C15)   (mod 2^64; the usual three steps)
  g = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48) - 131070       (integer, mean 0, sd 37837.22)
  w = bf16_rne(f32(mean + g * f64(std / 37837.22)))
Needs numpy only: the safetensors header is written by hand."""

import argparse, json, os, struct
import numpy as np

M64 = (1 << 64) - 1


def fnv(s):
    h = 0xCBF29CE484222325
    for b in s.encode():
        h = ((h ^ b) * 0x100000001B3) & M64
    return h


def noise(seed, name, shape, std, mean=0.0):
    n = int(np.prod(shape))
    with np.errstate(over="ignore"):
        z = np.uint64(fnv(f"{seed}/{name}")) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    k = np.uint64(0xFFFF)
    g = sum(((z >> np.uint64(s)) & k).astype(np.int64) for s in (0, 16, 32, 48)) - 131070
    return bf16((mean + g * np.float64(std / 37837.22)).astype(np.float32)).reshape(shape)


def bf16(x):
    """float32 -> bf16 bits (uint16), round to nearest even"""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def unbf16(b):
    return (b.astype(np.uint32) << 16).view(np.float32)


DT = {"BF16": 2, "F32": 4}


def save(path, tensors, meta=None):
    """tensors: name -> (dtype string, numpy array whose bytes are the data)"""
    head, off = {"__metadata__": meta or {"format": "pt"}}, 0
    for k, (dt, a) in tensors.items():
        assert a.dtype.itemsize == DT[dt], k
        head[k] = dict(dtype=dt, shape=list(a.shape), data_offsets=[off, off + a.nbytes])
        off += a.nbytes
    h = json.dumps(head, separators=(",", ":")).encode()
    h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h)
        for dt, a in tensors.values():
            f.write(np.ascontiguousarray(a).tobytes())


# ---- architectures: config as a hub checkpoint has it -------------------------------------------------------------------------
V = 768
C = dict(
    vocab_size=V,
    bos_token_id=V - 3,
    eos_token_id=V - 2,
    torch_dtype="bfloat16",
    use_cache=True,
    attention_dropout=0.0,
    max_position_embeddings=2048,
    initializer_range=0.02,
)
# fmt: off
ARCH = {
    "qwen2": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", hidden_size=128, intermediate_size=256,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-06, rope_theta=1000000.0,
        use_sliding_window=False, sliding_window=None, max_window_layers=3, tie_word_embeddings=True,
    ),
    "qwen2-yarn": dict(
        architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_act="silu", hidden_size=128, intermediate_size=192,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, rms_norm_eps=1e-06, rope_theta=10000.0,
        use_sliding_window=False, sliding_window=None, max_window_layers=2, tie_word_embeddings=False,
        rope_scaling=dict(type="yarn", rope_type="yarn", factor=4.0, original_max_position_embeddings=128), max_position_embeddings=512,
    ),
    "qwen3": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_act="silu", hidden_size=128, intermediate_size=256,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=128, rms_norm_eps=1e-06, rope_theta=1000000.0,
        rope_scaling=None, attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=2,
        tie_word_embeddings=True,
    ),
    "llama": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=256, intermediate_size=512,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=64, rms_norm_eps=1e-05, rope_theta=500000.0,
        attention_bias=False, mlp_bias=False,
        rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64, rope_type="llama3"),
        tie_word_embeddings=False,
    ),
    "mistral": dict(
        architectures=["MistralForCausalLM"], model_type="mistral", hidden_act="silu", hidden_size=64, intermediate_size=128,
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-05, rope_theta=10000.0,
        sliding_window=24, tie_word_embeddings=False,
    ),
    "phi3": dict(
        architectures=["Phi3ForCausalLM"], model_type="phi3", hidden_act="silu", hidden_size=128, intermediate_size=192,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-05, rope_theta=10000.0, rope_scaling=None,
        sliding_window=None, partial_rotary_factor=1.0, original_max_position_embeddings=2048, embd_pdrop=0.0, resid_pdrop=0.0,
        pad_token_id=V - 2, tie_word_embeddings=False,
    ),
    "gemma2": dict(
        architectures=["Gemma2ForCausalLM"], model_type="gemma2", hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
        hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=24, attention_bias=False, attn_logit_softcapping=10.0,
        final_logit_softcapping=12.0, query_pre_attn_scalar=48, cache_implementation="hybrid", pad_token_id=0, tie_word_embeddings=True,
    ),
    "gemma3": dict(
        architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_activation="gelu_pytorch_tanh", hidden_size=128,
        intermediate_size=256, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=64, rms_norm_eps=1e-06,
        rope_theta=1000000.0, rope_local_base_freq=10000.0, sliding_window=24, sliding_window_pattern=2, attention_bias=False,
        query_pre_attn_scalar=64, rope_scaling=None, pad_token_id=0, tie_word_embeddings=True,
    ),
    "mixtral": dict(
        architectures=["MixtralForCausalLM"], model_type="mixtral", hidden_act="silu", hidden_size=128, intermediate_size=128,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-05, rope_theta=1000000.0,
        sliding_window=None, num_local_experts=4, num_experts_per_tok=2, output_router_logits=False, router_aux_loss_coef=0.0,
        router_jitter_noise=0.0, tie_word_embeddings=False,
    ),
    "qwen3-moe": dict(
        architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", hidden_act="silu", hidden_size=128, intermediate_size=256,
        moe_intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=64, rms_norm_eps=1e-06,
        rope_theta=1000000.0, rope_scaling=None, attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=2,
        num_experts=8, num_experts_per_tok=2, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], output_router_logits=False,
        router_aux_loss_coef=0.0, tie_word_embeddings=False,
    ),
}
# fmt: on
for a in ARCH.values():
    for k, v in C.items():
        a.setdefault(k, v)


def tensors(arch, seed):
    c = ARCH[arch]
    t = {}
    H, I, L, nh, nk = (
        c[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    )
    hd = c.get("head_dim", H // nh)
    gem = arch.startswith("gemma")

    def put(name, shape, std, mean=0.0):
        t[name] = ("BF16", noise(seed, name, shape, std, mean))

    lin = lambda name, o, i, gain=1.0: put(name + ".weight", (o, i), gain / i**0.5)
    norm = lambda name, n=H, std=0.2: put(name + ".weight", (n,), std, 0.0 if gem else 1.0)  # gemma multiplies by 1+w
    put("model.embed_tokens.weight", (V, H), (3.0 / H**0.5) if c["tie_word_embeddings"] else 1.0)
    for l in range(L):
        p = f"model.layers.{l}."
        a = p + "self_attn."
        norm(p + "input_layernorm")
        if gem:
            norm(p + "pre_feedforward_layernorm")
            put(p + "post_attention_layernorm.weight", (H,), 0.3, 4.0)
            put(p + "post_feedforward_layernorm.weight", (H,), 0.3, 4.0)
        else:
            norm(p + "post_attention_layernorm")
        qk = 1.0 if arch in ("qwen3", "qwen3-moe", "gemma3") else 1.7  # peaked attention, so that rope and mask faults show
        if arch == "phi3":
            lin(a + "qkv_proj", (nh + 2 * nk) * hd, H, 1.7)
        else:
            lin(a + "q_proj", nh * hd, H, qk)
            lin(a + "k_proj", nk * hd, H, qk)
            lin(a + "v_proj", nk * hd, H, 1.5)
        if c["model_type"] == "qwen2":
            put(a + "q_proj.bias", (nh * hd,), 0.7)
            put(a + "k_proj.bias", (nk * hd,), 0.7)
            put(a + "v_proj.bias", (nk * hd,), 0.5)
        if arch in ("qwen3", "qwen3-moe"):
            put(a + "q_norm.weight", (hd,), 0.3, 1.6)
            put(a + "k_norm.weight", (hd,), 0.3, 1.6)
        if arch == "gemma3":
            put(a + "q_norm.weight", (hd,), 0.3, 0.6)
            put(a + "k_norm.weight", (hd,), 0.3, 0.6)
        lin(a + "o_proj", H, nh * hd, 1.5)
        if arch == "phi3":
            lin(p + "mlp.gate_up_proj", 2 * I, H, 1.5)
            lin(p + "mlp.down_proj", H, I, 1.5)
        elif arch == "mixtral":
            lin(p + "block_sparse_moe.gate", c["num_local_experts"], H, 3.0)
            for e in range(c["num_local_experts"]):
                q = p + f"block_sparse_moe.experts.{e}."
                lin(q + "w1", I, H, 1.5)
                lin(q + "w3", I, H, 1.5)
                lin(q + "w2", H, I, 1.5)
        elif arch == "qwen3-moe":
            lin(p + "mlp.gate", c["num_experts"], H, 3.0)
            m = c["moe_intermediate_size"]
            for e in range(c["num_experts"]):
                q = p + f"mlp.experts.{e}."
                lin(q + "gate_proj", m, H, 1.5)
                lin(q + "up_proj", m, H, 1.5)
                lin(q + "down_proj", H, m, 1.5)
        else:
            lin(p + "mlp.gate_proj", I, H, 1.5)
            lin(p + "mlp.up_proj", I, H, 1.5)
            lin(p + "mlp.down_proj", H, I, 1.5)
    norm("model.norm", std=0.1)
    if not c["tie_word_embeddings"]:
        lin("lm_head", V, H, 3.0)
    return t


# ---- a byte-level BPE tokenizer for them: 256 bytes + merges learnt from a fixed text + 3 specials, vocab exactly V ------------------
TEXT = (
    "The quick brown fox jumps over the lazy dog. Once upon a time there was a small model that could only speak in riddles, "
    "and the people of the "
    "town came to listen to it every evening after the market had closed. def main(args): return sum(x for x in args if x is not None)\n"
    "for i in range(10):\n    print(i)\nThere is nothing either good or bad, but thinking makes it so. What is the capital of the country? "
    "user assistant system tool function name arguments content role message import from class self true false null 0 1 2 3 4 5 6 7 8 9 "
) * 2


def tokenizer():
    import re

    bs = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    m = {b: chr(b) for b in bs}
    for n, b in enumerate(b for b in range(256) if b not in bs):
        m[b] = chr(256 + n)
    vocab = [m[b] for b in range(256)]
    merges = []
    words = {}
    for w in re.findall(r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", TEXT):
        k = tuple(m[b] for b in w.encode())
        words[k] = words.get(k, 0) + 1
    while len(vocab) < V - 3:
        pairs = {}
        for w, n in words.items():
            for a, b in zip(w, w[1:]):
                pairs[a, b] = pairs.get((a, b), 0) + n
        pairs = {p: n for p, n in pairs.items() if p[0] + p[1] not in vocab}
        if not pairs:  # text used up: pad the vocabulary with two-byte tokens that no merge makes
            vocab += [f"\u0100pad{i}" for i in range(V - 3 - len(vocab))]
            break
        a, b = min(pairs, key=lambda p: (-pairs[p], p))
        vocab.append(a + b)
        merges.append(f"{a} {b}")
        new = {}
        for w, n in words.items():
            o, i = [], 0
            while i < len(w):
                if i + 1 < len(w) and (w[i], w[i + 1]) == (a, b):
                    o.append(a + b)
                    i += 2
                else:
                    o.append(w[i])
                    i += 1
            new[tuple(o)] = new.get(tuple(o), 0) + n
        words = new
    sp = ["<|im_start|>", "<|im_end|>", "<|pad|>"]
    vocab += sp
    assert len(vocab) == V == len(set(vocab))
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            dict(id=V - 3 + i, content=s, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
            for i, s in enumerate(sp)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {t: i for i, t in enumerate(vocab)},
            "merges": merges,
        },
    }


CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_tok = None


def side_files(d, cfg):
    global _tok
    _tok = _tok or tokenizer()
    w = lambda n, o: json.dump(o, open(f"{d}/{n}", "w"), indent=1, ensure_ascii=False)
    w("config.json", cfg)
    w("generation_config.json", dict(bos_token_id=V - 3, eos_token_id=V - 2))
    w("tokenizer.json", _tok)
    w(
        "tokenizer_config.json",
        dict(
            tokenizer_class="PreTrainedTokenizerFast",
            bos_token="<|im_start|>",
            eos_token="<|im_end|>",
            pad_token="<|pad|>",
            clean_up_tokenization_spaces=False,
            model_max_length=cfg["max_position_embeddings"],
            chat_template=CHAT,
        ),
    )


def make(out, arch, seed):
    d = f"{out}/{arch}-s{seed}"
    os.makedirs(d, exist_ok=True)
    save(d + "/model.safetensors", tensors(arch, seed))
    side_files(d, ARCH[arch])
    return d


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("out", nargs="?")
    ap.add_argument("arch", nargs="*")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--list", action="store_true")
    a = ap.parse_args()
    if a.list:
        print(*ARCH)
    else:
        import hashlib

        for x in a.arch or ARCH:
            d = make(a.out, x, a.seed)
            print(d, hashlib.sha256(open(d + "/model.safetensors", "rb").read()).hexdigest())
