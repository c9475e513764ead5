import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from splitjax.metrics.collectives import Collective, count_collectives


@pytest.fixture(scope="module")
def mesh():
    auto = (AxisType.Auto,) * 2
    return jax.make_mesh((4, 2), ("data", "tensor"), axis_types=auto)


def compiled(mesh, function, out, *specs):
    """A program of explicit collectives, on arrays that are on every device."""
    body = jax.shard_map(
        function, mesh=mesh, in_specs=P(), out_specs=out, check_vma=False
    )
    return jax.jit(body).lower(*specs).compile()


def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


ROWS = ((0, 2, 4, 6), (1, 3, 5, 7))  # over "data"
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7))  # over "tensor"


@pytest.mark.parametrize(
    ("function", "out", "want", "sent"),
    [
        (
            lambda x: jax.lax.psum(x, "data"),
            P(),
            ("all-reduce", ("f32[8,16]",), 512, ROWS),
            2 * 512 * 3 / 4,
        ),
        (
            lambda x: jax.lax.all_gather(x, "tensor"),
            P(),
            ("all-gather", ("f32[2,8,16]",), 1024, PAIRS),
            512,
        ),
        (
            lambda x: jax.lax.psum_scatter(x, "data", tiled=True),
            P("data"),
            ("reduce-scatter", ("f32[2,16]",), 128, ROWS),
            3 * 128,
        ),
        (
            lambda x: jax.lax.ppermute(x, "tensor", [(0, 1)]),
            P("tensor"),
            ("collective-permute", ("f32[8,16]",), 512, PAIRS),
            512,
        ),
        (
            lambda x: jax.lax.all_to_all(x, "tensor", 1, 1),
            P("tensor"),
            ("all-to-all", ("f32[8,1,8]",) * 2, 512, PAIRS),
            256,
        ),
    ],
    ids=["all-reduce", "all-gather", "reduce-scatter", "permute", "all-to-all"],
)
def test_each_kind_with_its_shape_bytes_and_groups(function, out, want, sent, mesh):
    x = spec(8, 2, 8) if want[0] == "all-to-all" else spec(8, 16)
    [found] = count_collectives(compiled(mesh, function, out, x))
    assert found == want and found.sent_bytes == sent


def test_an_all_reduce_sends_what_its_two_halves_send(mesh):
    def halves(x):
        part = jax.lax.psum_scatter(x, "data", tiled=True)
        return jax.lax.all_gather(part, "data", tiled=True)

    whole = count_collectives(
        compiled(mesh, lambda x: jax.lax.psum(x, "data"), P(), spec(8, 16))
    )
    parts = count_collectives(compiled(mesh, halves, P(), spec(8, 16)))
    assert [found.op for found in parts] == ["reduce-scatter", "all-gather"]
    assert sum(f.sent_bytes for f in parts) == sum(f.sent_bytes for f in whole)


def test_combined_operations_are_one_with_all_their_shapes(mesh):
    """The compiler joins the sums of two gradients."""
    places = [NamedSharding(mesh, P("data", None)), NamedSharding(mesh, P())]

    def loss(w, v, x):
        return jnp.square(jax.nn.relu(x @ w) @ v).mean()

    grad = jax.jit(jax.grad(loss, (0, 1)), in_shardings=(places[1], *places[::-1]))
    found = count_collectives(
        grad.lower(spec(16, 32), spec(32, 8), spec(8, 16)).compile()
    )
    assert {one.op for one in found} == {"all-reduce"}
    assert max(len(one.shape) for one in found) == 2
    assert sum(one.bytes for one in found) == 4 * (16 * 32 + 32 * 8)


def test_the_body_of_a_scan_counts_once(mesh):
    def many(x):
        def turn(x, _):
            return jax.lax.psum(x, "data") / 4, ()

        return jax.lax.scan(turn, x, None, length=7)[0]

    [found] = count_collectives(compiled(mesh, many, P(), spec(8)))
    assert found[:2] == ("all-reduce", ("f32[8]",))


def test_a_program_of_one_device_has_none():
    assert not count_collectives(jax.jit(jnp.sum).lower(spec(8)).compile())


# Forms that other backends write, as text.


def one(line: str, devices: int = 8) -> Collective:
    [found] = count_collectives(f"HloModule m, num_partitions={devices}\n  {line}\n")
    return found


def test_asynchronous_operations_count_once_by_their_results():
    start = "%s = (f32[4], f32[16]) all-gather-start(%x), replica_groups=[2,4]<=[8]"
    assert one(start)[:3] == ("all-gather", ("f32[16]",), 64)
    two = "%s = (f32[4], bf16[2,2]) all-reduce-start(%x, %y), replica_groups={}"
    found = one(two)
    assert found[1:3] == (("f32[4]", "bf16[2,2]"), 24)
    assert found.groups == (tuple(range(8)),)
    permute = (
        "%s = (bf16[4]{0}, bf16[4]{0}, u32[], u32[]) collective-permute-start(%x), "
        "source_target_pairs={{0,1},{1,0}}"
    )
    assert one(permute) == ("collective-permute", ("bf16[4]",), 8, ((0, 1), (1, 0)))
    pairs = "source_target_pairs={{0,1}}"
    for shape, arrays in (
        ("(f32[], f32[], u32[], u32[])", ("f32[]",)),
        ("(u32[], u32[], u32[], u32[])", ("u32[]",)),
        ("(u32[], u32[])", ("u32[]",)),
        ("((f32[], s8[2]), (f32[], s8[2]), u32[], u32[])", ("f32[]", "s8[2]")),
    ):
        found = one(f"%s = {shape} collective-permute-start(%x), {pairs}")
        assert found.shape == arrays
    done = "%d = f32[16]{0} all-gather-done(%s)"
    assert not count_collectives(done)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,4]T(1,0)", ((0, 4), (1, 5), (2, 6), (3, 7))),
        ("[2,4]<=[2,2,2]T(1,0,2)", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("{{0,2},{1,3}}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ((0, 1), (2, 3))),
        ("mesh['a'=1,'b'=4] {'b'}", ((0, 1, 2, 3),)),
        ("mesh['a'=2,'b'=2,'c'=2] {'c','a'}", ((0, 4, 1, 5), (2, 6, 3, 7))),
    ],
)
def test_groups_in_each_of_their_forms(text, groups):
    line = f"ROOT %r = s8[3]{{0}} all-reduce(%x), channel_id=1, replica_groups={text}"
    found = one(f"{line}, use_global_device_ids=true, to_apply=%add")
    assert found == ("all-reduce", ("s8[3]",), 3, groups)


def test_sizes_of_narrow_and_scalar_arrays():
    line = "%r = (s4[3]{0}, pred[2]{0}, f8e4m3fn[5]{0}, f32[]) all-reduce(%x)"
    assert one(f"{line}, replica_groups={{}}").bytes == 2 + 2 + 5 + 4


def test_g_what_cannot_be_read_is_said():
    with pytest.raises(ValueError, match="unknown form"):
        one("%r = f32[3]{0} all-reduce(%x), replica_groups=mesh['a'=4] {'a':(1)2}")
    with pytest.raises(ValueError, match="dtype 'odd'"):
        one("%r = odd[3]{0} all-reduce(%x), replica_groups={}")


def test_an_operand_of_the_name_of_a_collective_is_none():
    text = "%f = f32[4,16]{1,0} fusion(%all-reduce), kind=kLoop, calls=%c"
    assert count_collectives(text) == []
