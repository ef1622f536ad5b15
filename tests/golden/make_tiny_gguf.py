#!/usr/bin/env python3
"""Tiny GGUF models from make_tiny.py's checkpoints.

usage: make_tiny_gguf.py OUT [--seed N] [NAME...]   writes OUT/NAME-s<seed>.gguf and OUT/NAME-s<seed>-f32/, the same weights dequantised
NAMEs: llama-q4_k_m (Q4_K; attn_v, ffn_down, token_embd, output Q6_K; llama3 scaling as rope_freqs.weight; q and k rows interleaved),
llama-q8_0, llama-q5_k, qwen2-q5_1, qwen2-q4_0 (not interleaved, F32 biases, tied). `engine/testing` makes the same files in Rust.
Needs numpy and gguf. The quantisers of Q4_K, Q5_K and Q6_K are simple: no search for better scales."""

import os, sys
import numpy as np
import make_tiny as T

f32 = np.float32
NAMES = {
    "llama-q4_k_m": ("llama", "Q4_K"),
    "llama-q8_0": ("llama", "Q8_0"),
    "llama-q5_k": ("llama", "Q5_K"),
    "qwen2-q5_1": ("qwen2", "Q5_1"),
    "qwen2-q4_0": ("qwen2", "Q4_0"),
}
h16 = lambda x: np.ascontiguousarray(x.astype(np.float16)).view(np.uint8).reshape(len(x), 2)


def k45(w, five):
    b = w.reshape(-1, 8, 32).astype(f32)
    mx, mn = b.max(2), np.maximum(-b.min(2), 0)
    top = 31 if five else 15
    s = np.maximum((mx + mn) / top, 1e-8)
    d, dm = np.maximum(s.max(1) / 63, 1e-7).astype(np.float16), np.maximum(mn.max(1) / 63, 1e-7).astype(np.float16)
    D, M = d.astype(f32)[:, None], dm.astype(f32)[:, None]
    sc, m = np.clip(np.rint(s / D), 1, 63).astype(np.uint8), np.clip(np.rint(mn / M), 0, 63).astype(np.uint8)
    c = np.clip(np.rint((b + (M * m)[..., None]) / (D * sc)[..., None]), 0, top).astype(np.uint8)
    k = np.concatenate([sc[:, :4] | (sc[:, 4:] >> 4 << 6), m[:, :4] | (m[:, 4:] >> 4 << 6), (sc[:, 4:] & 15) | ((m[:, 4:] & 15) << 4)], 1)
    lo = c & 15
    qs = (lo[:, 0::2] | (lo[:, 1::2] << 4)).reshape(len(b), 128)
    parts = [h16(d), h16(dm), k]
    if five:
        parts.append(np.bitwise_or.reduce((c >> 4) << np.arange(8, dtype=np.uint8)[None, :, None], axis=1))
    return np.concatenate(parts + [qs], 1)


def k6(w):
    b = w.reshape(-1, 16, 16).astype(f32)
    i = np.abs(b).argmax(2)
    s = -np.take_along_axis(b, i[..., None], 2)[..., 0] / 32
    d = np.maximum(np.abs(s).max(1) / 127, 1e-7).astype(np.float16)
    sc = np.clip(np.rint(s / d.astype(f32)[:, None]), -128, 127).astype(np.int8)
    sc[sc == 0] = 1
    c = (np.clip(np.rint(b / (d.astype(f32)[:, None] * sc)[..., None]), -32, 31) + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    ql = np.concatenate([(c[:, :, 0] & 15) | ((c[:, :, 2] & 15) << 4), (c[:, :, 1] & 15) | ((c[:, :, 3] & 15) << 4)], 2).reshape(-1, 128)
    qh = ((c[:, :, 0] >> 4) | (c[:, :, 1] >> 4 << 2) | (c[:, :, 2] >> 4 << 4) | (c[:, :, 3] >> 4 << 6)).reshape(-1, 64)
    return np.concatenate([ql, qh, sc.view(np.uint8), h16(d)], 1)


def quant(t, w):
    """-> raw bytes [N, row bytes], dequantised"""
    import gguf

    raw = (
        k45(w, t == "Q5_K")
        if t in ("Q4_K", "Q5_K")
        else k6(w) if t == "Q6_K" else gguf.quants.quantize(np.ascontiguousarray(w, f32), gguf.GGMLQuantizationType[t])
    )
    raw = np.ascontiguousarray(raw).view(np.uint8).reshape(w.shape[0], -1)
    y = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[t]).reshape(w.shape)
    e = np.sqrt(((y - w) ** 2).mean() / (w**2).mean())
    assert e < {"Q4_0": 0.12, "Q4_K": 0.12, "Q5_1": 0.06, "Q5_K": 0.06, "Q6_K": 0.04, "Q8_0": 0.01}[t], (t, e)
    return raw, y


