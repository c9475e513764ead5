from tests.train.conftest import options as options
