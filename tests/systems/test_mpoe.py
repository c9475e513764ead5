"""MPOE's experts: section 2 of the sheet, lines (f) 4 to 8 and bad input (g).

The matrices are in test_mpoe_factors.py.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding

from splitjax.core.cut import cut
from splitjax.core.factor import dot, materialize
from splitjax.core.split import Split
from splitjax.core.stage import substitute
from splitjax.core.tree import path_name
from splitjax.factors.mpo import Mpo, MpoExperts
from splitjax.factors.mpo_fit import fit, share
from splitjax.factors.mpo_plan import mpo_plan
from splitjax.metrics.collectives import count_collectives
from splitjax.models import router as routers
from splitjax.models.bert import bert, ffn
from splitjax.models.bert_block import Norm
from splitjax.models.bert_config import BertConfig
from splitjax.models.experts import Moe
from splitjax.models.moe import MoeFfn, moe_ffn
from splitjax.models.upcycle import expert_specs, upcycle
from splitjax.optim.mask import mask_updates

B, T, D, F, E = 2, 6, 8, 12, 4
CONFIG = BertConfig(
    vocab=20,
    width=D,
    heads=2,
    layers=1,
    ffn=F,
    positions=8,
    dropout=0.0,
    attention_dropout=0.0,
    init_std=0.3,
)
PLANS = {"wi": mpo_plan(D, F, 3), "wo": mpo_plan(F, D, 3)}
KINDS = {"shared": PLANS, "plain": None}
AMPLE = dict(experts=E, capacity=E, eval_capacity=E)
KEY = jax.random.key(3)
route = jax.jit(routers.route, static_argnames=("router", "capacity", "threshold"))
TOKENS = jax.random.normal(jax.random.key(4), (B, T, D))
X = {"h": TOKENS, "mask": jnp.arange(T)[None] < jnp.array([[T], [4]])}
REAL = int(X["mask"].sum())


@pytest.fixture(scope="module")
def dense():
    """The parameters of a dense block, and what it makes of X."""
    stage = ffn(CONFIG, 0)
    params, _ = stage.init(KEY, X)
    params["wi"]["bias"] = jax.random.normal(KEY, (F,))
    return params, apply(stage, params)[0]["h"]


def apply(stage, params, x=X, *, key=None, train=False):
    run = jax.jit(lambda p, x, key: stage.apply(p, {}, x, key=key, train=train))
    y, _, aux = run(params, x, key)
    return y, aux


@functools.cache
def program(moe, train):
    module = MoeFfn(CONFIG, moe)
    return jax.jit(lambda p, x: module.apply({"params": p}, x, train=train))


def routed(params, moe, x=X, train=False):
    y, routing = program(moe, train)(params, x)
    return y["h"], routing


def grown(dense, kind="shared", experts=E, std=0.5):
    return upcycle(dense[0], experts, key=KEY, plans=KINDS[kind], std=std)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("router", "same"), [("top1_st", True), ("top2", True), ("top1_scale", False)]
)
def test_f4_upcycled_is_the_dense_block(dense, kind, router, same):
    """In float32 <= 1e-5, with enough places; a gate of p makes it another."""
    y, aux = apply(moe_ffn(CONFIG, 0, Moe(router=router, **AMPLE)), grown(dense, kind))
    gap = float(jnp.abs((y["h"] - dense[1])[X["mask"]]).max())
    assert gap <= 1e-5 if same else gap > 1e-2
    assert float(aux["dropped"]) == 0


def test_f4_a_whole_model_upcycled_is_the_dense_model():
    """As its pretrained start, staged; in training the second expert may be absent."""
    plain = bert(CONFIG)
    experts = substitute(plain, moe_ffn(CONFIG, 0, Moe(router="top2", **AMPLE)))
    x = {"ids": jnp.arange(B * T).reshape(B, T), "mask": X["mask"]}

    def run(stages, params, train):
        h = x
        for stage in stages:
            h = stage.apply(params[stage.name], {}, h, key=KEY, train=train)[0]
        return h["h"]

    spec, params = x, {}
    for stage in plain:
        params[stage.name], _ = stage.init(KEY, spec)
        spec = jax.eval_shape(
            lambda x, s=stage: s.apply(params[s.name], {}, x, key=None, train=False)[0],
            spec,
        )
    more = {**params, "layer_0/ffn": upcycle(params["layer_0/ffn"], E, key=KEY)}
    for train in (False, True):
        gap = (run(plain, params, train) - run(experts, more, train))[X["mask"]]
        assert float(jnp.abs(gap).max()) <= 1e-5


def test_f5_the_gradient_of_the_shared_core_is_the_sum_over_experts():
    """Of those that E cores of their own would get; own cores get the same."""
    w = jax.random.normal(KEY, (D, F))
    experts = share(fit(w, PLANS["wi"]), E)
    own = Mpo(
        experts.left,
        jnp.stack([experts.central] * E),
        experts.right,
        experts.dims,
    )
    x = jax.random.normal(KEY, (E, 5, D))
    target = jax.random.normal(jax.random.key(9), (E, 5, F))

    def loss(kernel):
        return jnp.square(dot(kernel, x) - target).sum()

    shared, apart = jax.grad(loss)(experts), jax.grad(loss)(own)
    assert np.allclose(shared.central, apart.central.sum(0), rtol=1e-4, atol=1e-3)
    assert float(jnp.abs(apart.central[0] - apart.central[1]).max()) > 0.1
    assert np.allclose(shared.left[0], apart.left[0], rtol=1e-4, atol=1e-3)


def test_f5_who_is_changed_by_an_experts_own_core_and_who_by_the_shared_one(dense):
    params, moe = grown(dense), Moe(**AMPLE)
    before, routing = routed(params, moe)
    assert (routing.counts > 0).sum() >= 2
    for e in range(E):
        sent = np.zeros(B * T, bool)
        sent[[n for n in np.asarray(routing.token[0, e]) if n < B * T]] = True
        kernel = params["wi"]["kernel"]
        left = (kernel.left[0].at[e].add(0.3), *kernel.left[1:])
        changed = {"kernel": dataclasses.replace(kernel, left=left)}
        y, _ = routed({**params, "wi": {**params["wi"], **changed}}, moe)
        moved = np.asarray(jnp.abs(y - before).max(-1) > 1e-6).reshape(-1)
        assert (moved == sent).all()
    central = dataclasses.replace(kernel, central=kernel.central + 0.3)
    y, _ = routed({**params, "wi": {**params["wi"], "kernel": central}}, moe)
    assert bool((jnp.abs(y - before).max(-1) > 1e-6)[X["mask"]].all())


@pytest.mark.parametrize("router", ["top1_st", "top2"])
def test_f6_the_balance_is_1_at_uniform_routing_and_e_at_collapse(router):
    """Times its coefficient."""
    rows = jnp.arange(2 * E) % E
    even = jax.nn.one_hot(rows, E)[None] * 1e-4  # P is uniform, f is uniform
    one = jax.nn.one_hot(jnp.zeros(2 * E, jnp.int32), E)[None] * 40.0
    mask = jnp.ones((1, 2 * E), bool)
    for logits, want in ((even, 1.0), (one, float(E))):
        found = route(logits, mask, router=router, capacity=2 * E)
        assert float(found.balance) == pytest.approx(want, rel=1e-3)


def test_f6_the_balance_joins_the_loss_and_evens_the_load(dense):
    """It is in `aux["loss"]`, in the model's loss, and its gradient spreads tokens."""
    params = grown(dense)
    params["router"]["bias"] = jnp.array([1.0, 0.0, 0.0, 0.0])
    stage = moe_ffn(CONFIG, 0, Moe(balance=0.5, **AMPLE))
    split = Split(cut([stage]), (), lambda y, target: (jnp.float32(0), {}))
    (loss, extra), [grads] = split.value_and_grad(
        ({"layer_0/ffn": params},), ({"layer_0/ffn": {}},), (), X, 0
    )
    _, routing = routed(params, Moe(**AMPLE))
    assert float(loss) == pytest.approx(0.5 * float(routing.balance), rel=1e-5)
    assert float(routing.balance) > 1.2
    assert "layer_0/ffn/dropped" in extra["metrics"]
    step = grads["layer_0/ffn"]["router"]
    better = jax.tree.map(lambda p, g: p - 2.0 * g, params["router"], step)
    _, after = routed({**params, "router": better}, Moe(**AMPLE))
    assert float(after.balance) < float(routing.balance)
    off = moe_ffn(CONFIG, 0, Moe(balance=0.0, **AMPLE))
    assert "loss" not in apply(off, params)[1]


