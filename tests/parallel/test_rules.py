import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.core.factor import factorize
from splitjax.core.stage import Stage, join, repeat, substitute
from splitjax.core.tree import flat, where
from splitjax.factors.lora import fit as lora_fit
from splitjax.factors.low_rank import fit as low_rank_fit
from splitjax.factors.mpo_fit import fit as mpo_fit
from splitjax.factors.mpo_fit import share
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.factors.product import svd
from splitjax.factors.quantized import fit as quantize
from splitjax.factors.smartdeal import SmartDeal
from splitjax.metrics.collectives import count_collectives
from splitjax.models import bert, decoder, heads, mlp, moe, resnet, t5, vgg, vit
from splitjax.models.bert_config import BertConfig
from splitjax.models.decoder_config import DecoderConfig
from splitjax.models.experts import Moe
from splitjax.models.squeeze import Squeeze
from splitjax.models.t5_config import T5Config
from splitjax.models.vit_config import VitConfig
from splitjax.parallel.halves import tp_halves
from splitjax.parallel.mesh import make_cloud_mesh
from splitjax.parallel.rules import RULES, Rule, place, place_like, table
from splitjax.parallel.scale import Scale, checkpointed

B, T, D = 8, 5, 32
SIZES = dict(vocab=64, width=D, heads=4, layers=2, ffn=64)
BERT = BertConfig(**SIZES, positions=16, dropout=0.0, attention_dropout=0.0)
LLAMA = DecoderConfig(**SIZES, kv_heads=4, tied=False)
MPNET = BertConfig(**SIZES, positions=16, family="mpnet", types=0, buckets=8)


@pytest.fixture(scope="module")
def mesh():
    return make_cloud_mesh("data=2,tensor=4")


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


IDS = {"ids": spec(B, T, dtype=jnp.int32), "mask": spec(B, T, dtype=bool)}
BOTH = {
    "decoder_ids": spec(B, T, dtype=jnp.int32),
    "decoder_mask": spec(B, T, dtype=bool),
}
PIXELS = spec(2, 32, 32, 3)
MODELS = {
    "bert": (bert.bert(BERT, heads.classification(4), squeeze={1: Squeeze(4)}), IDS),
    "mpnet": (bert.bert(MPNET), IDS),
    "experts": (substitute(bert.bert(BERT), moe.moe_ffn(BERT, 1, Moe(4))), IDS),
    "decoder": (decoder.decoder(LLAMA), IDS),
    "gated experts": (
        substitute(decoder.decoder(LLAMA), moe.moe_ffn(LLAMA, 1, Moe(4))),
        IDS,
    ),
    "t5": (t5.t5(T5Config(**SIZES, gated=True, tied=False)), {**IDS, **BOTH}),
    "vit": (vit.vit(VitConfig(layers=1)), spec(2, 224, 224, 3)),
    "vgg": (vgg.vgg(10, blocks=((8, 2), (16, 3)), hidden=(16, 16)), PIXELS),
    "resnet": (resnet.resnet(resnet.ResNetConfig((1, 1), width=8), 10), PIXELS),
    "bottleneck": (
        resnet.resnet(resnet.ResNetConfig((1, 1), True, 8, bias=True), 10),
        PIXELS,
    ),
    "mlp": (mlp.mlp([8, 8, 8, 4]), spec(4, 8)),
}
CUT = {  # some of what must not be whole, by the mesh's axes
    "bert": {
        "embed/word/embedding": P("tensor"),
        "layer_0/attention/key/kernel": P(None, "tensor"),
        "layer_0/attention/key/bias": P("tensor"),
        "layer_0/attention/out/kernel": P("tensor"),
        "layer_0/attention/out/bias": P(),
        "layer_0/ffn/wi/kernel": P(None, "tensor"),
        "layer_0/ffn/wo/kernel": P("tensor"),
        "layer_1/squeeze/v/kernel": P(),
        "layer_1/expand/u/kernel": P(None, "tensor"),
        "layer_1/expand/wo/kernel": P("tensor"),
    },
    "mpnet": {"layer_0/attention/relative_bias/embedding": P()},
    "experts": {
        "layer_1/ffn/router/kernel": P(),
        "layer_1/ffn/wi/kernel": P(None, None, "tensor"),
        "layer_1/ffn/wo/kernel": P(None, "tensor"),
        "layer_1/ffn/wi/bias": P(None, "tensor"),
    },
    "decoder": {
        "layer_0/ffn/gate/kernel": P(None, "tensor"),
        "head/out/kernel": P(None, "tensor"),
    },
    "gated experts": {
        "layer_1/ffn/gate/kernel": P(None, None, "tensor"),
        "layer_1/ffn/wo/kernel": P(None, "tensor"),
    },
    "t5": {
        "decoder/layer_0/cross/out/kernel": P("tensor"),
        "head/out/kernel": P(None, "tensor"),
    },
    "vit": {"layer_0/ffn/wo/kernel": P("tensor"), "embed/cls": P()},
    "vgg": {
        "block1/0/conv/kernel": P(None, None, None, "tensor"),
        "block1/0/norm/scale": P("tensor"),
        "block1/1/conv/kernel": P(None, None, "tensor"),
        "block1/1/norm/scale": P(),
        "block2/2/conv/kernel": P(),
        "head/hidden_0/kernel": P(None, "tensor"),
        "head/hidden_1/kernel": P("tensor"),
    },
    "resnet": {
        "layer1/0/conv_1/kernel": P(None, None, None, "tensor"),
        "layer1/0/norm_1/scale": P("tensor"),
        "layer1/0/conv_2/kernel": P(None, None, "tensor"),
        "layer1/0/norm_2/scale": P(),
        "stem/conv/kernel": P(),
    },
    "bottleneck": {
        "layer1/0/conv_1/bias": P("tensor"),
        "layer1/0/conv_2/bias": P(),
        "layer1/0/conv_3/kernel": P(),
    },
    "mlp": {
        "dense_0/dense/kernel": P(None, "tensor"),
        "dense_1/dense/kernel": P("tensor"),
        "head/dense/kernel": P(),
    },
}


