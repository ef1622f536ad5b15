#!/usr/bin/env python3
"""Goldens of the architectures that the backend kind `huggingface` runs: tiny random checkpoints through transformers, greedy, in f32.

usage: make_huggingface.py OUT [NAME...]   writes OUT/hf_NAME.json; needs torch and transformers

Weights are the noise of make_tiny.py, so a golden holds no weights: only the configuration, and name, shape, deviation and mean of every
tensor, from which tests make the same checkpoint. The rest is as in the other goldens: prompts, greedy tokens that EOS does not end, the gap
between the two best logprobs of each step, the five best of the first steps."""

import json, os, sys

import numpy as np
import torch
import transformers

from make_tiny import noise, unbf16

SEED, VOCAB, STEPS, TOP_STEPS = 1, 768, 32, 8
BASE = dict(vocab_size=VOCAB, bos_token_id=VOCAB - 3, eos_token_id=VOCAB - 2, torch_dtype="bfloat16")
HF = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=256)
LLAMA = dict(HF, intermediate_size=128, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False)
FALCON = dict(HF, model_type="falcon", alibi=False, bias=False, layer_norm_epsilon=1e-5, hidden_dropout=0.0, attention_dropout=0.0)
# fmt: off
MODELS = {
    "gpt2": ("GPT2LMHeadModel", dict(model_type="gpt2", n_embd=64, n_layer=2, n_head=4, n_positions=256, activation_function="gelu_new")),
    "gptj": ("GPTJForCausalLM", dict(model_type="gptj", n_embd=64, n_layer=2, n_head=4, n_positions=256, rotary_dim=8, n_inner=None,
                                     activation_function="gelu_new", tie_word_embeddings=False)),
    "gpt_neox": ("GPTNeoXForCausalLM", dict(HF, model_type="gpt_neox", intermediate_size=256, rotary_pct=0.25, rotary_emb_base=10000,
                                            use_parallel_residual=True, hidden_act="gelu", layer_norm_eps=1e-5, tie_word_embeddings=False)),
    "gpt_neox-sequential": ("GPTNeoXForCausalLM", dict(HF, model_type="gpt_neox", intermediate_size=256, rotary_pct=1.0,
                                                       rotary_emb_base=20000, use_parallel_residual=False, hidden_act="gelu_new",
                                                       layer_norm_eps=1e-5, tie_word_embeddings=False)),
    "bloom": ("BloomForCausalLM", dict(model_type="bloom", hidden_size=96, n_layer=2, n_head=6, layer_norm_epsilon=1e-5)),
    "falcon": ("FalconForCausalLM", dict(FALCON, multi_query=True, parallel_attn=True, new_decoder_architecture=False)),
    "falcon-new": ("FalconForCausalLM", dict(FALCON, num_kv_heads=2, new_decoder_architecture=True)),
    "falcon-alibi": ("FalconForCausalLM", dict(FALCON, multi_query=False, parallel_attn=False, new_decoder_architecture=False, alibi=True,
                                               bias=True)),
    "mpt": ("MptForCausalLM", dict(model_type="mpt", d_model=64, n_heads=4, n_layers=2, expansion_ratio=4, max_seq_len=256, no_bias=True,
                                   attn_config=dict(alibi=True, attn_type="multihead_attention", alibi_bias_max=8))),
    "opt": ("OPTForCausalLM", dict(HF, model_type="opt", ffn_dim=128, word_embed_proj_dim=64, do_layer_norm_before=True,
                                   activation_function="relu", pad_token_id=1)),
    "phi": ("PhiForCausalLM", dict(HF, model_type="phi", intermediate_size=256, partial_rotary_factor=0.5, rope_theta=10000.0,
                                   hidden_act="gelu_new", layer_norm_eps=1e-5, tie_word_embeddings=False)),
    "stablelm": ("StableLmForCausalLM", dict(LLAMA, model_type="stablelm", num_key_value_heads=2, partial_rotary_factor=0.25,
                                             use_qkv_bias=True, layer_norm_eps=1e-5, hidden_act="silu")),
    "starcoder2": ("Starcoder2ForCausalLM", dict(LLAMA, model_type="starcoder2", num_key_value_heads=2, norm_epsilon=1e-5, use_bias=True,
                                                 hidden_act="gelu_pytorch_tanh", sliding_window=24, tie_word_embeddings=True)),
    "olmo": ("OlmoForCausalLM", dict(LLAMA, model_type="olmo", clip_qkv=1.5, hidden_act="silu")),
    "olmo2": ("Olmo2ForCausalLM", dict(LLAMA, model_type="olmo2", num_key_value_heads=2, hidden_act="silu")),
    "gemma": ("GemmaForCausalLM", dict(LLAMA, model_type="gemma", num_key_value_heads=1, head_dim=32, rms_norm_eps=1e-6, hidden_act="gelu_pytorch_tanh",
                                       hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)),
    "cohere": ("CohereForCausalLM", dict(LLAMA, model_type="cohere", num_key_value_heads=2, logit_scale=0.25, layer_norm_eps=1e-5,
                                         use_qk_norm=False, hidden_act="silu", tie_word_embeddings=True)),
    "granite": ("GraniteForCausalLM", dict(LLAMA, model_type="granite", num_key_value_heads=2, embedding_multiplier=3.0, logits_scaling=2.0,
                                           residual_multiplier=0.5, attention_multiplier=0.2, hidden_act="silu")),
}
# fmt: on