@pytest.mark.parametrize("group", ["batch", "sequence"])
def test_f8_what_finds_no_place_passes_as_zeros_and_is_counted(dense, group):
    """The block's output is then the norm of its input; counts + dropped = T."""
    params = grown(dense)
    params["router"]["bias"] = jnp.array([9.0, 0.0, 0.0, 0.0])
    moe = Moe(experts=E, capacity=0.1, eval_capacity=0.1, group=group)
    y, routing = routed(params, moe)
    places = (1 if group == "batch" else B) * 4
    assert int(routing.counts.sum()) == places and int(routing.wanted) == REAL
    assert int(routing.dropped) == REAL - places > 0
    kept = set(np.asarray(routing.token).reshape(-1)) if group == "batch" else None
    alone = Norm(CONFIG.eps).apply({"params": params["norm"]}, X["h"])
    passed = np.asarray(jnp.abs(y - alone).max(-1) < 1e-6).reshape(-1)
    assert passed.sum() == B * T - places
    if kept is not None:
        assert not passed[[n for n in kept if n < B * T]].any()


@pytest.mark.parametrize("router", ["top1_st", "top1_scale", "top2"])
def test_f8_counts_and_dropped_add_up_for_every_router(router, key):
    logits = 3 * jax.random.normal(key, (3, 20, E))
    mask = jnp.arange(20)[None] < jnp.array([[20], [7], [0]])
    for draw in (None, key):
        found = route(logits, mask, router=router, capacity=3, key=draw)
        total = int(found.counts.sum() + found.dropped)
        assert total == int(found.wanted)
        taken = int((found.token < 20).sum())
        assert taken == int(found.counts.sum()) and int(found.dropped) > 0
        assert int(found.counts.max()) <= 3 * 3
    if router != "top2":
        assert int(found.wanted) == 27
    else:
        assert 27 < int(found.wanted) <= 54


