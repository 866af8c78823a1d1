"""Reads the text of a compiled program: what each of its instructions multiplies, touches and sends.

XLA's own analysis knows nothing of collectives, counts the body of a loop once, and takes the convolutions of a GPU,
which are calls into a library, for nothing. Here a loop counts as often as the text says that it turns.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

COLLECTIVES = (
    *("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter"),
    *("collective-broadcast", "ragged-all-to-all"),
)
# touch no memory by themselves; what they call is counted apart
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "partition-id"),
    *("replica-id", "while", "conditional", "call", "async-start", "async-update", "add-dependency"),
}
SLICES = ("slice", "dynamic-slice", "gather")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
SHAPE = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
PRECISION = re.compile(r'operand_precision(?:=\{|":\[")(\w+)')  # as HLO has it, and as a library call's JSON has it
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Shape(NamedTuple):
    """One array of an instruction's result; `near` where it lies in memory on the chip (a TPU's VMEM)."""

    dtype: str
    dims: tuple[int, ...]
    near: bool

    @property
    def bytes(self) -> int:
        """Its size; arrays of fewer than 8 bits count as bytes, tokens as nothing."""
        bits = re.search(r"\d+", self.dtype)
        size = {"pred": 1, "token": 0, "c64": 8, "c128": 16}.get(self.dtype)
        return math.prod(self.dims) * (max(1, int(bits[0]) // 8 if bits else 1) if size is None else size)


class Instruction(NamedTuple):
    """One line: what it makes, of what (of a parameter, its number), and the rest of the line."""

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    rest: str


class Counts(NamedTuple):
    """Sums over one run of a program, of one chip.

    Attributes:
        flops: of convolutions and matrix products, two for a multiplication and an addition.
        high: of these, the FLOPs of products of float32 with `Precision.HIGH`.
        exact: of these, the FLOPs of products of float32 that are to keep float32's precision (`Precision.HIGHEST`).
        traffic: bytes that instructions read from and write to memory.
        sent: bytes that the chip sends, by kind of collective, each as a ring of its chips would do it.
        collectives: how many of them the chip takes part in, by kind; each waits for the slowest chip.
        unknown_loops: loops with products or collectives in them of which the text does not say how often they turn;
            counted once.
    """

    flops: float
    high: float
    exact: float
    traffic: float
    sent: dict[str, int]
    collectives: dict[str, int]
    unknown_loops: int


def count(text: str) -> Counts:
    """Counts what a program does.

    Args:
        text: `jax.stages.Compiled.as_text()`.
    """
    computations, entry = parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    chips = int(partitions[1]) if partitions else 1
    by_precision: dict[str, float] = {"default": 0.0, "high": 0.0, "highest": 0.0}
    traffic, unknown = 0.0, 0
    sent: dict[str, int] = {}
    collectives: dict[str, int] = {}

    def walk(name: str, times: int, fused: bool) -> bool:
        """Adds up a computation; says whether it holds products or collectives."""
        nonlocal traffic, unknown
        body, found = computations[name], False
        for line in body.values():
            products = _products(line, body)
            by_precision[_precision(line, body)] += times * products
            kind = line.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                arrays = _moved(line, kind)
                if name.startswith("all-reduce-scatter"):  # a TPU's: each chip sums only the part that it keeps
                    kind, arrays = "reduce-scatter", [size // _group(line.rest, chips) for size in arrays]
                collectives[kind] = collectives.get(kind, 0) + times
                sent[kind] = sent.get(kind, 0) + times * _ring(kind, sum(arrays), _group(line.rest, chips))
            found |= products > 0 or kind in COLLECTIVES
            if not (fused or line.opcode in FREE or line.opcode.endswith("-done")):
                traffic += times * _touched(line, body, computations)
            turns = 1
            if line.opcode == "while":
                known = TURNS.search(line.rest)
                turns = int(known[1]) if known else 1
            inner = False
            for called in _called(line):
                inner |= walk(called, times * turns, fused or line.opcode not in FREE)
            if line.opcode == "while" and inner and not TURNS.search(line.rest):
                unknown += 1
            found |= inner
        return found

    walk(entry, 1, False)
    high, exact = by_precision["high"], by_precision["highest"]
    return Counts(sum(by_precision.values()), high, exact, traffic, sent, collectives, unknown)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Splits a program's text into computations of instructions by name, and the name of the first to run."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if (match := INSTRUCTION.match(line)) is not None:
            name, shapes, opcode, rest = match.groups()
            end = _closing(rest)
            operands = (rest[:end],) if opcode == "parameter" else tuple(re.findall(r"%([\w.\-]+)", rest[:end]))
            current[name] = Instruction(name, _shapes(shapes), opcode, operands, rest[end:])
        elif (match := COMPUTATION.match(line)) is not None:
            current = computations.setdefault(match[2], {})
            entry = match[2] if match[1] else entry
    if not entry:
        raise ValueError("The text is that of no compiled program: it has no ENTRY.")
    return computations, entry


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(
        Shape(dtype, tuple(int(d) for d in dims.split(",") if d), "S(1)" in layout)
        for dtype, dims, layout in SHAPE.findall(text)
    )


def _closing(text: str) -> int:
    """Place of the bracket that closes the operands."""
    depth = 1
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0:
            return place
    return len(text)


def _called(line: Instruction) -> list[str]:
    """Computations that an instruction runs; not those of one number each, as a reduction's."""
    if line.opcode in ("reduce", "reduce-window", "scatter", "sort", "map", "select-and-scatter", "custom-call"):
        return []
    if line.opcode.removesuffix("-start") in COLLECTIVES:
        return []
    branches = BRANCHES.search(line.rest)
    return CALLED.findall(line.rest) + (re.findall(r"%?([\w.\-]+)", branches[1]) if branches else [])


