"""The collectives of a compiled program and their bytes, read from its text."""

import math
import re
from typing import Any, NamedTuple

_SENT = {
    "all-reduce": lambda size, g: 2 * (g - 1) * size / g,
    "all-gather": lambda size, g: (g - 1) * size / g,
    "all-to-all": lambda size, g: (g - 1) * size / g,
    "ragged-all-to-all": lambda size, g: (g - 1) * size / g,
    "reduce-scatter": lambda size, g: (g - 1) * size,
    "collective-permute": lambda size, g: size,
    "collective-broadcast": lambda size, g: size,
}
# There is no quote and no equals sign before an opcode: a name in the metadata of another instruction is no match.
_INSTRUCTION = re.compile(
    rf'^\s*(?:ROOT\s+)?%?[\w.\-]+ = (?P<shape>[^"=]+?) (?P<opcode>{"|".join(_SENT)})(?P<start>-start)?\((?P<rest>.*)$'
)
# The order of the devices, which may stand in between, does not change the size of a group.
_ALONG_AXES = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{}]*\{((?:'[^']+'(?::\(\d+\)\d+)?(?:, ?)?)*)\}")
_COMMENT = re.compile(r"/\*.*?\*/")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,<= ]*)\]")


class Collective(NamedTuple):
    """One collective of a compiled program.

    Attributes:
      opcode: "all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute", …
      dtypes: the dtypes of the arrays of its result, as the compiler names them: ("f32",). Several where the compiler
        has combined collectives.
      shapes: the shapes of the arrays of its result on one device.
      result_bytes: the bytes of the result on one device.
      wire_bytes: the bytes that one device sends, in a ring.
      group_size: how many devices exchange with each other; for a permutation, all devices.
    """

    opcode: str
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    result_bytes: int
    wire_bytes: float
    group_size: int


def collective_bytes(compiled: Any) -> tuple[Collective, ...]:
    """Lists the collectives of a compiled program, with the bytes each of them moves.

    Equations, for the bytes that one of g devices in a ring sends, with S bytes of result on each:

        2 (g - 1) / g  S        all-reduce
        (g - 1) / g    S        all-gather, all-to-all
        (g - 1)        S        reduce-scatter
        S                       collective-permute

    It reads the compiled text, because a program may be compiled to other collectives than it asks for (on CPU a sum of
    bfloat16 is exchanged in float32, a gather of float8 in float16; a cast may move to the other side of a gather). An
    asynchronous pair counts once, at its start. A collective in the body of a loop, or in one branch of a conditional,
    is one row, however often it runs.

    Args:
      compiled: what `jax.jit(f).lower(...).compile()` returns: anything whose `as_text()` is optimised HLO.

    Returns:
      One `Collective` per collective instruction, in the order of the text; empty where nothing is exchanged. Bytes
      are per device.

    Raises:
      ValueError: groups of devices, or a dtype, in a notation that is not known.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> double = jax.jit(lambda x: 2 * x).lower(jnp.ones(3)).compile()
      >>> collective_bytes(double)
      ()
    """
    text = compiled.as_text()
    header = text.split("\n", 1)[0]
    devices = 1
    for count in re.findall(r"\b(?:num_partitions|replica_count)=(\d+)", header):
        devices *= int(count)
    rows = []
    for line in text.splitlines():
        found = _INSTRUCTION.match(_COMMENT.sub("", line))
        if found is None:
            continue
        opcode, shape = found["opcode"], found["shape"]
        if found["start"] and opcode != "all-reduce":
            shape = _result_of_start(shape)
        arrays = [(dtype, tuple(map(int, re.findall(r"\d+", dims)))) for dtype, dims in _ARRAY.findall(shape)]
        size = sum(_bytes(*array) for array in arrays)
        g = _group_size(found["rest"], devices)
        dtypes, shapes = tuple(a[0] for a in arrays), tuple(a[1] for a in arrays)
        rows.append(Collective(opcode, dtypes, shapes, size, float(_SENT[opcode](size, g)), g))
    return tuple(rows)


def _result_of_start(shape: str) -> str:
    """The second member of (operands, results, contexts...); an array is returned as it is."""
    if not shape.startswith("("):
        return shape
    members, depth = [""], 0
    for character in shape[1:-1]:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            members.append("")
        else:
            members[-1] += character
    return members[1] if len(members) > 1 else members[0]


def _bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """The size of an array; dtypes are named by their bits, and those below a byte are packed."""
    bits = {"pred": 8, "token": 0}.get(dtype)
    if bits is None:
        number = re.match(r"[a-z]+(\d+)", dtype)
        if number is None:
            raise ValueError(
                f"collective_bytes: the compiled text must have dtypes of a known size, got {dtype!r}; leave this "
                "program out"
            )
        bits = int(number[1])
    for length in shape:
        bits *= length
    return -(-bits // 8)


def _group_size(rest: str, devices: int) -> int:
    """The size of the (largest) group, in any of the notations of replica groups; without any, all devices.

    {{0,1},{2,3}} lists them; [groups,size]<=[...] counts them; mesh['a'=2,'b'=4] {'a'} names the axes of a mesh that
    they run along, of which 'b':(1)2 is a part of length 2.
    """
    if "replica_groups={}" in rest or "replica_groups=" not in rest:
        return devices
    if listed := re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", rest):
        return max(len(re.findall(r"\d+", group)) for group in listed[1].split("}"))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(counted[1])
    if named := _ALONG_AXES.search(rest):
        lengths = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or lengths[axis]) for axis, part in axes)
    raise ValueError(f"collective_bytes: replica groups in an unknown notation: {rest[rest.index('replica_g') :][:60]}")
