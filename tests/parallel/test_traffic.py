"""`collective_bytes`: the notations of the compiler, and programs whose traffic is known."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from gradkit.parallel import Collective, collective_bytes

HEADER = "HloModule jit_f, is_scheduled=true, num_partitions=8"


def rows(*lines: str, header: str = HEADER) -> tuple[Collective, ...]:
    text = "\n".join([header, "", "ENTRY %main (p: f32[4]) -> f32[4] {", *lines, "}"])
    return collective_bytes(SimpleNamespace(as_text=lambda: text))


def test_groups_in_every_notation() -> None:
    first, second, everyone = rows(
        "  %a = f32[6,4]{1,0} all-reduce(f32[6,4]{1,0} %x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%s",
        "  ROOT %b = s8[8,512]{1,0} all-gather(%y), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}",
        "  %c = bf16[8]{0:T(8,128)} all-to-all(%y), replica_groups={}, dimensions={0}",
    )
    assert first == Collective("all-reduce", ("f32",), ((6, 4),), 96, 2 * 3 / 4 * 96, 4)
    assert second == Collective("all-gather", ("s8",), ((8, 512),), 4096, 2048, 2)
    assert everyone == Collective("all-to-all", ("bf16",), ((8,),), 16, 14, 8)


def test_groups_along_axes_of_a_mesh() -> None:
    mesh = "replica_groups=mesh['axis_0'=2,'axis_1'=4]"
    found = rows(
        f"  %a = f32[8]{{0}} all-gather(%x), {mesh} {{'axis_0'}}, dimensions={{0}}, use_global_device_ids=true",
        f"  %b = f32[8]{{0}} all-gather(%x), {mesh} {{'axis_0','axis_1'}}, dimensions={{0}}",
        f"  %c = f32[8]{{0}} all-gather(%x), {mesh} {{'axis_1':(1)2}}, dimensions={{0}}",
        "  %d = f32[] all-reduce(%x), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}, to_apply=%s",
    )
    assert [row.group_size for row in found] == [2, 8, 2, 4]


def test_the_other_opcodes() -> None:
    scatter, permute = rows(
        "  %a = f32[2]{0} reduce-scatter(%x), replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%sum",
        "  %b = u8[5]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}",
    )
    assert (scatter.result_bytes, scatter.wire_bytes) == (8, 56)
    assert (permute.result_bytes, permute.wire_bytes) == (5, 5)


def test_a_tuple_is_one_row() -> None:
    (row,) = rows(
        "  %a = (f32[64,2]{1,0}, /*index=1*/f32[]) all-reduce(%x, %y), replica_groups=[1,8]<=[8], to_apply=%s"
    )
    assert row.dtypes == ("f32", "f32")
    assert row.shapes == ((64, 2), ())
    assert row.result_bytes == 516


def test_an_asynchronous_pair_counts_once() -> None:
    found = rows(
        "  %a = f32[4]{0} all-reduce-start(%x), replica_groups=[1,8]<=[8], to_apply=%s",
        "  %b = f32[4]{0} all-reduce-done(f32[4]{0} %a)",
        "  %c = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), replica_groups=[1,8]<=[8], dimensions={0}",
        "  %d = f32[32]{0} all-gather-done(%c)",
        "  %e = ((f32[4]{0}, s8[2]{0}), (f32[32]{0}, s8[16]{0})) all-gather-start(%x, %y), replica_groups=[1,8]<=[8]",
        "  %f = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1}}",
    )
    assert [(row.opcode, row.result_bytes) for row in found] == [
        ("all-reduce", 16),
        ("all-gather", 128),
        ("all-gather", 128 + 16),
        ("collective-permute", 16),
    ]


def test_a_name_in_the_metadata_is_no_collective() -> None:
    assert rows('  %a = f32[4]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(f)/ all-reduce(x)"}') == ()
    assert rows("  %b = f32[4]{0} get-tuple-element(%all-reduce), index=0") == ()


def test_dtypes_below_a_byte_are_packed() -> None:
    found = rows(
        *(f"  %a = {d}[3]{{0}} all-gather(%x), replica_groups={{}}" for d in ("s4", "pred", "f8e4m3fn", "c64"))
    )
    assert [row.result_bytes for row in found] == [2, 3, 3, 24]


def test_what_is_not_understood_raises() -> None:
    with pytest.raises(ValueError, match="unknown notation"):
        rows("  %a = f32[4]{0} all-reduce(%x), replica_groups=@mesh{axis}, to_apply=%s")


def compiled(f: Any, *args: Any) -> tuple[Collective, ...]:
    return collective_bytes(jax.jit(f).lower(*args).compile())


def test_programs_whose_traffic_is_known() -> None:
    """A mean over the ranks, a gather and a loop, as compiled here."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x = jax.device_put(jnp.ones((16, 4)), NamedSharding(mesh, P("data")))
    (row,) = compiled(lambda x: x.sum(0), x)
    assert row == Collective("all-reduce", ("f32",), ((4,),), 16, 2 * 7 / 8 * 16, 8)

    gather = jax.shard_map(lambda x: jax.lax.all_gather(x, "data"), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    (row,) = compiled(gather, x)
    assert (row.opcode, row.result_bytes, row.wire_bytes, row.group_size) == ("all-gather", 256, 224, 8)

    def body(x: jax.Array, _: Any) -> tuple[jax.Array, None]:
        return x + jax.lax.pcast(jax.lax.pmean(x, "data"), "data", to="varying"), None

    loop = jax.shard_map(
        lambda x: jax.lax.scan(body, x, length=5)[0], mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    (row,) = compiled(loop, x)  # once in the text, five times in the run
    assert (row.opcode, row.result_bytes) == ("all-reduce", 2 * 4 * 4)
