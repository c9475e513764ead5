from tests.train.conftest import _watch as _watch
from tests.train.conftest import language as language
from tests.train.conftest import options as options
from tests.train.conftest import power_cut as power_cut
from tests.train.conftest import tiny_language as tiny_language
