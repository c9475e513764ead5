"""Makes the reference vectors beside this file with Hugging Face's own models.

Run in an environment of its own (torch 2.13.0, transformers 5.23.0,
sentence-transformers 6.2.0), with folders that hold config.json, tokenizer.json and
model.safetensors:

    python tests/models/reference/make.py minilm FOLDER
    python tests/models/reference/make.py mpnet FOLDER
"""

import pathlib
import sys

import numpy as np
import torch
import transformers
from sentence_transformers import SentenceTransformer

SENTENCES = [
    "A man is playing a guitar.",
    "The cat sat on the mat, and then it slept for most of the afternoon.",
    "Split learning cuts a model between an edge device and the cloud.",
    "Yes.",
    "Quarterly revenue rose 12.5% to $3.4 billion; analysts had expected less.",
    "Où est la bibliothèque?",
]
SLICE = 24  # of the width, so that the files stay small


def buckets(model, distance: int) -> np.ndarray:
    """MPNet's bucket of each distance from -distance to distance."""
    relative = torch.arange(-distance, distance + 1)[None]
    encoder = model.encoder
    table = encoder.relative_position_bucket(
        relative, num_buckets=model.config.relative_attention_num_buckets
    )
    return table[0].numpy().astype(np.int32)


def main(name: str, folder: str) -> None:
    """Writes NAME.npz."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    mask = batch["attention_mask"]
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True)
    hidden = torch.stack(out.hidden_states)[..., :SLICE]
    pooled = (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    pooled = torch.nn.functional.normalize(pooled)
    theirs = SentenceTransformer(folder, device="cpu").encode(
        SENTENCES, normalize_embeddings=True
    )
    assert np.abs(theirs - pooled.numpy()).max() < 1e-6
    extra = {"buckets": buckets(model, 600)} if name == "mpnet" else {}
    np.savez_compressed(
        pathlib.Path(__file__).with_name(f"{name}.npz"),
        ids=batch["input_ids"].numpy().astype(np.int32),
        mask=mask.numpy().astype(bool),
        hidden=(hidden * mask[None, ..., None]).numpy(),
        pooler=out.pooler_output.numpy(),
        embedding=pooled.numpy(),
        **extra,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