def _products(line: Instruction, body: dict[str, Instruction]) -> float:
    """FLOPs of one convolution or matrix product; 0 for everything else."""
    if line.opcode == "dot" or (line.opcode == "custom-call" and '"__cublas$' in line.rest):
        contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)', line.rest)
        left = body[line.operands[0]].shapes[0].dims
        over = [int(d) for d in re.findall(r"\d+", contracted[1])] if contracted else []
        return 2.0 * math.prod(line.shapes[0].dims) * math.prod(left[d] for d in over)
    library = re.search(r'"__cudnn\$conv(\w*)', line.rest) if line.opcode == "custom-call" else None
    if line.opcode != "convolution" and library is None:
        return 0.0
    arrays = [body[name].shapes[0].dims for name in line.operands[:2]]
    result = line.shapes[0].dims
    images, kernel, out = {
        "BackwardFilter": (arrays[0], result, arrays[1]),
        "BackwardInput": (result, arrays[1], arrays[0]),
    }.get(library[1] if library else "", (arrays[0], arrays[1], result))
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", line.rest)
    if labels is None:
        return 0.0
    on, window = labels.groups(), _window(line.rest)
    products = 2.0 * out[on[2].index("b")] * out[on[2].index("f")] * kernel[on[1].index("i")]
    for d in range(len(on[0]) - 2):
        across, size, reach = images[on[0].index(str(d))], kernel[on[1].index(str(d))], out[on[2].index(str(d))]
        step, low, holes, spread = (window(key, d) for key in ("stride", "pad", "lhs_dilate", "rhs_dilate"))
        # the pairs of an output and a place in the window that meet an input, neither padding nor a hole
        meets = np.arange(reach)[:, None] * step + np.arange(size) * spread - low
        products *= int(((meets >= 0) & (meets <= (across - 1) * holes) & (meets % holes == 0)).sum())
    return products