def spread(name, shape, config, tied):
    """(deviation, mean) of a tensor: norms near one, activations of about one everywhere."""
    is_norm = any(part in name for part in ("norm", "ln_")) and name.endswith("weight")
    if len(shape) == 1:
        return (0.1, 0.0 if not is_norm or config["model_type"] == "gemma" else 1.0)
    hidden = shape[1]
    if any(part in name for part in ("wpe", "embed_positions")):
        return (0.3, 0.0)
    if any(part in name for part in ("wte", "embed", "word_embeddings")) and "embed_out" not in name:
        return (1.5 / hidden**0.5 if tied else 1.0, 0.0)
    if any(part in name for part in ("lm_head", "embed_out")):
        return (3.0 / hidden**0.5, 0.0)
    fan_in = shape[0] if config["model_type"] == "gpt2" else shape[1]
    return (3.0 / fan_in**0.5, 0.0)


def build(architecture, config):
    kind = transformers.CONFIG_MAPPING[config["model_type"]]
    # Falcon's eager attention adds ALiBi twice (once in its mask); the other one is what its checkpoints were trained with.
    attention = "sdpa" if config.get("alibi") else "eager"
    model = getattr(transformers, architecture)._from_config(kind.from_dict(dict(config)), attn_implementation=attention, dtype=torch.float32)
    model.eval()
    embedding = model.get_input_embeddings().weight.data_ptr()
    state, tensors = {}, []
    for name, value in model.state_dict().items():
        is_table = value.data_ptr() == embedding
        shape = list(value.shape)
        tied = model.get_output_embeddings().weight.data_ptr() == embedding
        if is_table and tied and any(part in name for part in ("lm_head", "embed_out")):
            continue
        # As checkpoints on the hub call it.
        stored = name.replace("lm_head", "embed_out") if architecture == "GPTNeoXForCausalLM" else name
        deviation, mean = spread(stored, shape, config, tied)
        tensors.append([stored, shape, deviation, mean])
        state[name] = torch.from_numpy(unbf16(noise(SEED, stored, shape, deviation, mean)).copy())
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all("lm_head" in name for name in missing), (missing, unexpected)
    model.tie_weights()
    return model, tensors


def case(model, name, prompt):
    ids, greedy, gaps, tops = list(prompt), [], [], []
    for step in range(STEPS):
        with torch.no_grad():
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        best = torch.topk(torch.log_softmax(logits, -1), 5)
        greedy.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 6))
        if step < TOP_STEPS:
            tops.append([[int(i), round(float(v), 6)] for i, v in zip(best.indices, best.values)])
        ids.append(greedy[-1])
    return dict(id=name, prompt_ids=list(prompt), greedy=greedy, gap=gaps, top5=tops)


def main():
    torch.set_num_threads(1)
    out, names = sys.argv[1], sys.argv[2:] or list(MODELS)
    draw = np.random.RandomState(7)
    prompts = {"one": [288], "short": [288, 459, 467, 481], "long": [int(t) for t in draw.randint(3, VOCAB - 3, 40)]}
    for name in names:
        architecture, config = MODELS[name]
        config = dict(BASE, architectures=[architecture], **config)
        model, tensors = build(architecture, config)
        reference = dict(impl=f"transformers {transformers.__version__}", torch=torch.__version__.split("+")[0], dtype="float32", device="cpu")
        cases = [case(model, id, prompt) for id, prompt in prompts.items()]
        head = dict(suite=f"hf_{name}", reference=reference, seed=SEED, config=config, tensors=tensors)
        text = json.dumps(head, separators=(",", ":"))[:-1] + ',"cases":[\n' + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
        with open(os.path.join(out, f"hf_{name}.json"), "w") as f:
            f.write(text + "\n]}\n")
        print(name, len(set(cases[1]["greedy"])), "different tokens, smallest gap", min(min(c["gap"]) for c in cases), flush=True)


if __name__ == "__main__":
    main()
