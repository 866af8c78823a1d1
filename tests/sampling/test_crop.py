from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from grass_jax.sampling import crop
from grass_jax.sampling.crop import crop_boxes, nearest_index

REFERENCE = Path(__file__).parents[1] / "reference"
SIZE = 24

cropped = jax.jit(crop_boxes)


def random_case(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    images = rng.normal(0, 100, (*shape, SIZE, SIZE, 3)).astype(dtype) if dtype != np.uint8 else None
    images = rng.integers(0, 256, (*shape, SIZE, SIZE, 3), np.uint8) if images is None else images
    ends = np.sort([rng.permuted(np.arange(SIZE + 1))[:2] for _ in range(2 * int(np.prod(shape)))], axis=1)
    y, x = ends[0::2], ends[1::2]
    return images, np.stack([y[:, 0], x[:, 0], y[:, 1], x[:, 1]], 1).reshape(*shape, 4).astype(np.int32)


def plain_crop(image, box):
    y0, x0, y1, x1 = box
    part = image[y0:y1, x0:x1]
    pick = [[int(np.float32(d) * (np.float32(n) / np.float32(SIZE))) for d in range(SIZE)] for n in part.shape[:2]]
    return part[np.minimum(pick[0], part.shape[0] - 1)][:, np.minimum(pick[1], part.shape[1] - 1)]


@pytest.mark.parametrize("size", [64, 96, 128, 224, 256])
def test_index_table_of_the_original(size):
    wanted = np.load(REFERENCE / "nearest_index.npz")[f"idx_{size}"]
    np.testing.assert_array_equal(nearest_index(size)[1:], wanted[1:])


def test_seven_special_entries_at_224():
    n, dst = np.mgrid[:225, :224]
    different = np.argwhere(nearest_index(224) != dst * n // 224)
    wanted = [(62, 112), (76, 168), (124, 56), (124, 112), (124, 168), (152, 84), (152, 168)]
    np.testing.assert_array_equal(different, wanted)


@pytest.mark.parametrize("name", ["dacrop_7to224", "dacrop_4to64"])
def test_crops_of_the_original(name):
    v = np.load(REFERENCE / f"{name}.npz")
    images, wanted = v["img_in"].transpose(0, 2, 3, 1), v["img_out"].transpose(0, 2, 3, 1)
    boxes = v["box"][v["img_idx"]]
    np.testing.assert_array_equal(cropped(images, boxes), wanted)
    product = crop._by_product(jnp.asarray(images), *rows_and_columns(boxes, images.shape[1]))
    np.testing.assert_array_equal(product, wanted)


def rows_and_columns(boxes, size):
    table = nearest_index(size)
    y0, x0, y1, x1 = boxes.T
    return y0[:, None] + table[y1 - y0], x0[:, None] + table[x1 - x0]


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.uint8, np.int32, np.float64])
def test_crops_copy_pixels_of_any_type(dtype):
    with jax.enable_x64(dtype == np.float64):
        images, boxes = random_case((3, 2), dtype)
        got = cropped(images, boxes)
    assert got.dtype == images.dtype
    rows = zip(images.reshape(6, SIZE, SIZE, 3), boxes.reshape(6, 4), strict=True)
    wanted = np.stack([plain_crop(image, box) for image, box in rows])
    np.testing.assert_array_equal(got, wanted.reshape(images.shape))
    if np.dtype(dtype) in crop._EXACT_IN_PRODUCTS:
        flat = jnp.asarray(images.reshape(6, SIZE, SIZE, 3))
        product = crop._by_product(flat, *rows_and_columns(boxes.reshape(6, 4), SIZE))
        np.testing.assert_array_equal(product, wanted)


def test_whole_view_and_one_axis():
    images, _ = random_case((4,), np.float32)
    whole = np.broadcast_to(np.array([0, 0, SIZE, SIZE], np.int32), (4, 4))
    np.testing.assert_array_equal(cropped(images, whole), images)
    one = np.broadcast_to(np.array([3, 5, 4, 6], np.int32), (4, 4))
    np.testing.assert_array_equal(cropped(images, one), np.broadcast_to(images[:, 3:4, 5:6], images.shape))


def test_sharded_images_stay_on_their_device():
    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    tiles = NamedSharding(Mesh(np.array(devices[:8]), ("data",)), PartitionSpec("data"))
    images, boxes = random_case((16, 2), np.float32)
    split = jax.device_put((images, boxes), tiles)
    program = jax.jit(crop_boxes, out_shardings=tiles).lower(*split).compile()
    for word in ("all-reduce", "all-gather", "collective-permute", "all-to-all"):
        assert word not in program.as_text(), word
    np.testing.assert_array_equal(program(*split), cropped(images, boxes))
    by_product = jax.jit(crop._by_product, out_shardings=tiles).lower(
        *jax.device_put((images[:, 0], *rows_and_columns(boxes[:, 0], SIZE)), tiles)
    )
    assert "all-gather" not in by_product.compile().as_text()


def test_errors_say_what_to_change():
    with pytest.raises(ValueError, match="give square images"):
        crop_boxes(jnp.zeros((2, 4, 5, 3)), jnp.zeros((2, 4), jnp.int32))
    with pytest.raises(ValueError, match="give one box"):
        crop_boxes(jnp.zeros((2, 4, 4, 3)), jnp.zeros((3, 4), jnp.int32))
