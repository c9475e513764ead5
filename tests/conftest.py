"""What every test runs under: strict numerics, eight CPU devices, no network.

* Arrays of unlike rank or dtype do not mix silently, and warnings are errors
  (pyproject.toml), so that a slip shows where it is made.
* Eight CPU devices stand in for a mesh. Each xdist worker keeps to its own cores.
* Compiled programs are kept between runs in the user's cache folder. Tests run a
  program once or twice, so LLVM does not optimize what they compile with `-m`, nor in
  processes that they start; JAX_DISABLE_MOST_OPTIMIZATIONS=0 has it do so, as `make
  exact` does.
* Sockets reach only this machine. `.ci/offline` does the same for native code.
* `@pytest.mark.real("minilm", ...)` or `need_data("minilm")` skips when an archive is
  not cached, and fails where SPLITJAX_REQUIRE_DATA names it (or is 1: all).
"""

import csv
import ctypes
import gc
import ipaddress
import os
import pathlib
import re
import socket
import tempfile

import jax
import pytest

ROOM = 4 * 2**30  # bytes of a worker, from which on it forgets programs
REQUIRED_DATA = os.environ.get("SPLITJAX_REQUIRE_DATA", "").split(",")


def _keep_to_own_cores() -> None:
    """Gives worker i of n every n-th core, before XLA counts them for its threads."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker.startswith("gw") or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    index = int(worker.removeprefix("gw"))
    os.sched_setaffinity(0, cores[index::workers] or {cores[index % len(cores)]})


def _compile_cache() -> str:
    """Returns the folder of compiled programs, outside the checkout."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    if not os.access(pathlib.Path(cache).parent, os.W_OK):
        cache = tempfile.gettempdir()
    return str(pathlib.Path(cache, "splitjax", "xla"))


def _resident_bytes() -> int:
    """Returns how much memory this process has now; 0 where the system does not say."""
    statm = pathlib.Path("/proc/self/statm")
    pages = int(statm.read_text().split()[1]) if statm.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture(autouse=True, scope="module")
def _room():
    """Thousands of compiled programs would fill the memory; the disk has them, too."""
    yield
    if _resident_bytes() > ROOM:
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)


def _is_here(address: object) -> bool:
    """Returns whether a socket address is a unix socket or on loopback."""
    if not isinstance(address, tuple):
        return True
    host = address[0]
    try:
        return host in ("", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _guard(name: str):
    """Wraps a method of `socket.socket` whose last argument is an address."""
    inner = getattr(socket.socket, name)

    def guarded(self, *args):
        if not _is_here(args[-1]):
            raise PermissionError(f"a test may reach loopback only, not {args[-1]}")
        return inner(self, *args)

    return guarded


_keep_to_own_cores()
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_compilation_cache_dir", _compile_cache())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
for _name in ("connect", "connect_ex", "sendto"):
    setattr(socket.socket, _name, _guard(_name))


@pytest.fixture
def key() -> jax.Array:
    """The one source of chance in a test; fold in a name for a second stream."""
    return jax.random.key(0)


def _need_data(name: str) -> pathlib.Path:
    """Returns the cached archive's folder; skips, or fails where data is required."""
    from splitjax.data import fetch

    path = fetch.cached(name)
    if path is None:
        required = {"1", name} & set(REQUIRED_DATA)
        stop = pytest.fail if required else pytest.skip
        stop(f"{name} is not cached: run `make data`")
    return path


@pytest.fixture
def need_data():
    """The function `need_data(name)`: the folder of an archive, or a skip."""
    return _need_data


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> pathlib.Path:
    """A folder as Hugging Face has it: a random BERT that knows the words of `toy`."""
    from splitjax.data.synthetic import write_tokenizer
    from splitjax.models.bert import bert
    from splitjax.models.bert_config import BertConfig
    from splitjax.models.export import save
    from splitjax.models.pretrained import start

    sizes = dict(vocab=17, width=16, heads=2, layers=2, ffn=32, positions=16)
    chance = dict(init_std=0.2, dropout=0.0, attention_dropout=0.0)
    config = BertConfig(**sizes, **chance)
    kinds = {"ids": jax.numpy.int32, "types": jax.numpy.int32, "mask": bool}
    spec = {name: jax.ShapeDtypeStruct((2, 8), kind) for name, kind in kinds.items()}
    params, _ = start(bert(config), {}, key=jax.random.key(0), spec=spec)
    folder = write_tokenizer(tmp_path_factory.mktemp("tiny") / "model")
    save(folder, config, params)
    return folder


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory):
    """A function to the folder of a random decoder, beside it 1,200 words in text.txt.

    It knows the words of `toy`; of those in the text each is as likely as the others.
    """
    import numpy as np

    from splitjax.data.synthetic import write_tokenizer
    from splitjax.models.decoder import decoder
    from splitjax.models.decoder_config import DecoderConfig
    from splitjax.models.export import save
    from splitjax.models.pretrained import start

    def make(**more) -> pathlib.Path:
        folder = write_tokenizer(tmp_path_factory.mktemp("decoder") / "model")
        sizes = dict(width=16, heads=4, kv_heads=2, layers=1, ffn=24, positions=16)
        config = DecoderConfig(**{**sizes, "vocab": 17, "init_std": 0.3, **more})
        kinds = {"ids": jax.numpy.int32, "mask": bool}
        spec = {n: jax.ShapeDtypeStruct((1, 2), kind) for n, kind in kinds.items()}
        fresh = jax.jit(lambda key: start(decoder(config), {}, key=key, spec=spec)[0])
        save(folder, config, fresh(jax.random.key(1)))
        words = np.random.default_rng(0).choice(["red", "dog", "cat", "sky"], 1200)
        (folder / "text.txt").write_text(" ".join(words))
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory) -> pathlib.Path:
    """A folder with train.csv (24 texts, two classes) and dev.csv (10)."""
    from splitjax.data.synthetic import toy

    folder = tmp_path_factory.mktemp("task")
    for split, rows in (("train", 24), ("dev", 10)):
        table = toy(split, rows=rows)
        with (folder / f"{split}.csv").open("w", newline="") as file:
            lines = zip(table.text_a, table.label.tolist(), strict=True)
            csv.writer(file).writerows([("text", "label"), *lines])
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Sets how programs are compiled, before the first one is."""
    if config.option.markexpr in ("slow", "not slow"):
        told = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        quick = told not in ("0", "false")
        jax.config.update("jax_disable_most_optimizations", quick)
        # The older emitters compile sooner, where LLVM does not optimize. The newer
        # jaxlib has them no more, and ends a process that names an unknown flag.
        if quick and jax.__version_info__ < (0, 11):
            flags = os.environ.get("XLA_FLAGS", "")
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_use_fusion_emitters=false"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuses a name that holds an address: no two workers would agree on it."""
    loose = [item.nodeid for item in items if re.search(r"at 0x[0-9a-f]+", item.nodeid)]
    if loose:
        raise pytest.UsageError(f"give these tests ids: {loose}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Checks the archives that the `real` marker of a test names."""
    for marker in item.iter_markers("real"):
        for name in marker.args:
            _need_data(name)
