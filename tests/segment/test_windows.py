import types

import numpy as np
import pytest

from grass_jax.segment.windows import blend_weight, sliding

rng = np.random.default_rng(0)
CLASSES = 4
MIX = rng.normal(size=(3, CLASSES))


def scene_of(image, valid=None, read=None):
    def rows(y0, y1):
        assert 0 <= y0 < y1 <= len(image)
        if read is not None:
            read.append((y0, y1))
        return image[y0:y1]

    mask = None if valid is None else lambda y0, y1: valid[y0:y1]
    return types.SimpleNamespace(height=image.shape[0], width=image.shape[1], rows=rows, valid=mask)


def picture(height, width):
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def pixelwise(tiles):
    return (tiles / 255) @ MIX


def positional(tiles):
    """A network that says something else at every place of its window."""
    size = tiles.shape[1]
    place = np.cos(np.arange(size * size * CLASSES)).reshape(size, size, CLASSES)
    return pixelwise(tiles) + place


def stitched(strips, scenes):
    """Whole scenes from strips, after checking that every pixel comes once."""
    whole = [np.full((scene.height, scene.width, CLASSES), np.nan, np.float32) for scene in scenes]
    for strip in strips:
        rows, width, _ = strip.logits.shape
        assert strip.logits.dtype == np.float32
        target = whole[strip.scene][strip.y0 : strip.y0 + rows, strip.x0 : strip.x0 + width]
        assert target.shape == strip.logits.shape
        assert np.isnan(target).all()
        target[:] = strip.logits
    assert not any(np.isnan(array).any() for array in whole)
    return whole


def plain(forward, image, window, stride):
    """The definition: sum of weight times logits over sum of weights, window by window over the padded scene."""
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, max(0, window - height)), (0, max(0, window - width)), (0, 0)), mode="reflect")
    weight = np.outer(blend_weight(window), blend_weight(window)).astype(np.float64)[..., None]
    total, weights = np.zeros((*padded.shape[:2], CLASSES)), np.zeros((*padded.shape[:2], 1))
    ys, xs = (sorted({*range(0, n - window + 1, stride), n - window}) for n in padded.shape[:2])
    for y in ys:
        for x in xs:
            here = slice(y, y + window), slice(x, x + window)
            total[here] += weight * forward(padded[here][None])[0]
            weights[here] += weight
    return (total / weights)[:height, :width]


