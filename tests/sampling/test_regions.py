from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec
from skimage.measure import label

from grass_jax.sampling.regions import resize_maps, salient_boxes

REFERENCE = Path(__file__).parents[1] / "reference"
SHAPE = (37, 70)  # two words high, three wide, with a part of a word left over on both axes
KINDS = ("ties", "plateau", "noise", "smooth", "spiral", "rings", "diagonals", "comb")

boxes_of = jax.jit(salient_boxes, static_argnames=("size", "threshold"))


# The rule, written plainly.
def plain_box(heat):
    low, high = heat.min(), heat.max()
    labels, count = label(heat > low + np.float32(0.5) * (high - low), connectivity=2, return_num=True)
    best, box = -np.inf, (0, 0, *heat.shape)
    for region in range(1, count + 1):
        y, x = np.nonzero(labels == region)
        y0, x0, y1, x1 = y.min(), x.min(), y.max() + 1, x.max() + 1
        inside = heat[y0:y1, x0:x1].max()
        if inside >= best:
            best, box = inside, (y0, x0, y1, x1)
    return box


def spiral(h, w, gap=2):
    mask = np.zeros((h, w), bool)
    top, left, bottom, right = 0, 0, h - 1, w - 1
    mask[top, left : right + 1] = True
    while top + gap <= bottom and left + gap <= right:
        mask[top : bottom + 1, right] = True
        mask[bottom, left : right + 1] = True
        mask[top + gap : bottom + 1, left] = True
        top, left, bottom, right = top + gap, left + gap, bottom - gap, right - gap
        mask[top, left - gap : right + 1] = True
    return mask


def make_map(kind, seed):
    rng = np.random.default_rng(seed)
    h, w = SHAPE
    y, x = np.mgrid[:h, :w]
    if kind == "noise":
        return rng.normal(size=SHAPE).astype(np.float32)
    if kind == "smooth":
        coarse = jnp.asarray(rng.normal(size=(rng.integers(3, 9), rng.integers(3, 9))), jnp.float32)
        return np.asarray(jax.image.resize(coarse, SHAPE, "cubic"))
    if kind == "spiral":
        mask = spiral(h, w, gap=int(rng.integers(2, 5)))[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
    elif kind == "rings":
        mask = np.maximum(abs(y - rng.integers(h)), abs(x - rng.integers(w))) % rng.integers(2, 6) == 0
    elif kind == "diagonals":
        mask = (x + y * rng.choice([-1, 1])) % rng.integers(2, 40) == 0
    elif kind == "comb":
        mask = (x % 2 == 0) | (y == rng.integers(h))
    else:
        mask = rng.random(SHAPE) < rng.choice([0.003, 0.02, 0.1, 0.3, 0.45, 0.6, 0.9])
    if kind in ("spiral", "rings", "diagonals", "comb"):  # break the pattern at a few places
        mask = mask ^ (rng.random(SHAPE) < rng.choice([0, 0, 0.005, 0.03]))
    high = 1.0 if kind == "plateau" else rng.choice([0.625, 0.75, 0.875], SHAPE)
    heat = np.where(mask, high, rng.choice([0, 0.25, 0.5], SHAPE))
    heat.flat[rng.integers(heat.size)] = 0
    heat.flat[rng.integers(heat.size, size=rng.choice([1, 1, 2, 5]))] = 1
    return heat.astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 2**32 - 1)), min_size=8, max_size=8))
def test_boxes_follow_the_rule(draws):
    maps = np.stack([make_map(*draw) for draw in draws])
    np.testing.assert_array_equal(boxes_of(maps, size=None), [plain_box(heat) for heat in maps])


