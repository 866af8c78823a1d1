"""What a compiled program costs, against counts by hand."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from grass_jax.planning.chips import CHIPS, chip_of
from grass_jax.planning.compiled_text import count
from grass_jax.planning.program_cost import Cost, cost_of, roofline
from grass_jax.sharding import make_mesh, replicated, split_by_tile


def products(size: int, window: int, stride: int, pad: int) -> int:
    """Pairs of an output and a place in its window that lie in the image, along one side, one by one."""
    outputs = (size + 2 * pad - window) // stride + 1
    return sum(0 <= o * stride + w - pad < size for o in range(outputs) for w in range(window))


def convolve(images, kernel, stride, pad):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(images, kernel, (stride, stride), [(pad, pad)] * 2, dimension_numbers=numbers)


def compiled(function, *arguments, **options):
    return jax.jit(function, **options).lower(*arguments).compile()


def test_products_of_a_small_network_and_its_gradient_are_those_counted_by_hand():
    images, first, second, last = (
        jnp.ones(shape, jnp.float32) for shape in [(4, 17, 17, 3), (3, 3, 3, 8), (5, 5, 8, 16), (16, 10)]
    )

    def network(weights):
        one = jnp.tanh(convolve(images, weights[0], stride=2, pad=1))  # (4, 9, 9, 8)
        two = jnp.tanh(convolve(one, weights[1], stride=1, pad=2))  # (4, 9, 9, 16)
        return jnp.sum(jnp.tanh(two.mean((1, 2)) @ weights[2]) ** 2)

    by_layer = [
        2 * 4 * products(17, 3, 2, 1) ** 2 * 3 * 8,
        2 * 4 * products(9, 5, 1, 2) ** 2 * 8 * 16,
        2 * 4 * 16 * 10,
    ]
    weights = (first, second, last)
    assert cost_of(compiled(network, weights)).flops == sum(by_layer)
    # the gradient of a layer's weights costs as much as the layer, and so does that of its input, but the images'
    assert cost_of(compiled(jax.grad(network), weights)).flops == 3 * sum(by_layer) - by_layer[0]


def test_groups_and_holes_are_counted():
    images, kernel = jnp.ones((2, 12, 12, 6)), jnp.ones((3, 3, 2, 9))

    def grouped(x, k):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, k, (1, 1), "VALID", rhs_dilation=(2, 2), dimension_numbers=numbers, feature_group_count=3
        )

    assert cost_of(compiled(grouped, images, kernel)).flops == 2 * 2 * (8 * 8) * (3 * 3) * 2 * 9


def test_a_loop_counts_as_often_as_it_turns():
    def turns(x):
        return jax.lax.scan(lambda c, w: (c @ w, None), x, jnp.ones((7, 16, 16)))[0]

    assert cost_of(compiled(turns, jnp.ones((4, 16)))).flops == 7 * 2 * 4 * 16 * 16


def test_a_loop_of_unknown_length_counts_once_and_is_said():
    def until(x):
        return jax.lax.while_loop(lambda c: jnp.sum(c) < 100, lambda c: c @ jnp.ones((16, 16)), x)

    cost = cost_of(compiled(until, jnp.ones((4, 16))))
    assert (cost.flops, cost.unknown_loops) == (2 * 4 * 16 * 16, 1)


def test_products_are_told_apart_by_their_precision():
    def three(a, b):
        return a @ b, jnp.matmul(a, b[:, :4], precision="high"), jnp.matmul(a, b[:, :2], precision="highest")

    cost = cost_of(compiled(three, jnp.ones((8, 32)), jnp.ones((32, 8))))
    assert (cost.flops, cost.high, cost.exact) == tuple(2 * 8 * 32 * columns for columns in (8 + 4 + 2, 4, 2))


def test_each_chip_sends_what_a_ring_of_eight_would():
    mesh = make_mesh(jax.devices()[:8])
    rows, whole = split_by_tile(mesh), replicated(mesh)

    def gather(x):
        return jax.lax.with_sharding_constraint(x * 2, whole)

    cost = cost_of(compiled(gather, jnp.ones((16, 100)), in_shardings=rows, out_shardings=whole))
    assert cost.moved == {"all-gather": 16 * 100 * 4 * 7 // 8}
    assert cost.collectives == {"all-gather": 1}

    def summed(x):
        return jax.lax.fori_loop(0, 5, lambda i, c: jnp.cos(c) + jnp.sum(x * c, 0), jnp.ones(100))

    cost = cost_of(compiled(summed, jnp.ones((16, 100)), in_shardings=rows, out_shardings=whole))
    assert cost.moved == {"all-reduce": 5 * 2 * 100 * 4 * 7 // 8}
    assert cost.collectives == {"all-reduce": 5}


def test_two_axes_of_chips_are_two_rings():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:8]).reshape(2, 4), ("a", "b"))
    split, kept = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in [("a", "b"), ("a",)])
    cost = cost_of(compiled(lambda x: x * 2, jnp.ones((16, 64)), in_shardings=split, out_shardings=kept))
    assert cost.moved == {"all-gather": 8 * 64 * 4 * 3 // 4}


def test_donated_memory_is_counted_once():
    x = jnp.ones((256, 256))
    plain = cost_of(compiled(lambda x: x + 1, x)).memory_bytes
    assert plain >= 2 * x.nbytes
    assert cost_of(compiled(lambda x: x + 1, x, donate_argnums=0)).memory_bytes == plain - x.nbytes


def test_memory_that_is_touched_is_that_of_inputs_and_results():
    a, b = jnp.ones((64, 128)), jnp.ones((128, 32))
    assert cost_of(compiled(jnp.matmul, a, b)).traffic == 4 * (64 * 128 + 128 * 32 + 64 * 32)

    def one_row(x, i):
        return jax.lax.dynamic_slice_in_dim(x, i, 1) * 2

    assert cost_of(compiled(one_row, jnp.ones((1000, 64)), 3)).traffic < 4 * 1000  # and not all 256,000


def test_without_a_program_there_is_nothing_to_count():
    with pytest.raises(ValueError, match=r"^The text is that of no compiled program: it has no ENTRY\.$"):
        count("HloModule nothing\n")


TPU = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter (input: f32[64,2,128]) -> f32[8,2,128] {
  %input = f32[64,2,128]{2,0,1:T(8,128)} parameter(0)
  %all-reduce.1 = f32[64,2,128]{2,0,1:T(8,128)} all-reduce(%input), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %slice.1 = f32[8,2,128]{2,0,1:T(8,128)S(1)} slice(%all-reduce.1), slice={[0:8], [0:2], [0:128]}
}

%products (p: bf16[16,56,56,8], q: bf16[3,3,8,8]) -> bf16[16,56,56,8] {
  %p = bf16[16,56,56,8]{0,3,2,1:T(8,128)(2,1)} parameter(0)
  %q = bf16[3,3,8,8]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %c = bf16[16,56,56,8]{0,3,2,1:T(8,128)(2,1)} convolution(%p, %q), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}

ENTRY %main (x: bf16[16,56,56,8], w: bf16[3,3,8,8], z: f32[64,2,128]) -> bf16[16,56,56,8] {
  %x = bf16[16,56,56,8]{0,3,2,1:T(8,128)(2,1)} parameter(0)
  %w = bf16[3,3,8,8]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  %z = f32[64,2,128]{2,0,1:T(8,128)} parameter(2)
  %copy-start = (bf16[3,3,8,8]{3,2,1,0:T(8,128)(2,1)S(1)}, bf16[3,3,8,8]{3,2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%w)
  %copy-done = bf16[3,3,8,8]{3,2,1,0:T(8,128)(2,1)S(1)} copy-done(%copy-start)
  %rs = f32[8,2,128]{2,0,1:T(8,128)S(1)} fusion(%z), kind=kCustom, calls=%all-reduce-scatter
  %ag = (f32[8,2,128]{2,0,1:T(8,128)S(1)}, f32[64,2,128]{2,0,1:T(8,128)S(1)}) all-gather-start(%rs), replica_groups=[1,8]<=[8], dimensions={0}
  %done = f32[64,2,128]{2,0,1:T(8,128)S(1)} all-gather-done(%ag)
  %ss = ((bf16[16,56,56,8]{0,3,2,1:T(8,128)(2,1)}), bf16[4,56,56,8]{0,3,2,1:T(8,128)(2,1)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:4], [0:56], [0:56], [0:8]}
  %sd = bf16[4,56,56,8]{0,3,2,1:T(8,128)(2,1)S(1)} slice-done(%ss)
  %far = bf16[4,128]{1,0:T(4,128)(2,1)} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %y = bf16[16,56,56,8]{0,3,2,1:T(8,128)(2,1)} fusion(%x, %copy-done), kind=kOutput, calls=%products
}
"""  # noqa: E501


