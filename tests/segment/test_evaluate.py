"""Several heads in one pass over scenes, with networks of single pixels that NumPy works out at once."""

import contextlib

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from grass_jax.config import ConfigError
from grass_jax.data.faults import DataError
from grass_jax.data.labels import IGNORE
from grass_jax.data.pairs import OpenedScene
from grass_jax.data.scenes import LabelledScene
from grass_jax.segment import class_ids, evaluate
from grass_jax.segment.boundary import boundary_counts, boundary_f1
from grass_jax.segment.evaluate import evaluate_heads, scene_records

CLASSES = ("grass", "stone", "water")
MIX = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)  # of two heads
SETTINGS = {"window": 16, "overlap": 0.5, "batch_size": 24}


def scene(name, group, height, width, seed):
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, 256, (8, 8, 3), np.uint8), rng.choice([0, 1, 2, IGNORE], (8, 8)).astype(np.uint8)
    image, mask = (field.repeat(8, 0).repeat(8, 1)[:height, :width] for field in fields)

    @contextlib.contextmanager
    def opened():
        yield OpenedScene(height, width, lambda y0, y1: image[y0:y1], lambda y0, y1: mask[y0:y1].copy())

    return LabelledScene(name, group, opened), image, mask


def pixelwise(tiles):
    return (tiles - np.float32(128)) @ MIX


def test_heads_are_counted_scene_by_scene_as_scikit_learn_does():
    made = [scene("a.png", "east", 40, 50, 1), scene("b.png", "west", 9, 33, 2), scene("a.png", "west", 20, 16, 3)]
    found = evaluate_heads(pixelwise, [each[0] for each in made], CLASSES, heads=2, pictures=2, boundary=1, **SETTINGS)
    assert len(found) == 2
    for number, evaluation in enumerate(found):
        edges = np.zeros((3, 4), np.int64)
        assert list(evaluation.by_scene) == ["a.png", "b.png", "a.png (2)"]
        assert [group for group, _ in evaluation.by_scene.values()] == ["east", "west", "west"]
        for (_, image, mask), (_, matrix) in zip(made, evaluation.by_scene.values(), strict=True):
            prediction = pixelwise(image)[..., 3 * number : 3 * number + 3].argmax(-1)
            counts = mask != IGNORE
            expected = confusion_matrix(mask[counts], prediction[counts], labels=[0, 1, 2])
            np.testing.assert_array_equal(matrix, expected)
            edges += boundary_counts(mask, prediction, 3, 1)
        np.testing.assert_array_equal(evaluation.matrix, sum(m for _, m in evaluation.by_scene.values()))
        assert [crop.name for crop in evaluation.pictures] == ["a.png", "b.png"]
        assert evaluation.scores["areas"]["areas"] == 2
        assert evaluation.scores["boundary"] == {"tolerance": 1, **boundary_f1(edges, CLASSES)}
        assert 0 < evaluation.scores["boundary"]["mean"] < 1
        records = scene_records(evaluation)
        assert records["b.png"] == {"group": "west", "matrix": evaluation.by_scene["b.png"][1].tolist()}
    assert (found[0].matrix != found[1].matrix).any()


def test_equal_logits_count_for_the_first_class():
    (made, _, mask) = scene("a.png", "east", 20, 20, 4)
    levels = np.array([[1, 1, 0, 0, 2, 2]], np.float32)  # classes 0 and 1 are equal in one head, 1 and 2 in the other

    def forward(tiles):
        return np.broadcast_to(levels, (*tiles.shape[:3], 6))

    first, second = evaluate_heads(forward, [made], CLASSES, heads=2, **SETTINGS)
    assert first.matrix[:, 0].tolist() == second.matrix[:, 1].tolist() == [(mask == k).sum() for k in range(3)]
    assert first.matrix.sum() == second.matrix.sum() == (mask != IGNORE).sum()


