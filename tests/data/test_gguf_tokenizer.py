import numpy as np
import pytest

from splitjax.data.gguf_tokenizer import gguf_tokenizer
from splitjax.data.table import DataError
from splitjax.data.tokenize import Tokenizer

SPACE = "\u0120"  # how byte-level BPE writes a space
TOKENS = [
    "<|end|>",
    "a",
    "b",
    "1",
    "2",
    "12",
    SPACE,
    "ab",
    SPACE + "ab",
    "\u00c3",
    "\u00a9",
]
MERGES = ["1 2", "a b", f"{SPACE} ab"]
KINDS = [3] + [1] * 10


def write(path, *, model="gpt2", pre="smollm", merges=MERGES):
    """An archive without tensors."""
    import gguf

    made = gguf.GGUFWriter(path, "llama")
    made.add_tokenizer_model(model)
    made.add_tokenizer_pre(pre)
    made.add_token_list(TOKENS)
    made.add_token_types(KINDS)
    made.add_token_merges(merges)
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return path


def test_merges_bytes_and_control_tokens(tmp_path):
    write(tmp_path / "model.gguf")
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.vocab == 11
    ids = tokenizer.ids("ab ab b<|end|>é")
    assert ids.dtype == np.int32 and ids.tolist() == [7, 8, 6, 2, 0, 9, 10]
    assert tokenizer.text(ids) == "ab ab bé"


@pytest.mark.parametrize(("pre", "ids"), [("smollm", [3, 4]), ("gpt-2", [5])])
def test_digits_are_apart_where_the_archive_says_so(pre, ids, tmp_path):
    made = gguf_tokenizer(write(tmp_path / "model.gguf", pre=pre))
    assert made.encode("12").ids == ids


def test_other_tokenizers_are_refused(tmp_path):
    path = tmp_path / "model.gguf"
    with pytest.raises(DataError, match="'llama' that splits as 'smollm'"):
        gguf_tokenizer(write(path, model="llama"))
    with pytest.raises(DataError, match="splits as 'qwen2'.*'gpt-2', 'smollm'"):
        gguf_tokenizer(write(path, pre="qwen2"))
    with pytest.raises(DataError, match="there is no .*gone"):
        gguf_tokenizer(tmp_path / "gone.gguf")


@pytest.mark.slow
@pytest.mark.real("smollm2")
def test_the_tokens_of_smollm2(need_data):
    tokenizer = Tokenizer(need_data("smollm2"))
    assert tokenizer.vocab == 49152
    # As Hugging Face's own reading of the archive has them.
    text = " \n = Robert Boulter = \n \n Robert Boulter is an English film"
    wanted = [3717, 446, 6356, 389, 9226, 352, 446, 3717, 3717, 6356, 389, 9226, 352]
    assert tokenizer.ids(text)[:13].tolist() == wanted
    assert tokenizer.text(tokenizer.ids("naïve 2024 – \t ok")) == "naïve 2024 – \t ok"