@pytest.mark.parametrize("name", MODELS)
def test_every_leaf_of_our_models_has_a_rule(name, mesh):
    stages, x = MODELS[name]
    params, _ = jax.eval_shape(join(stages).init, jax.random.key(0), x)
    shardings, lines = place(params, mesh)  # a warning would be an error
    assert all(line.rule for line in lines) and len(lines) == len(flat(params))
    found = {path: sharding.spec for path, sharding in flat(shardings).items()}
    assert {path: found[path] for path in CUT[name]} == CUT[name]


def kernel(key=0):
    return jax.random.normal(jax.random.key(key), (D, 64))


def test_factors_lie_as_the_kernels_they_stand_for(mesh):
    key = jax.random.key(0)
    fits = {
        "product": lambda w: svd(w, 4),
        "low_rank": lambda w: low_rank_fit(w, 4),
        "lora": lambda w: lora_fit(w, key, rank=4),
        "mpo": lambda w: mpo_fit(w, mpo_plan(*w.shape, 3)),
        "nf4": lambda w: quantize(w, "nf4", block=8),
        "qlora": lambda w: lora_fit(quantize(w, "nf4", block=8), key, rank=4),
    }
    dense = {
        name: {"wi": {"kernel": kernel()}, "wo": {"kernel": kernel().T}}
        for name in fits
    }
    params = dense
    for name, fit in fits.items():
        params = factorize(fit, params, where(f"{name}/.*"))
    codes, basis = jnp.zeros((64, 1, 16, 2)), jnp.zeros((64, 1, 2, 2))
    params["smartdeal"] = {"wi": {"kernel": SmartDeal(codes, basis, inputs=(D,))}}
    found = {k: s.spec for k, s in flat(place(params, mesh)[0]).items()}
    assert found["product/wi/kernel/a"] == P()
    assert found["product/wi/kernel/b"] == P(None, "tensor")
    assert found["product/wo/kernel/a"] == P("tensor")
    assert found["product/wo/kernel/b"] == P()
    assert found["low_rank/wi/kernel/u"] == P(None, "tensor")
    assert found["low_rank/wo/kernel/v"] == P("tensor")
    assert found["low_rank/wo/kernel/s"] == found["low_rank/wi/kernel/s"] == P()
    assert found["lora/wi/kernel/base"] == P(None, "tensor")
    assert found["lora/wo/kernel/a"] == P("tensor")
    for base in ("nf4/{}/kernel", "qlora/{}/kernel/base"):
        wi, wo = base.format("wi"), base.format("wo")
        assert found[f"{wi}/codes"] == found[f"{wi}/scale"] == P(None, "tensor")
        assert found[f"{wo}/codes"] == P("tensor") and found[f"{wo}/scale"] == P()
    assert found["smartdeal/wi/kernel/codes"] == P("tensor")
    assert found["smartdeal/wi/kernel/basis"] == P("tensor")
    assert {s for k, s in found.items() if k.startswith("mpo/")} == {P()}


