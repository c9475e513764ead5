"""SmolLM2-135M trained on WikiText-2, its middle in the cloud, its text at the edge.

Paper: none; the model's own training is another
Run: python -m experiments.finetune --config=configs/lm_smollm2_wikitext.py
Expect: not measured yet. (Un-split and untrained, the first 1,024 tokens of the test
  split have a perplexity of 13.82: tests/train/test_language.py.)
Cost: not measured yet; try --config.steps=2 --config.batch_size=1 --config.window=64
  --config.eval_limit=2 first. The edge holds 67M of 163M parameters (counted by
  tests/train/test_next_token.py::test_smollm2_through_its_cut), since the head has a
  copy of the embeddings
"""

from splitjax.train.next_token import NextToken


def get_config() -> NextToken:
    """The options of this run."""
    return NextToken(
        after=("layer_1", "layer_28"),
        forward="quantize(8)",
        backward="quantize(8, rounding='stochastic')",
        window=256,
        batch_size=8,
        micro=4,
        in_flight=2,
        epochs=1,
        steps=200,
        learning_rate=2e-5,
    )