def test_second_experts_are_wanted_by_chance_and_gates_add_up_to_one(key):
    logits = jax.random.normal(key, (1, 400, E)) * 2
    mask = jnp.ones((1, 400), bool)
    always = route(logits, mask, router="top2", capacity=400)
    drawn = route(logits, mask, router="top2", capacity=400, key=key)
    assert int(always.wanted) == 800 > int(drawn.wanted) > 400
    for found in (always, drawn):
        total = np.zeros(401)
        np.add.at(total, np.asarray(found.token), np.asarray(found.gate))
        assert np.allclose(total[:400], 1, atol=1e-5)
    two = jax.nn.softmax(logits[0])
    best = jnp.sort(two, -1)[:, -2:]
    chance = jnp.minimum(1, best[:, 0] / best.sum(-1) / 0.2).sum()
    assert int(drawn.wanted) - 400 == pytest.approx(float(chance), abs=30)


def test_gradients_reach_the_router_through_a_gate_of_one(dense):
    params = grown(dense)

    def loss(params, router):
        y, _ = routed(params, Moe(router=router, **AMPLE))
        return y[..., 1].sum()

    for router in ("top1_st", "top2"):
        grads = jax.grad(loss)(params, router)
        # Experts that are copies differ by no gate that adds up to 1.
        moved = float(jnp.abs(grads["router"]["kernel"]).max())
        assert moved < 1e-4 if router == "top2" else moved > 1e-3


def test_the_expert_axis_over_a_mesh_of_8_devices(dense):
    """Equal to one device; experts' own cores stay apart, the gradients of the shared
    ones are one all-reduce, and no core is gathered. All devices have all tokens, so
    that none is sent to its expert: no all-to-all."""
    mesh = jax.make_mesh((8,), ("expert",), axis_types=(AxisType.Auto,))
    moe = Moe(experts=8, capacity=8.0)
    params = upcycle(dense[0], 8, key=KEY, plans=PLANS, std=0.5)
    target = jax.random.normal(jax.random.key(9), (B, T, D))

    def loss(params):
        y, routing = routed(params, moe, train=True)
        return jnp.square(y - target).mean() + routing.balance

    want = jax.jit(jax.value_and_grad(loss))(params)
    specs = expert_specs(params)
    places = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    apart = jax.device_put(params, places)
    core = apart["wi"]["kernel"]
    assert core.left[0].addressable_shards[0].data.shape[0] == 1
    assert core.central.sharding.is_fully_replicated
    everywhere = NamedSharding(mesh, jax.sharding.PartitionSpec())
    program = (
        jax.jit(
            jax.value_and_grad(loss),
            in_shardings=(places,),
            out_shardings=(everywhere, places),
        )
        .lower(apart)
        .compile()
    )
    value, grads = program(apart)
    assert float(value) == pytest.approx(float(want[0]), rel=1e-5)
    for (path, found), leaf in zip(
        jax.tree_util.tree_leaves_with_path(grads),
        jax.tree.leaves(want[1]),
        strict=True,
    ):
        assert np.allclose(found, leaf, atol=1e-5), path_name(path)
    sent = count_collectives(program)
    assert {one.op for one in sent} == {"all-reduce"} and len(sent) == 2
    shared = sum(grads[name]["kernel"].central.nbytes for name in PLANS)
    assert [one.bytes >= shared for one in sent].count(True) == 1