def test_experts_that_share_a_core_lie_over_the_expert_axis():
    mesh = make_cloud_mesh("expert=4,tensor=2")
    factor = share(mpo_fit(kernel(), mpo_plan(D, 64, 3)), 4)
    dense = jnp.zeros((4, D, 64))
    tree = {"one": {"wi": {"kernel": factor}}, "two": {"wo": {"kernel": dense}}}
    found = {k: s.spec for k, s in flat(place(tree, mesh)[0]).items()}
    assert (
        found["one/wi/kernel/left/0"] == found["one/wi/kernel/right/0"] == P("expert")
    )
    assert found["one/wi/kernel/central"] == P()
    assert found["two/wo/kernel"] == P("expert", "tensor")


def test_what_has_no_rule_or_is_not_divided_is_whole_and_reported(mesh):
    tree = {
        "wi": {"kernel": jnp.zeros((4, 6))},
        "odd": jnp.zeros((8, 4)),
        "n": jnp.int32(0),
    }
    with pytest.warns(UserWarning, match=r"odd \(8, 4\) everywhere: no rule") as told:
        shardings, lines = place(tree, mesh)
    [text] = [str(one.message) for one in told]
    assert "wi/kernel (4, 6) everywhere: tensor=4 does not divide 6" in text
    assert {s.spec for s in jax.tree.leaves(shardings)} == {P()}
    problems = {line.path: line.problem for line in lines}
    assert problems == {
        "wi/kernel": "tensor=4 does not divide 6",
        "odd": "no rule is for it",
        "n": "",
    }
    assert "wi/kernel (4, 6) everywhere: tensor=4 does not divide 6" in table(lines)


def test_the_first_rule_of_as_many_axes_decides(mesh):
    mine = (Rule("odd", ("data", None)), Rule("odd", ("data",)), *RULES)
    tree = {
        "a": {"odd": jnp.zeros((4, 4))},
        "odd": jnp.zeros(4),
        "modd/kernel": jnp.zeros(2),
    }
    with pytest.warns(UserWarning, match="modd/kernel"):  # no part of a name matches
        shardings, _ = place(tree, mesh, rules=mine)
    assert shardings["a"]["odd"].spec == P("data") == shardings["odd"].spec


def test_a_stack_of_blocks_lies_over_pipe():
    mesh = make_cloud_mesh("pipe=2,tensor=4")
    tree = {
        "block": {"wi": {"kernel": jnp.zeros((6, D, 64)), "bias": jnp.zeros((6, 64))}}
    }
    shardings, _ = place(tree, mesh, stacked="block/.*")
    found = shardings["block"]["wi"]
    assert found["kernel"].spec == P("pipe", None, "tensor")
    assert found["bias"].spec == P("pipe", "tensor")


def test_an_optimizers_state_lies_as_its_parameters(mesh):
    params = {"ffn": {"wi": {"kernel": jnp.zeros((4, 8)), "bias": jnp.zeros(8)}}}
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    shardings, _ = place(params, mesh)
    state = jax.eval_shape(tx.init, params)
    made = place_like(state, params, shardings, mesh)
    assert jax.tree.structure(made) == jax.tree.structure(state)
    adam = made[1][0]
    assert adam.mu == adam.nu == shardings and adam.count.spec == P()
    # A leaf of the right name and another shape is no copy of the parameter.
    rows = {"row": {"ffn": {"wi": {"kernel": jnp.zeros(4)}}}}
    assert jax.tree.leaves(place_like(rows, params, shardings, mesh))[0].spec == P()


