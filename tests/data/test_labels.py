import pickle

import numpy as np
import pytest
from skimage.color import rgb2lab

from grass_jax.data.labels import (
    IGNORE,
    Labels,
    UnknownLabelError,
    colour_codes,
    default_colours,
    look_up,
    refuse_unknown,
)

rng = np.random.default_rng(0)
NAMES = ("road", "tree", "car")


def loop(pixels, table):
    """Classes of pixels by a dictionary, one pixel at a time."""
    flat = pixels.reshape(pixels.shape[0] * pixels.shape[1], -1)
    return np.array([table[tuple(pixel)] for pixel in flat.tolist()], np.uint8).reshape(pixels.shape[:2])


def decode(pixels, labels, name="a"):
    """As `open_mask` does it: colours as numbers, looked up, and an error for what the labels do not know."""
    decoded, unknown = look_up(colour_codes(pixels) if labels.by_colour else pixels, labels)
    refuse_unknown(unknown, labels, name)
    return decoded


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int64])
def test_ids_become_classes(dtype):
    labels = Labels(NAMES, values=(7, (1, 200), 4), ignore=(0, 255))
    ids = rng.choice([7, 1, 200, 4, 0, 255], (9, 11)).astype(dtype)
    table = {(7,): 0, (1,): 1, (200,): 1, (4,): 2, (0,): 255, (255,): 255}
    decoded = decode(ids, labels, "a.png")
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, loop(ids, table))


def test_ids_of_any_width():
    labels = Labels(NAMES, values=(-3, 70000, 0), ignore=(-1,))
    ids = rng.choice([-3, 70000, 0, -1], (5, 6))
    np.testing.assert_array_equal(decode(ids, labels, "a"), loop(ids, {(-3,): 0, (70000,): 1, (0,): 2, (-1,): 255}))


def test_without_values_ids_are_the_places_of_the_classes():
    ids = np.array([[0, 1, 2, 255]], np.uint8)
    np.testing.assert_array_equal(decode(ids, Labels(NAMES), "a"), ids)


def test_ignore_beats_values():
    reduced = Labels(("all", "some"), values=(0, 1), ignore=(0,))
    np.testing.assert_array_equal(decode(np.array([[0, 1]]), reduced, "a"), [[IGNORE, 1]])


def test_colours_become_classes():
    labels = Labels(NAMES, values=("#ff0000", ("#00FF00", "#000102"), "#0000FF"), ignore=("#9B9B9B",))
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 1, 2], [0, 0, 255], [155, 155, 155]], np.uint8)
    pixels = colours[rng.integers(0, 5, (8, 9))]
    table = dict(zip(map(tuple, colours.tolist()), [0, 1, 1, 2, 255], strict=True))
    np.testing.assert_array_equal(decode(pixels, labels, "a"), loop(pixels, table))
    np.testing.assert_array_equal(labels.rgb(), colours[[0, 1, 3]])


def test_an_unknown_label_is_named_with_its_file():
    ids = np.zeros((6, 7), np.uint8)
    ids[:2, :6] = 9
    words = (
        r"mask a/b\.png holds the id 9 \(12 pixels\), which is neither a class nor ignored: add it to mask_values, as"
    )
    with pytest.raises(UnknownLabelError, match=words):
        decode(ids, Labels(NAMES), "a/b.png")
    ids[3, 3:5] = 8
    with pytest.raises(UnknownLabelError, match=r"id 9 \(12 pixels\) and 1 more such"):
        decode(ids.astype(np.int32), Labels(NAMES), "a")
    labels = Labels(NAMES, values=("#FF0000", "#00FF00", "#0000FF"))
    with pytest.raises(UnknownLabelError, match=r"mask c holds the colour #00FE00 \(1 pixels\), which"):
        decode(np.array([[[0, 254, 0], [255, 0, 0]]], np.uint8), labels, "c")


@pytest.mark.parametrize("count", [3, 20, 250])
def test_every_class_has_a_colour_of_its_own(count):
    rgb = Labels(tuple(f"c{i}" for i in range(count))).rgb()
    assert rgb.shape == (count, 3)
    assert rgb.dtype == np.uint8
    assert len(np.unique(rgb, axis=0)) == count
    assert len(set(default_colours(count))) == count


def test_the_palette_stays_apart_for_the_eye():
    lab = rgb2lab(Labels(tuple(f"c{i}" for i in range(20))).rgb()[None] / 255)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1) + 1000 * np.eye(20)
    assert distance.min() > 20  # 2.3 is just noticeable


def test_display_colours_can_be_chosen():
    labels = Labels(("a", "b"), values=(3, 4), colours=("#010203", "#FFFFFF"))
    np.testing.assert_array_equal(labels.rgb(), [[1, 2, 3], [255, 255, 255]])


def test_labels_of_a_config_are_hashable_equal_and_pickled():
    lists = Labels(["a", "b"], values=[[1, 2], 3], ignore=[0, 255], colours=["#aabbcc", "#000000"])  # pyright: ignore
    tuples = Labels(("a", "b"), values=((1, 2), (3,)), ignore=(0, 255), colours=("#AABBCC", "#000000"))
    assert lists == tuples
    assert hash(lists) == hash(tuples)
    assert pickle.loads(pickle.dumps(lists)).known == {1: 0, 2: 0, 3: 1, 0: 255, 255: 255}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"classes": ()}, "1 to 250 classes, not 0"),
        ({"classes": tuple(map(str, range(251)))}, "not 251"),
        ({"classes": ("a", "a")}, "must be different"),
        ({"classes": ("a", "")}, "not empty"),
        ({"values": (1, 2)}, "one entry for each of the 3 classes, not 2"),
        ({"values": (1, 2, ())}, "at least one id or colour"),
        ({"values": (1, 2, "#000000")}, "all ids or all colours"),
        ({"values": (1, 2, (3, 1))}, "gives 1 to two classes"),
        ({"values": (1, 2, 2.5)}, "hold ids or colours"),
        ({"values": ("#000000", "#00000", "#000001")}, "is written"),
        ({"ignore": ("#000000",)}, "ignore must hold ids"),
        ({"values": ("#000000", "#000002", "#000001"), "ignore": (0, 255)}, "ignore must hold colours"),
        ({"colours": ("#000000",)}, "one entry for each"),
        ({"colours": (1, 2, 3)}, "must be written"),
        ({"background": "sea"}, "background must be one of"),
    ],
)
def test_inconsistent_labels_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Labels(**{"classes": NAMES} | arguments)