def test_g_one_expert_is_the_dense_block(dense):
    moe = Moe(experts=1, capacity=1.0, eval_capacity=1.0)
    params = upcycle(dense[0], 1, key=KEY, plans=PLANS)
    y, routing = routed(params, moe)
    assert float(jnp.abs((y - dense[1])[X["mask"]]).max()) <= 1e-5
    assert float(routing.balance) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="top2"):
        Moe(experts=1, router="top2")
    with pytest.raises(ValueError, match="top2"):
        route(jnp.zeros((1, 3, 1)), jnp.ones((1, 3), bool), router="top2", capacity=1)


def test_g_more_experts_than_tokens(dense):
    params = upcycle(dense[0], 32, key=KEY, plans=PLANS, std=0.5)
    _, routing = routed(params, Moe(experts=32, capacity=1.0, eval_capacity=1.0))
    assert int(routing.counts.sum()) + int(routing.dropped) == REAL
    y, routing = routed(params, Moe(experts=32, capacity=32.0, eval_capacity=32.0))
    assert int(routing.dropped) == 0
    assert float(jnp.abs((y - dense[1])[X["mask"]]).max()) <= 1e-5


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (dict(capacity=0.0), "every token would be dropped"),
        (dict(eval_capacity=-1.0), "every token would be dropped"),
        (dict(experts=0), "experts=0"),
        (dict(router="top3"), "did you mean"),
        (dict(group="batches"), "did you mean 'batch'"),
        (dict(balance=-1.0), "balance=-1.0"),
        (dict(balance=float("nan")), "balance=nan"),
    ],
    ids=str,
)
def test_g_options_that_make_no_sense(fields, match):
    with pytest.raises(ValueError, match=match):
        Moe(**fields)


def test_g_a_capacity_of_no_places_and_other_arguments_of_route():
    logits, mask = jnp.zeros((1, 3, 2)), jnp.ones((1, 3), bool)
    with pytest.raises(ValueError, match="capacity=0"):
        route(logits, mask, capacity=0)
    with pytest.raises(ValueError, match="threshold=0"):
        route(logits, mask, capacity=1, threshold=0)
    with pytest.raises(ValueError, match="did you mean 'top2'"):
        route(logits, mask, capacity=1, router="top_2")
    with pytest.raises(ValueError, match="dropped"):
        routers.capacity_of(8, 2, 0.0)


def test_g_all_tokens_to_one_expert(dense):
    """It computes them all where there are places enough; the loss says E."""
    params = grown(dense)
    params["router"]["bias"] = jnp.array([0.0, 0.0, 99.0, 0.0])
    y, routing = routed(params, Moe(**AMPLE))
    assert routing.counts.tolist() == [0, 0, REAL, 0]
    assert float(jnp.abs((y - dense[1])[X["mask"]]).max()) <= 1e-5
    assert float(routing.balance) == pytest.approx(E, rel=1e-4)


@pytest.mark.parametrize("group", ["batch", "sequence"])
def test_g_an_empty_batch(dense, group):
    """No rows, no tokens in a row, and no tokens at all: finite, with gradients."""
    params, moe = grown(dense), Moe(group=group, **AMPLE)
    for shape in ((0, T), (B, 0), (B, T)):
        x = {"h": jnp.ones((*shape, D)), "mask": jnp.zeros(shape, bool)}

        def loss(params, x=x):
            y, routing = routed(params, moe, x)
            return y.sum() + routing.balance, routing

        grads, routing = jax.grad(loss, has_aux=True)(params)
        assert int(routing.wanted) == 0 and float(routing.balance) == 0
        assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_g_ties_go_to_the_first_expert():
    logits, mask = jnp.ones((1, 3, E)), jnp.ones((1, 3), bool)
    assert route(logits, mask, capacity=3).counts.tolist() == [3, 0, 0, 0]
    two = route(logits, mask, router="top2", capacity=3)
    assert two.counts.tolist() == [3, 3, 0, 0]