@pytest.fixture(scope="module")
def block():
    """Attention and feed-forward block, their parameters, an input."""
    stage = join(bert.bert(BERT)[1:3], "block")
    x = {
        "h": jax.random.normal(jax.random.key(1), (B, T, D)),
        "mask": jnp.ones((B, T), bool),
    }
    return stage, jax.jit(stage.init)(jax.random.key(0), x), x


def run(stage: Stage, params, state, x):
    return stage.apply(params, state, x, key=None, train=False)[0]["h"]


def program(stage, params, state, x, mesh):
    rows = NamedSharding(mesh, P("data"))
    over = place(params, mesh)[0], jax.tree.map(lambda _: rows, x)
    jitted = jax.jit(
        lambda params, x: run(stage, params, state, x),
        in_shardings=over,
        out_shardings=rows,
    )
    return jitted.lower(params, x).compile(), jax.device_put((params, x), over)


def test_f6_a_tensor_parallel_block_has_two_all_reduces(block, mesh):
    stage, (params, state), x = block
    made, args = program(stage, params, state, x, mesh)
    sent = count_collectives(made)
    want = ("all-reduce", (f"f32[{B // 2 * T},{D}]",), B // 2 * T * D * 4)
    assert [one[:3] for one in sent] == [want, want]
    assert {one.groups for one in sent} == {((0, 1, 2, 3), (4, 5, 6, 7))}
    np.testing.assert_allclose(made(*args), run(stage, params, state, x), atol=1e-5)


def test_f6_halves_send_the_same_bytes_by_the_same_kind(block, mesh):
    stage, (params, state), x = block
    whole = count_collectives(program(stage, params, state, x, mesh)[0])
    half = tp_halves(stage)
    made, args = program(half, params, state, x, mesh)
    sent = count_collectives(made)
    assert {one.op for one in sent} == {"all-reduce"}
    assert sum(len(one.shape) for one in sent) == 4  # two for each half
    assert sum(one.bytes for one in sent) == sum(one.bytes for one in whole)
    np.testing.assert_allclose(made(*args), run(stage, params, state, x), atol=1e-5)


def test_g_halves_of_what_cannot_be_halved(block):
    stage, (params, _), x = block
    with pytest.raises(ValueError, match=r"a batch of \[8\] rows in 3 parts"):
        run(tp_halves(stage, 3), params, {}, x)
    with pytest.raises(ValueError, match="has a state"):
        run(tp_halves(stage), params, {"mean": jnp.zeros(2)}, x)
    with pytest.raises(ValueError, match="parts=0"):
        tp_halves(stage, 0)


def test_halves_of_several_stages_are_not_opened_away():
    seen = []

    def stage(name):
        def apply(params, state, x, *, key, train):
            seen.append((name, len(x)))
            return x, state, {}

        return Stage(name, lambda key, spec: ({}, {}), apply)

    x, pair = jnp.zeros((8, 2)), join([stage("a"), stage("b")], "pair")

    def rows(model):
        own = model.init(jax.random.key(0), x)
        seen.clear()
        jax.eval_shape(lambda: model.apply(*own, x, key=None, train=False)[0])
        return set(seen)

    half = tp_halves(pair)
    assert rows(join([stage("e"), half])) == {("e", 8), ("a", 4), ("b", 4)}
    full = Scale(checkpoint="full")
    assert rows(checkpointed(half, full)) == {("a", 4), ("b", 4)}
    assert rows(checkpointed(repeat(half, 2), full)) == {("a", 4), ("b", 4)}


def test_losses_of_the_parts_are_averaged():
    def apply(params, state, x, *, key, train):
        return x, state, {"loss": x.mean(), "key": 0.0 if key is None else 1.0}

    stage = tp_halves(Stage("one", lambda key, spec: ({}, {}), apply), 4)
    x = jnp.arange(8.0).reshape(8, 1)
    y, _, aux = stage.apply({}, {}, x, key=jax.random.key(0), train=True)
    assert (y == x).all() and float(aux["loss"]) == 3.5 and float(aux["key"]) == 1