def test_a_region_with_many_bends_is_one_region():
    mask = spiral(*SHAPE)
    maps = np.stack([mask, mask[::-1], mask[:, ::-1], mask.copy()] * 2).astype(np.float32) * 0.75
    maps[:, SHAPE[0] // 2, SHAPE[1] // 2] = 0
    y, x = np.nonzero(maps[3])
    maps[3, y[-1], x[-1]] = 1
    np.testing.assert_array_equal(boxes_of(maps, size=None), [plain_box(heat) for heat in maps])
    assert label(mask, connectivity=2).max() == 1


def test_a_later_region_around_the_maximum_wins_behind_one_that_only_reaches_its_row():
    heat = np.zeros(SHAPE, np.float32)
    heat[10, 20:41] = heat[2:11, 40] = 0.75  # holds the maximum and begins at row 2
    heat[10, 20] = 1
    heat[4:11, 14] = heat[4, 14:21] = 0.75  # begins at row 4; reaches the maximum's row on the left, its column above
    heat[10, 5] = 0.75  # in the maximum's row, further left
    maps = np.stack([heat, heat[::-1], heat[:, ::-1], heat[::-1, ::-1]] * 2)
    boxes = boxes_of(maps, size=None)
    np.testing.assert_array_equal(boxes[0], [4, 14, 11, 21])
    np.testing.assert_array_equal(boxes, [plain_box(m) for m in maps])


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", ["dacrop_7to224", "dacrop_4to64"])
def test_original_boxes_and_enlarged_maps(name, x64):
    v = np.load(REFERENCE / f"{name}.npz")
    size, robust = int(v["H"]), v["robust"]
    assert robust.sum() > 60
    with jax.enable_x64(x64):
        np.testing.assert_array_equal(boxes_of(v["norm"], size=size)[robust], v["box"][robust])
        # The division by the maximum turns maps with a negative maximum over; for the others it is only a scale.
        positive = robust & (v["raw"].max((1, 2)) > 0)
        np.testing.assert_array_equal(boxes_of(v["raw"], size=size)[positive], v["box"][positive])
        heat = resize_maps(jnp.asarray(v["norm"][v["heat_idx"]]), size)
    assert heat.dtype == jnp.float32
    np.testing.assert_allclose(heat, v["heat"], rtol=0, atol=5e-7 * np.abs(v["heat"]).max())


def test_original_boxes_of_full_resolution_maps():
    v = np.load(REFERENCE / "dacrop_full64.npz")
    np.testing.assert_array_equal(boxes_of(v["heat"], size=None), v["box"])


@pytest.mark.parametrize("name", ["lam_v16_c128_h4_t01", "lam_v8_c64_h7", "lam_v8_c64_h8_relu"])
def test_original_boxes_of_attention_maps(name):
    v = np.load(REFERENCE / f"{name}.npz")
    np.testing.assert_array_equal(boxes_of(v["lam_norm_f32run"], size=int(v["H"])), v["box"])


def test_original_boxes_of_double_precision_maps():
    v = np.load(REFERENCE / "lam_v16_c128_h4_t01.npz")
    with jax.enable_x64(True):
        np.testing.assert_array_equal(boxes_of(v["lam_norm"].astype(np.float64), size=int(v["H"])), v["box_f64run"])


def test_resize_follows_the_rule_for_any_shape_and_keeps_float64():
    def line(values, size):
        out = []
        for pixel in range(size):
            f = (pixel + 0.5) * len(values) / size - 0.5
            i = min(max(int(np.floor(f)), 0), len(values) - 1)
            t = f - i if 0 <= f < len(values) - 1 else 0
            out.append((1 - t) * values[i] + t * values[min(i + 1, len(values) - 1)])
        return np.array(out)

    maps = np.random.default_rng(0).normal(size=(2, 3, 5))
    wanted = np.stack([np.apply_along_axis(line, 0, np.apply_along_axis(line, 1, m, 12), 12) for m in maps])
    np.testing.assert_allclose(resize_maps(jnp.asarray(maps, jnp.float32), 12), wanted, atol=1e-6)
    with jax.enable_x64(True):
        got = resize_maps(jnp.asarray(maps), 12)
        assert got.dtype == jnp.float64
        np.testing.assert_allclose(got, wanted, atol=1e-6)  # the weights are float32 by the rule


@pytest.mark.parametrize("size", [None, 64])
def test_maps_without_a_region_give_the_whole_view(size):
    maps = np.random.default_rng(0).normal(size=(6, 4, 4)).astype(np.float32)
    maps[0] = -3.5
    maps[1] = 0
    for i, value in enumerate([np.nan, np.inf, -np.inf], start=2):
        maps[i, 1, 2] = value
    maps[5] *= 1e-30  # small is not constant
    side = size or 4
    boxes = np.asarray(boxes_of(maps, size=size))
    np.testing.assert_array_equal(boxes[:5], [[0, 0, side, side]] * 5)
    np.testing.assert_array_equal(boxes[5], boxes_of(maps * np.float32(1e30), size=size)[5])


def test_leading_axes_threshold_and_types():
    maps = np.zeros((4, 2, 9, 9), np.float32)
    maps[..., 2:6, 3:8] = 0.375
    maps[..., 4, 4] = 1
    boxes = boxes_of(maps, size=None)
    assert boxes.shape == (4, 2, 4)
    assert boxes.dtype == jnp.int32
    assert (boxes == jnp.array([4, 4, 5, 5])).all()
    assert (boxes_of(maps.astype(jnp.bfloat16), size=None, threshold=0.25) == jnp.array([2, 3, 6, 8])).all()


def test_program_holds_no_64_bit_integer_and_no_callback():
    with jax.enable_x64(True):
        text = str(jax.make_jaxpr(partial(salient_boxes, size=64))(np.zeros((2, 4, 4))))
    assert "while" in text
    for word in (":i64", ":u64", "callback"):
        assert word not in text, word


def test_runs_per_device_without_collectives():
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    spec = PartitionSpec("data")
    mesh = Mesh(np.array(devices[:8]), ("data",))
    local = jax.jit(jax.shard_map(partial(salient_boxes, size=64), mesh=mesh, in_specs=spec, out_specs=spec))
    maps = np.load(REFERENCE / "dacrop_4to64.npz")["norm"][:32].reshape(16, 2, 4, 4)
    np.testing.assert_array_equal(local(maps), boxes_of(maps, size=64))
    text = local.lower(maps).compile().as_text()
    for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert word not in text, word


def test_errors_say_what_to_change():
    with pytest.raises(ValueError, match="choose a value from 0"):
        salient_boxes(jnp.zeros((1, 4, 4)), size=8, threshold=1.0)
    with pytest.raises(ValueError, match="at least one before h"):
        salient_boxes(jnp.zeros((4, 4)), size=8)