def test_weight_is_positive_symmetric_and_largest_in_the_middle():
    for window in (1, 2, 7, 64):
        weight = blend_weight(window)
        assert weight.shape == (window,)
        assert (weight > 0).all()
        np.testing.assert_allclose(weight, weight[::-1], rtol=1e-5)
        assert (np.diff(weight[: (window + 1) // 2]) > 0).all()
    assert blend_weight(64)[0] < 0.01


@pytest.mark.parametrize(
    ("height", "width", "overlap", "batch_size", "panel"),
    [(31, 45, 0.5, 3, 10**6), (31, 45, 0.75, 8, 16), (16, 8, 0, 1, 5), (8, 33, 0.3, 4, 9), (50, 5, 0.5, 7, 100)],
)
def test_equals_the_plain_sum_over_all_windows(height, width, overlap, batch_size, panel):
    image = picture(height, width)
    scene = scene_of(image)
    strips = sliding(positional, [scene], window=8, overlap=overlap, batch_size=batch_size, panel=panel)
    stride = {0.5: 4, 0.75: 2, 0: 8, 0.3: 6}[overlap]
    expected = plain(positional, image, 8, stride)
    np.testing.assert_allclose(stitched(strips, [scene])[0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("panel", [1, 7, 20, 24])
def test_a_cut_into_panels_changes_no_bit(panel):
    scene = scene_of(picture(20, 61))
    one, cut = (stitched(sliding(positional, [scene], window=8, panel=p), [scene])[0] for p in (10**6, panel))
    np.testing.assert_array_equal(one, cut)


def test_one_window_is_the_plain_forward():
    image = picture(12, 12)
    (strip,) = sliding(positional, [scene_of(image)], window=12, overlap=0.5, batch_size=4)
    assert strip[:3] == (0, 0, 0)
    np.testing.assert_array_equal(strip.logits, positional(image[None])[0].astype(np.float32))


@pytest.mark.parametrize(("height", "width"), [(5, 30), (30, 5), (3, 2), (1, 1)])
def test_small_scenes_are_padded_by_reflection(height, width):
    image = picture(height, width)
    scene = scene_of(image)
    whole = stitched(sliding(positional, [scene], window=12), [scene])[0]
    np.testing.assert_allclose(whole, plain(positional, image, 12, 6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("window", "overlap"), [(6, 0.5), (16, 0.25), (40, 0.5)])
def test_a_network_of_single_pixels_gives_the_same_with_any_window(window, overlap):
    image = picture(33, 47)
    scene = scene_of(image)
    whole = stitched(sliding(pixelwise, [scene], window=window, overlap=overlap), [scene])[0]
    np.testing.assert_allclose(whole, pixelwise(image), rtol=1e-5, atol=1e-6)


def test_no_seam_shows_where_windows_begin():
    """A network that errs at the rim of its window, as zero padding does, on a scene of one colour."""

    def rim(tiles):
        size = tiles.shape[1]
        near = np.minimum(np.arange(size), np.arange(size)[::-1])
        error = np.exp(-np.minimum.outer(near, near) / 2)
        return np.broadcast_to(error[None, ..., None], (*tiles.shape[:3], CLASSES))

    scene = scene_of(np.zeros((96, 96, 3), np.uint8))
    hard, soft = (
        stitched(sliding(rim, [scene], window=32, overlap=overlap), [scene])[0][16:80, 16:80] for overlap in (0, 0.5)
    )
    assert np.abs(hard).max() == 1
    assert np.abs(np.diff(hard, axis=0)).max() > 0.3
    assert np.abs(soft).max() < 0.06
    assert np.abs(np.diff(soft, axis=0)).max() < 0.02


def test_windows_stream_through_batches_over_rows_and_scenes():
    sizes = []

    def forward(tiles):
        sizes.append(tiles.shape)
        assert tiles.dtype == np.uint8
        return positional(tiles)

    images = [picture(8, 8), picture(12, 20), picture(5, 8)]  # 1, 2 x 4 and 1 windows
    scenes = [scene_of(image) for image in images]
    whole = stitched(sliding(forward, iter(scenes), window=8, batch_size=4), scenes)
    assert sizes == [(4, 8, 8, 3)] * 3
    for result, image in zip(whole, images, strict=True):
        np.testing.assert_allclose(result, plain(positional, image, 8, 4), rtol=1e-5, atol=1e-5)


def test_the_next_batch_is_dispatched_before_the_last_one_is_waited_for():
    events = []

    class Later:
        def __init__(self, number, logits):
            self.number, self.logits = number, logits

        def __array__(self, dtype=None, copy=None):
            events.append(("wait", self.number))
            return np.asarray(self.logits, dtype)

    def forward(tiles):
        number = sum(kind == "send" for kind, _ in events)
        events.append(("send", number))
        return Later(number, positional(tiles))

    list(sliding(forward, [scene_of(picture(8, 20))], window=8, batch_size=2))
    assert events == [("send", 0), ("send", 1), ("wait", 0), ("wait", 1)]


def test_strips_come_early_and_rows_are_read_once():
    read = []
    strips = sliding(pixelwise, [scene_of(picture(100, 16), read=read)], window=8, batch_size=1)
    for strip in strips:
        rows = len(strip.logits)
        assert rows in (4, 8)
        assert read[-1][1] <= min(100, strip.y0 + 8 + 2 * 4)  # its own windows and those of at most two more rows
    assert [y for y0, y1 in read for y in range(y0, y1)] == list(range(100))


def test_windows_without_a_valid_pixel_are_not_computed():
    image, valid = picture(24, 40), np.zeros((24, 40), bool)
    valid[10:17, 20:33] = True
    computed = []

    def forward(tiles):
        computed.append(len(tiles))
        return positional(tiles)

    masked, full = scene_of(image, valid), scene_of(image)
    some = stitched(sliding(forward, [masked], window=8, batch_size=1, panel=24), [masked])[0]
    needed = sum(
        valid[y : y + 8, x : x + 8].any()
        for x0, x1 in ((0, 24), (24, 40))
        for y in range(0, 17, 4)
        for x in range(0, 33, 4)
        if x < x1 and x + 8 > x0
    )
    assert sum(computed) == needed + 2  # and the first of either panel, which says how many classes there are
    every = stitched(sliding(positional, [full], window=8), [full])[0]
    np.testing.assert_allclose(some[valid], every[valid], rtol=1e-5, atol=1e-5)
    nothing = scene_of(image, np.zeros_like(valid))
    stitched(sliding(positional, [nothing], window=8), [nothing])  # and a scene without any still comes to its end


def test_a_broken_scene_ends_and_the_next_goes_on():
    def rows(y0, y1):
        if y1 > 20:
            raise OSError("truncated")
        return np.zeros((y1 - y0, 16, 3), np.uint8)

    bad = types.SimpleNamespace(height=40, width=16, rows=rows)
    good = scene_of(picture(16, 16))
    told = []
    strips = list(sliding(positional, [bad, good], window=8, broken=lambda *what: told.append(what)))
    assert [(number, str(error)) for number, error in told] == [(0, "truncated")]
    (whole,) = stitched([strip._replace(scene=0) for strip in strips if strip.scene == 1], [good])
    assert whole.shape == (16, 16, CLASSES)
    with pytest.raises(OSError, match="truncated"):
        list(sliding(positional, [bad], window=8))


@pytest.mark.parametrize("wrong", [{"overlap": 1.0}, {"overlap": -0.1}, {"window": 0}, {"batch_size": 0}, {"panel": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=r"must be at least"):
        list(sliding(pixelwise, [], **{"window": 8} | wrong))