def test_many_heads_take_fewer_windows_at_once_and_narrower_panels_and_count_the_same(monkeypatch):
    made, _, _ = scene("a.png", "east", 60, 64, 5)
    sizes, panels = [], []

    def forward(tiles):
        sizes.append(len(tiles))
        return pixelwise(tiles)

    slide = evaluate.predict_scenes
    monkeypatch.setattr(
        evaluate, "predict_scenes", lambda *args, **options: panels.append(options["panel"]) or slide(*args, **options)
    )
    whole = evaluate_heads(forward, [made], CLASSES, heads=2, **SETTINGS)
    assert set(sizes) == {24}
    sizes.clear()
    monkeypatch.setattr(evaluate, "BATCH_BYTES", 10 * 4 * 6 * 16 * 16)
    monkeypatch.setattr(evaluate, "ROW_BYTES", 40 * 4 * 6 * 16)
    bounded = evaluate_heads(forward, [made], CLASSES, heads=2, **SETTINGS)
    assert set(sizes) == {16}  # ten, rounded up to a multiple of eight devices
    assert panels[1] == 40 < panels[0]
    for one, other in zip(whole, bounded, strict=True):
        np.testing.assert_array_equal(one.matrix, other.matrix)


@pytest.mark.parametrize("part", ["open", "rows", "mask"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_scene_that_cannot_be_read_is_tried_once_more_and_then_named(monkeypatch, caplog, part, times):
    made, _, mask = scene("a.png", "east", 40, 50, 1)
    waited, failures = [], [OSError("disk gone")] * times
    monkeypatch.setattr(class_ids.time, "sleep", waited.append)

    def failing(read):
        def attempt(*rows):
            if failures:
                raise failures.pop()
            return read(*rows)

        return attempt

    @contextlib.contextmanager
    def opened():
        with made.open() as whole:
            yield whole._replace(**{part: failing(getattr(whole, part))})

    broken = made._replace(open=failing(made.open) if part == "open" else opened)
    if times == 1:
        (found, _) = evaluate_heads(pixelwise, [broken], CLASSES, heads=2, **SETTINGS)
        assert found.matrix.sum() == (mask != IGNORE).sum()
    else:
        with pytest.raises(DataError, match=r"^a\.png cannot be read \(it is broken: disk gone\): mend it or bring"):
            evaluate_heads(pixelwise, [broken], CLASSES, heads=2, **SETTINGS)
    assert waited == [class_ids.PAUSE]
    assert caplog.text.count("Trying once more.") == 1


@pytest.mark.parametrize("part", ["rows", "mask"])
def test_only_the_scene_that_failed_is_read_again_and_from_files_opened_anew(monkeypatch, part):
    made = [scene(f"{name}.png", "east", 40, 50, seed)[0] for seed, name in enumerate("abc")]
    expected = evaluate_heads(pixelwise, made, CLASSES, heads=2, **SETTINGS)
    opened, sizes, handles = [], [], []
    monkeypatch.setattr(class_ids.time, "sleep", lambda _: None)

    def stale(*rows):
        raise OSError("stale handle")

    def recorded(made):
        @contextlib.contextmanager
        def opening():
            opened.append(made.name)
            handles.append(made.name)
            with made.open() as whole:
                yield whole._replace(**{part: stale}) if opened == ["a.png", "b.png"] else whole
            handles.remove(made.name)

        return made._replace(open=opening)

    def forward(tiles):
        sizes.append(len(tiles))
        return pixelwise(tiles)

    found = evaluate_heads(forward, [recorded(each) for each in made], CLASSES, heads=2, **SETTINGS)
    assert sorted(opened) == ["a.png", "b.png", "b.png", "c.png"]
    assert handles == []
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.matrix, other.matrix)
    assert sum(sizes) == 3 * 4 * 6  # windows of 16 pixels every 8, the last at the edge


def test_scenes_without_a_label_are_refused():
    made, _, mask = scene("a.png", "east", 20, 20, 6)
    mask[:] = IGNORE
    with pytest.raises(ConfigError, match="None of the 1 scenes has a labelled pixel"):
        evaluate_heads(pixelwise, [made], CLASSES, heads=2, **SETTINGS)
    with pytest.raises(ConfigError, match="There is no scene to score"):
        evaluate_heads(pixelwise, [], CLASSES, heads=2, **SETTINGS)