def test_a_tpus_text_is_read():
    counts = count(TPU)
    assert counts.flops == 2 * 16 * products(56, 3, 1, 1) ** 2 * 8 * 8
    z = 64 * 2 * 128 * 4
    assert counts.sent == {"reduce-scatter": z * 7 // 8, "all-gather": z * 7 // 8}
    assert counts.collectives == {"reduce-scatter": 1, "all-gather": 1}
    # what lies on the chip is not touched in memory: w is read once, by its copy, and a quarter of x by its slice
    assert counts.traffic == 2 * (2.25 * 16 * 56 * 56 * 8 + 3 * 3 * 8 * 8 + 4 * 128) + z


GPU = """HloModule jit_f

ENTRY %main (x: bf16[4,16,16,8], w: bf16[32,3,3,8], a: f32[64,128], b: f32[128,32]) -> f32[64,32] {
  %x = bf16[4,16,16,8]{3,2,1,0} parameter(0)
  %w = bf16[32,3,3,8]{3,2,1,0} parameter(1)
  %a = f32[64,128]{1,0} parameter(2)
  %b = f32[128,32]{1,0} parameter(3)
  %conv = (bf16[4,8,8,32]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y = bf16[4,8,8,32]{3,2,1,0} get-tuple-element(%conv), index=0
  %back = (bf16[32,3,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  %input = (bf16[4,16,16,8]{3,2,1,0}, u8[0]{0}) custom-call(%y, %w), window={size=3x3 stride=2x2 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %dot = (f32[64,32]{1,0}, s8[33554432]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},"precision_config":{"operand_precision":["HIGHEST","HIGHEST"],"algorithm":"ALG_UNSET"}}}
  ROOT %product = f32[64,32]{1,0} get-tuple-element(%dot), index=0
}
"""  # noqa: E501


def test_calls_into_a_gpus_libraries_are_counted():
    counts, images, kernel, result = count(GPU), 4 * 16 * 16 * 8, 32 * 3 * 3 * 8, 4 * 8 * 8 * 32
    assert counts.flops == 3 * 2 * 4 * products(16, 3, 2, 1) ** 2 * 8 * 32 + 2 * 64 * 128 * 32
    assert counts.exact == 2 * 64 * 128 * 32
    # what the libraries may work in is not what they must touch
    assert counts.traffic == 3 * 2 * (images + kernel + result) + 4 * (64 * 128 + 128 * 32 + 64 * 32)


def test_the_roof_is_the_slowest_resource():
    chip = chip_of(SimpleNamespace(device_kind="TPU v5 lite"))
    assert chip is not None
    cost = Cost(2e12, 0.25e12, 0.5e12, 0, 8.19e9, {"all-reduce": 10**9, "all-gather": 10**9}, {}, 0)
    least = roofline(cost, chip, "bfloat16")
    np.testing.assert_allclose(least, (1.25 / 197 + 0.25 * 3 / 197 + 0.5 * 6 / 197, 0.01, 0.01))
    assert (least.bound, least.seconds) == ("compute", least.compute)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5", "TPU v5p"),
        ("TPU v4", "TPU v4"),
        ("TPU v6 lite", "TPU v6e"),
        ("TPU7x", "TPU 7x"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA GH200 480GB", "NVIDIA GH200"),
        ("NVIDIA H200 NVL", "NVIDIA H200 NVL"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"),
        ("NVIDIA A100 80GB PCIe", "NVIDIA A100 80GB PCIe"),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100"),
        ("NVIDIA L40S", "NVIDIA L40S"),
        ("NVIDIA L4", "NVIDIA L4"),
        ("Tesla T4", "NVIDIA T4"),
        ("cpu", None),
    ],
)
def test_chips_are_known_by_what_jax_calls_them(kind, name):
    chip = chip_of(SimpleNamespace(device_kind=kind))
    assert (chip and chip.name) == name


def test_the_table_of_chips_is_in_its_units():
    for _, chip in CHIPS:
        assert 3e12 < chip.exact <= chip.high <= chip.float32 <= chip.bfloat16 < 1e16, chip.name
        assert 5e9 < chip.memory < 1e12, chip.name
        assert 1e11 < chip.bandwidth < 1e13, chip.name
        assert chip.link < chip.bandwidth, chip.name