def make(out, name, seed):
    import gguf, json

    arch, base = NAMES[name]
    c = T.ARCH[arch]
    ts = T.tensors(arch, seed)
    nh, nk = c["num_attention_heads"], c["num_key_value_heads"]
    hd = c.get("head_dim", c["hidden_size"] // nh)
    os.makedirs(out, exist_ok=True)
    path = f"{out}/{name}-s{seed}.gguf"
    g = gguf.GGUFWriter(path, arch)
    g.add_name(f"tiny-{name}")
    g.add_context_length(c["max_position_embeddings"])
    g.add_embedding_length(c["hidden_size"])
    g.add_block_count(c["num_hidden_layers"])
    g.add_feed_forward_length(c["intermediate_size"])
    g.add_head_count(nh)
    g.add_head_count_kv(nk)
    g.add_key_length(hd)
    g.add_value_length(hd)
    g.add_rope_dimension_count(hd)
    g.add_rope_freq_base(c["rope_theta"])
    g.add_layer_norm_rms_eps(c["rms_norm_eps"])
    g.add_vocab_size(T.V)
    g.add_file_type({"Q4_K": 15, "Q8_0": 7, "Q5_K": 17, "Q5_1": 9, "Q4_0": 2}[base])
    tk = T.tokenizer()
    toks = sorted(tk["model"]["vocab"], key=tk["model"]["vocab"].get)
    g.add_tokenizer_model("gpt2")
    g.add_tokenizer_pre("gpt-2")
    g.add_token_list(toks)
    g.add_token_types([3 if i >= T.V - 3 else 1 for i in range(T.V)])
    g.add_token_merges(tk["model"]["merges"])
    g.add_bos_token_id(T.V - 3)
    g.add_eos_token_id(T.V - 2)
    g.add_pad_token_id(T.V - 1)
    g.add_add_bos_token(False)
    g.add_chat_template(T.CHAT)
    ren = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    deq = {}
    for k, (_, a) in ts.items():
        w = T.unbf16(a).reshape(a.shape)
        stem, kind = k.rsplit(".", 1)
        p = stem.split(".")
        gk = ren[stem] if stem in ren else f"blk.{p[2]}.{ren['.'.join(p[3:])]}"
        if w.ndim == 1:
            g.add_tensor(f"{gk}.{kind}", w.copy())
            deq[k] = ("F32", w)
            continue
        t = (
            base
            if base != "Q4_K" or not any(s in gk for s in ("attn_v", "ffn_down", "token_embd", "output.")) and gk != "output"
            else "Q6_K"
        )
        raw, y = quant(t, w)
        deq[k] = ("F32", y)
        n = nh if gk.endswith("attn_q") else nk if gk.endswith("attn_k") else 0
        if arch == "llama" and n:
            raw = np.ascontiguousarray(raw.reshape(n, 2, hd // 2, -1).swapaxes(1, 2)).reshape(
                raw.shape
            )  # row order only: blocks run along a row
        g.add_tensor(f"{gk}.weight", raw, raw_dtype=gguf.GGMLQuantizationType[t])
    rs = c.get("rope_scaling")
    if rs:
        f = 1.0 / c["rope_theta"] ** (np.arange(0, hd, 2) / hd)
        wl = 2 * np.pi / f
        lo, hi, fa, o = rs["low_freq_factor"], rs["high_freq_factor"], rs["factor"], rs["original_max_position_embeddings"]
        sm = (o / wl - lo) / (hi - lo)
        g.add_tensor("rope_freqs.weight", np.where(wl < o / hi, 1.0, np.where(wl > o / lo, fa, 1 / ((1 - sm) / fa + sm))).astype(f32))
    g.write_header_to_file()
    g.write_kv_data_to_file()
    g.write_tensors_to_file()
    g.close()
    d = path[:-5] + "-f32"
    os.makedirs(d, exist_ok=True)
    T.save(d + "/model.safetensors", deq)
    T.side_files(d, c | dict(torch_dtype="float32"))
    return path, d


if __name__ == "__main__":
    a = sys.argv[1:]
    out = a[0]
    seed = int(a[a.index("--seed") + 1]) if "--seed" in a else 1
    names = [x for x in a[1:] if x in NAMES] or list(NAMES)
    for n in names:
        print(*make(out, n, seed))