def test_g_first_choices_have_places_before_second_ones():
    """Token 0 wants expert 1 second, where token 1 is at home."""
    logits = jnp.array([[[2.0, 1.0], [1.0, 2.0]]])
    found = route(logits, jnp.ones((1, 2), bool), router="top2", capacity=1)
    assert found.token[0, :, 0].tolist() == [0, 1] and int(found.dropped) == 2


def test_g_a_gated_block_needs_a_plan_for_each_kernel(dense):
    gated = {"gate": dense[0]["wi"], "wi": dense[0]["wi"], "wo": dense[0]["wo"]}
    with pytest.raises(ValueError, match="a gated block has two first ones"):
        upcycle(gated, E, key=KEY, plans=PLANS)
    plans = {"gate": PLANS["wi"], **PLANS}
    made = upcycle(gated, E, key=KEY, plans=plans)
    assert isinstance(made["gate"]["kernel"], MpoExperts)
    whole = materialize(made)["gate"]["kernel"]
    assert np.allclose(whole, dense[0]["wi"]["kernel"][None], atol=1e-5)


def test_g_bfloat16_computes_and_the_router_stays_in_float32(dense):
    y, routing = MoeFfn(CONFIG, Moe(**AMPLE), dtype=jnp.bfloat16).apply(
        {"params": grown(dense)}, {**X, "h": X["h"].astype(jnp.bfloat16)}, train=False
    )
    assert y["h"].dtype == jnp.bfloat16 and routing.gate.dtype == jnp.float32
    gap = jnp.abs(y["h"].astype(jnp.float32) - dense[1])[X["mask"]]
    assert float(gap.max()) < 0.1


def test_g_errors_of_blocks_name_what_is_wrong(dense):
    with pytest.raises(ValueError, match="experts=0"):
        upcycle(dense[0], 0, key=KEY)
    with pytest.raises(ValueError, match="no feed-forward block"):
        upcycle({"norm": dense[0]["norm"]}, 2, key=KEY)
    with pytest.raises(ValueError, match="no block with a router"):
        expert_specs(dense[0])
    with pytest.raises(ValueError, match=r"\(4, 8, 12\); it must be \(2, 8, 12\)"):
        routed(
            {**grown(dense), "router": grown(dense, experts=2)["router"]},
            Moe(experts=2),
        )
    with pytest.raises(ValueError, match="no stage 'layer_3/ffn' to replace: did you"):
        substitute(bert(CONFIG), moe_ffn(CONFIG, 3, Moe()))


def test_fresh_kernels_share_their_core_where_plans_are_given():
    stage = moe_ffn(CONFIG, 0, Moe(experts=E), plans=PLANS)
    params, _ = stage.init(KEY, X)
    assert isinstance(params["wi"]["kernel"], MpoExperts)
    y, _ = apply(stage, params, key=KEY, train=True)
    assert y["h"].shape == (B, T, D)


def test_f7_the_mask_leaves_the_shared_core_alone_to_the_bit():
    """Adam, p = .75, 2,000 steps; experts' own cores are updated on every one."""
    w = jax.random.normal(KEY, (D, F))
    start = {"kernel": share(fit(w, PLANS["wi"]), E)}
    tx = mask_updates(optax.adam(1e-3), r".*/central", 0.75, key=KEY)

    def step(carry, number):
        params, state = carry
        grads = jax.tree.map(lambda a: jnp.sin(a + number), params)
        updates, state = tx.update(grads, state, params, step=number)
        new = optax.apply_updates(params, updates)
        central = (new["kernel"].central != params["kernel"].central).mean()
        own = (new["kernel"].left[0] != params["kernel"].left[0]).mean()
        return (new, state), (central, own)

    with jax.numpy_dtype_promotion("standard"):  # for Optax
        run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), jnp.arange(2000)))
        _, (central, own) = run(start)
    moved = np.asarray(central) > 0
    assert set(np.asarray(central)[~moved]) == {0.0}
    assert moved.mean() == pytest.approx(0.25, abs=0.03)
    assert np.asarray(central)[moved].min() > 0.5 and np.asarray(own).min() > 0


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_g_a_mask_that_is_no_probability(rate):
    with pytest.raises(ValueError, match="probability"):
        mask_updates(optax.adam(1e-3), ".*/central", rate, key=KEY)
