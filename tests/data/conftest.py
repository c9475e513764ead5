import pytest

from splitjax.data.synthetic import write_tokenizer
from splitjax.data.tokenize import Tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    """The word-level tokenizer of `toy`."""
    return Tokenizer(write_tokenizer(tmp_path_factory.mktemp("tokenizer")))