def _precision(line: Instruction, body: dict[str, Instruction]) -> str:
    """What a product of float32 asks for: `default`, `high` or `highest`; `default` for all other instructions."""
    found = PRECISION.search(line.rest)
    wide = all(body[name].shapes[0].dtype == "f32" for name in line.operands[:2] if name in body)
    return found[1].lower() if found and wide else "default"


def _window(rest: str) -> Callable[[str, int], int]:
    """Looks up a number of a convolution's window by its name and dimension."""
    match = re.search(r"window=\{([^}]*)\}", rest)
    found = dict(part.split("=") for part in match[1].split()) if match else {}

    def number(key: str, dimension: int) -> int:
        if key not in found:
            return 0 if key == "pad" else 1
        return int(found[key].split("x")[dimension].split("_")[0])

    return number


def _touched(line: Instruction, body: dict[str, Instruction], computations: dict[str, dict[str, Instruction]]) -> int:
    """Bytes of memory that an instruction reads and writes; of an array that it slices, the slice."""
    shapes = line.shapes
    if line.opcode.endswith("-start") and len(shapes) > 1:  # (operands, results, flags): done later, counted here
        shapes = shapes[:1] if line.opcode == "copy-start" else _results(shapes)
    if '"__cublas$' in line.rest or '"__cudnn$' in line.rest:
        shapes = shapes[:1]  # the rest is room for the library, which it need not use
    if line.opcode.removesuffix("-start") in SLICES:
        far = any(not shape.near for shape in body[line.operands[0]].shapes)
        return far * sum(shape.bytes for shape in shapes) + _far(shapes)
    if line.opcode == "dynamic-update-slice":
        return 2 * _far(body[line.operands[1]].shapes)
    read = [_far(body[name].shapes) for name in line.operands if name in body]
    written = _far(shapes)
    called = re.search(r"calls=%?([\w.\-]+)", line.rest) if line.opcode == "fusion" else None
    if called:
        inner = computations[called[1]]
        for step in inner.values():
            if step.opcode != "parameter":
                continue
            place = int(step.operands[0])
            users = [user for user in inner.values() if step.name in user.operands]
            if place >= len(read) or not users or read[place] == 0:
                continue
            if all(user.opcode in SLICES for user in users):
                read[place] = min(read[place], sum(shape.bytes for user in users for shape in user.shapes))
            elif all(u.opcode == "dynamic-update-slice" and u.operands[0] == step.name for u in users):
                update = sum(_far(inner[user.operands[1]].shapes) for user in users)
                written -= max(0, min(read[place] - update, written))  # in place: the rest is neither read nor written
                read[place] = 0
    return sum(read) + written


def _far(shapes: tuple[Shape, ...]) -> int:
    return sum(shape.bytes for shape in shapes if not shape.near)


def _results(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """The results among the arrays of an asynchronous start: operands come first, flags without dimensions last."""
    arrays = [shape for shape in shapes if not (shape.dtype in ("u32", "s32") and not shape.dims)]
    return tuple(arrays[len(arrays) // 2 :])


def _moved(line: Instruction, kind: str) -> list[int]:
    """Bytes of each array that a collective gives."""
    paired = line.opcode.endswith("-start") and kind != "all-reduce" and len(line.shapes) > 1
    return [shape.bytes for shape in (_results(line.shapes) if paired else line.shapes)]


def _group(rest: str, chips: int) -> int:
    """How many chips take part in one collective."""
    if (match := re.search(r"replica_groups=\{\{([\d,]+)\}", rest)) is not None:
        return match[1].count(",") + 1
    if (match := re.search(r"replica_groups=\[\d+,(\d+)\]", rest)) is not None:
        return int(match[1])
    if (match := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest)) is not None:
        sizes = dict(re.findall(r"'?([\w.\-]+)'?=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"[\w.\-]+", match[2]))
    return chips


def _ring(kind: str, size: int, group: int) -> int:
    """Bytes that each of `group` chips sends for a result of `size` bytes."""
    if kind == "collective-permute":
        return size
    if kind == "reduce-scatter":
        return size * (group - 1)
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) // group
