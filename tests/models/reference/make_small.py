"""Makes the references of small random models with Hugging Face's own ones.

Run in an environment of its own (torch 2.13.0, transformers 5.24.0), from this folder:

    python make_small.py

Each NAME.npz holds config.json as text, the names and shapes of the file's tensors
(whose values are those of `small.weight`), the input, and the logits that the library
computes of that folder.
"""

import json
import pathlib
import tempfile

import numpy as np
import torch
import transformers as tf
from safetensors.numpy import load_file, save_file
from small import weight

TEXT = dict(vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA = dict(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=24,
    rope_theta=5000.0,
)
T5 = dict(
    vocab_size=40,
    d_model=16,
    d_kv=6,
    d_ff=24,
    num_layers=2,
    num_decoder_layers=3,
    num_heads=2,
    relative_attention_num_buckets=8,
    relative_attention_max_distance=20,
    decoder_start_token_id=0,
)
VIT = dict(
    image_size=8,
    patch_size=4,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=24,
    num_labels=5,
)
GPT2 = dict(n_embd=16, n_head=4, n_layer=2, n_positions=24)
MODELS = {
    "gpt2": (tf.GPT2LMHeadModel, tf.GPT2Config(**TEXT, **GPT2)),
    "llama": (tf.LlamaForCausalLM, tf.LlamaConfig(**TEXT, **LLAMA)),
    "t5": (tf.T5ForConditionalGeneration, tf.T5Config(**T5)),
    "t5_gated": (
        tf.T5ForConditionalGeneration,
        tf.T5Config(**T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    ),
    "vit": (tf.ViTForImageClassification, tf.ViTConfig(**VIT)),
}


def inputs(name: str) -> dict[str, np.ndarray]:
    """What a model reads: texts padded on the right, or pictures."""
    random = np.random.default_rng(7)
    if name == "vit":
        return {"pixel_values": random.normal(size=(3, 3, 8, 8)).astype(np.float32)}
    lengths = np.array([12, 9, 1])
    out = {
        "input_ids": random.integers(3, 40, (3, 12)),
        "attention_mask": (np.arange(12)[None] < lengths[:, None]).astype(np.int64),
    }
    if name.startswith("t5"):
        out["decoder_input_ids"] = random.integers(3, 40, (3, 7))
        shorter = np.array([7, 5, 1])
        mask = (np.arange(7)[None] < shorter[:, None]).astype(np.int64)
        out["decoder_attention_mask"] = mask
    return out


def main() -> None:
    """Writes all of them."""
    for name, (kind, config) in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            kind(config).save_pretrained(folder)
            path = pathlib.Path(folder, "model.safetensors")
            shapes = {k: v.shape for k, v in load_file(path).items()}
            if name == "t5_gated":
                shapes["lm_head.weight"] = shapes["shared.weight"]
            save_file(
                {k: weight(k, v) for k, v in shapes.items()}, path, {"format": "pt"}
            )
            fields = json.loads(pathlib.Path(folder, "config.json").read_text())
            if name == "t5_gated":  # as the published ones of this form have it
                fields["tie_word_embeddings"] = False
                pathlib.Path(folder, "config.json").write_text(json.dumps(fields))
            model = kind.from_pretrained(folder, dtype=torch.float32).eval()
        if "lm_head.weight" in shapes:
            want = weight("lm_head.weight", shapes["lm_head.weight"])
            assert np.array_equal(model.lm_head.weight.detach().numpy(), want)
        given = inputs(name)
        with torch.no_grad():
            out = model(**{key: torch.from_numpy(v) for key, v in given.items()})
        np.savez_compressed(
            f"{name}.npz",
            config=np.array(json.dumps(fields)),
            tensors=np.array(json.dumps(shapes)),
            logits=out.logits.numpy(),
            **given,
        )


if __name__ == "__main__":
    main()
