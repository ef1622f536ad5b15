#!/usr/bin/env python3
"""Tiny models of embeddings and rerankers with what transformers makes of them: tests/data/pooling/NAME/ and NAME.json.

usage: make_pooling.py OUT [NAME...]        (OUT: tests/data/pooling)
Needs torch, transformers, tokenizers, safetensors (made with torch 2.11.0, transformers 5.23.0 and, from distilbert
on, 5.24.0, tokenizers 0.23.3).
Weights are drawn from a fixed seed and stored as bf16; the reference runs in float32 on exactly those values, eager attention, one input
at a time. Tokenisers are trained on the texts below. A case of an embedding: text, ids, pooled row before normalisation. A case of a
reranker: query, document, ids, token types, logit.
"""
import json
import os
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

WORDS = "The quick brown fox jumps over the lazy dog while seven wizards quietly mix jugs of black quartz and pure gold. "
TEXTS = [
    "The cat sits on the mat.",
    "A feline is resting on a rug.",
    "How do I reset my password?",
    "",
    "x",
    "def add(a, b): return a + b",
    "Übermäßig große Straße, naïve café.",
    "日本の首都は東京です。",
    WORDS * 3,
    WORDS * 14,
]
QUERIES = [
    ("Which animal sits on the mat?", "The cat sits on the mat."),
    ("Which animal sits on the mat?", "Quantum computers use qubits."),
    ("password", "I forgot my login credentials. How do I reset my password?"),
    ("", "An empty query."),
    ("An empty document.", ""),
    ("A short query", WORDS * 12),
    (WORDS * 6, WORDS * 6),
]
CORPUS = TEXTS + [part for pair in QUERIES for part in pair] + ["Judge whether the Document meets the requirements", "Instruct Query"]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE = (
    '<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct provided. '
    'Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
SIZES = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=512)
PROMPTS = {"prompts": {"query": "query: ", "document": "passage: "}, "default_prompt_name": None}


def wordpiece():
    tk = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tk.normalizer = normalizers.BertNormalizer(lowercase=True)
    tk.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tk.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=220, special_tokens=special))
    ids = {name: tk.token_to_id(name) for name in special}
    tk.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    tk.decoder = decoders.WordPiece()
    return tk, dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")


def unigram():
    tk = Tokenizer(models.Unigram())
    tk.normalizer = normalizers.NFKC()
    tk.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=220, special_tokens=special, unk_token="<unk>", shrinking_factor=0.75)
    tk.train_from_iterator(CORPUS, trainer)
    tk.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tk.decoder = decoders.Metaspace()
    return tk, dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", bos_token="<s>", eos_token="</s>")


def byte_level(special, single, pair, names):
    tk = Tokenizer(models.BPE())
    tk.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tk.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, special_tokens=special))
    ends = [(name, tk.token_to_id(name)) for name in special]
    tk.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)
    tk.decoder = decoders.ByteLevel()
    return tk, names


def modern():
    names = dict(pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
    return byte_level(["[PAD]", "[CLS]", "[SEP]"], "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:0 [SEP]", names)


def qwen(single):
    names = dict(pad_token="<|endoftext|>", eos_token="<|im_end|>")
    tk, names = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], single, "$A $B", names)
    tk.add_tokens([AddedToken(word, normalized=False) for word in ("yes", "no")])
    return tk, names


def spec(name):
    """(tokeniser, config, pooling or None for rerankers, model_max_length, files of sentence-transformers)"""
    bert = dict(SIZES, model_type="bert", layer_norm_eps=1e-12, type_vocab_size=2, pad_token_id=0)
    xlm = dict(SIZES, model_type="xlm-roberta", layer_norm_eps=1e-5, type_vocab_size=1, pad_token_id=1, max_position_embeddings=514)
    modern_bert = dict(
        SIZES, model_type="modernbert", num_hidden_layers=4, local_attention=16, global_attn_every_n_layers=3, pad_token_id=0,
        cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2, global_rope_theta=160000.0, local_rope_theta=10000.0,
    )
    qwen3 = dict(
        SIZES, model_type="qwen3", num_key_value_heads=1, head_dim=16, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_theta=1e6, max_position_embeddings=1024, eos_token_id=2, bos_token_id=None, pad_token_id=0,
    )
    distil = dict(
        model_type="distilbert", dim=48, hidden_dim=64, n_layers=2, n_heads=3, max_position_embeddings=512, pad_token_id=0,
    )
    mpnet = dict(
        SIZES, model_type="mpnet", layer_norm_eps=1e-12, relative_attention_num_buckets=32, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        max_position_embeddings=514,
    )
    one_label = dict(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    table = {
        "bert": (wordpiece, bert, "mean", 256),
        "bert-cls": (wordpiece, dict(bert, hidden_act="gelu_new"), "cls", 64),
        "xlm-roberta": (unigram, xlm, "mean", 512),
        "modernbert": (modern, modern_bert, "cls", 512),
        "qwen3-embedding": (lambda: qwen("$A <|endoftext|>"), qwen3, "lasttoken", 1024),
        "bert-cross": (wordpiece, dict(bert, **one_label), None, 64),
        "xlm-roberta-cross": (unigram, dict(xlm, **one_label), None, 512),
        "modernbert-cross": (modern, dict(modern_bert, classifier_pooling="mean", classifier_bias=True, norm_bias=True, attention_bias=True, mlp_bias=True, **one_label), None, 256),
        "qwen3-reranker": (lambda: qwen("$A"), qwen3, "yes-no", 1024),
        "distilbert": (wordpiece, distil, "mean", 128),
        "distilbert-cross": (wordpiece, dict(distil, **one_label), None, 64),
        "mpnet": (unigram, mpnet, "mean", 512),
        "mpnet-cross": (unigram, dict(mpnet, **one_label), None, 256),
        "bert-dense": (wordpiece, bert, "mean", 256),
    }
    return table if name is None else table[name]


def draw(model, seed):
    """Larger weights than a fresh model has, so that every part of it shows in the answer; rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in sorted(model.named_parameters()):
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = "norm" in name.lower() and name.endswith("weight")
        scale = 0.2 if tensor.dim() < 2 else 0.3 if "embed_tokens" in name else 1.0 if "embed" in name else 2.0 / tensor.shape[-1] ** 0.5
        tensor.data = ((1.0 if is_norm else 0.0) + scale * noise).to(torch.bfloat16).float()


def pool(hidden, how):
    return {"mean": hidden.mean(0), "cls": hidden[0], "lasttoken": hidden[-1]}[how]


# Modules behind pooling: numbers in and out, activation, whether there is a bias.
DENSE = {"bert-dense": [(48, 32, "torch.nn.modules.activation.Tanh", True), (32, 24, "torch.nn.modules.linear.Identity", False)]}


def dense_layers(name, seed):
    """Weights and biases of the Dense modules, rounded to bf16."""
    generator = torch.Generator().manual_seed(seed)
    draw_one = lambda *shape: (0.3 * torch.randn(*shape, generator=generator)).to(torch.bfloat16).float()
    return [(draw_one(n, k), draw_one(n) if bias else torch.zeros(n)) for k, n, _, bias in DENSE.get(name, [])]


def project(name, row, layers):
    for (_, _, activation, _), (weight, bias) in zip(DENSE.get(name, []), layers):
        row = weight.double() @ row + bias.double()
        row = row.tanh() if activation.endswith("Tanh") else row
    return row


def write_dense(folder, spec_of_layer, layer):
    k, n, activation, bias = spec_of_layer
    os.makedirs(folder, exist_ok=True)
    config = dict(in_features=k, out_features=n, bias=bias, activation_function=activation)
    json.dump(config, open(folder + "/config.json", "w"))
    tensors = {"linear.weight": layer[0].contiguous()}
    if bias:
        tensors["linear.bias"] = layer[1].contiguous()
    save_file(tensors, folder + "/model.safetensors", metadata={"format": "pt"})


def write_folder(folder, name, tk, names, model, pooling, max_len, layers):
    os.makedirs(folder, exist_ok=True)
    tk.save(folder + "/tokenizer.json", pretty=False)
    put = lambda file, value: json.dump(value, open(f"{folder}/{file}", "w"), ensure_ascii=False)
    put("tokenizer_config.json", dict(names, tokenizer_class="PreTrainedTokenizerFast", model_max_length=max_len))
    model.save_pretrained(folder)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in load_file(folder + "/model.safetensors").items()}
    if name == "qwen3-embedding":  # as they are published: the bare decoder's names
        weights = {key.removeprefix("model."): value for key, value in weights.items()}
    save_file(weights, folder + "/model.safetensors", metadata={"format": "pt"})
    if os.path.exists(folder + "/generation_config.json"):
        os.remove(folder + "/generation_config.json")
    if pooling in ("mean", "cls", "lasttoken"):
        dense = DENSE.get(name, [])
        kinds = ["Transformer", "Pooling"] + ["Dense"] * len(dense) + (["Normalize"] if name != "bert-cls" else [])
        entry = lambda idx, kind: dict(idx=idx, name=str(idx), path="" if idx == 0 else f"{idx}_{kind}", type=f"sentence_transformers.models.{kind}")
        put("modules.json", [entry(idx, kind) for idx, kind in enumerate(kinds)])
        for idx, (spec_of_layer, layer) in enumerate(zip(dense, layers)):
            write_dense(f"{folder}/{2 + idx}_Dense", spec_of_layer, layer)
        os.makedirs(folder + "/1_Pooling", exist_ok=True)
        keys = dict(cls="pooling_mode_cls_token", mean="pooling_mode_mean_tokens", lasttoken="pooling_mode_lasttoken")
        put("1_Pooling/config.json", {"word_embedding_dimension": SIZES["hidden_size"], **{key: how == pooling for how, key in keys.items()}})
        put("sentence_bert_config.json", dict(max_seq_length=max_len, do_lower_case=False))
        put("config_sentence_transformers.json", PROMPTS)


def encoder_ids(tk, max_len, *texts):
    fast = PreTrainedTokenizerFast(tokenizer_object=tk)
    # As a batch of one: else an empty second text counts as none.
    batch = [[text] for text in texts]
    out = fast(*batch, truncation="longest_first" if len(texts) > 1 else True, max_length=max_len, return_token_type_ids=True)
    return out["input_ids"][0], out["token_type_ids"][0]


def make(out, name, seed):
    make_tokenizer, config, pooling, max_len = spec(name)
    tk, names = make_tokenizer()
    kind = config.pop("model_type")
    config = AutoConfig.for_model(kind, vocab_size=tk.get_vocab_size() + 3, attn_implementation="eager", **config)
    auto = AutoModelForSequenceClassification if pooling is None else AutoModelForCausalLM if kind == "qwen3" else AutoModel
    model = auto.from_config(config).eval()
    if hasattr(model, "pooler"):
        model.pooler = None
    draw(model, seed)
    layers = dense_layers(name, seed)
    write_folder(f"{out}/{name}", name, tk, names, model, pooling, max_len, layers)
    rounded = lambda values: [round(float(value), 6) for value in values]
    cases = []
    for idx, text in enumerate(TEXTS if pooling in ("mean", "cls", "lasttoken") else []):
        ids, types = encoder_ids(tk, max_len, text)
        if not ids:
            continue
        batch = torch.tensor([ids])
        with torch.no_grad():
            hidden = (model.model if kind == "qwen3" else model)(batch).last_hidden_state[0].double()
        cases.append(dict(id=f"{name}-{idx}", text=text, ids=ids, pooled=rounded(project(name, pool(hidden, pooling), layers))))
    for idx, (query, document) in enumerate(QUERIES if pooling in (None, "yes-no") else []):
        if pooling == "yes-no":
            encode = lambda text: tk.encode(text, add_special_tokens=False).ids
            before, after = encode(BEFORE), encode(AFTER)
            body = encode(f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}")
            ids = before + body[: max_len - len(before) - len(after)] + after
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].double()
            logit, types = logits[tk.token_to_id("yes")] - logits[tk.token_to_id("no")], [0] * len(ids)
        else:
            ids, types = encoder_ids(tk, max_len, query, document)
            extra = dict(token_type_ids=torch.tensor([types])) if kind == "bert" else {}
            with torch.no_grad():
                logit = model(torch.tensor([ids]), **extra).logits[0, 0].double()
        cases.append(dict(id=f"{name}-{idx}", query=query, document=document, ids=ids, token_types=types, logit=round(float(logit), 6)))
    head = dict(model=name, pooling=pooling, max_seq_len=max_len, reference=f"transformers {transformers.__version__}, float32")
    with open(f"{out}/{name}.json", "w") as file:
        file.write(json.dumps(head)[:-1] + ', "cases": [\n' + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]}\n")
    print(name, len(cases), "cases")


if __name__ == "__main__":
    torch.set_num_threads(1)
    target, chosen = sys.argv[1], sys.argv[2:] or list(spec(None))
    for number, name in enumerate(spec(None)):
        if name in chosen:
            make(target, name, 100 + number)
