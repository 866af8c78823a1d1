"""Many heads of one encoder in one pass, against a fit and an evaluation of its own for every list."""

import collections
import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grass_jax.data.faults import UnreadableTileError
from grass_jax.data.labelled import open_labelled
from grass_jax.data.labels import Labels
from grass_jax.data.splits import Split
from grass_jax.models import LinearHead, Segmenter, build_encoder
from grass_jax.segment.evaluate import evaluate
from grass_jax.segment.labelled_data import choose
from grass_jax.segment.lists import probe_lists
from grass_jax.segment.model import make_forward
from grass_jax.segment.probe import fit_probe
from grass_jax.sharding import local_mesh

SETTINGS = {"window": 48, "overlap": 0.25, "batch_size": 8}
L2 = 1e-2


@pytest.fixture(scope="module")
def labelled(labelled_folder, tmp_path_factory):
    return open_labelled(
        "segmentation_folder",
        path=labelled_folder,
        labels=Labels(("grass", "stone", "water")),
        group=r"(\w+)_\d",
        tile_size=48,
        split=Split(test="south"),
        data_dir=tmp_path_factory.mktemp("tiles"),
    )


@pytest.fixture(scope="module")
def encoder():
    module = build_encoder("resnet18", width=4, output_stride=8)
    return module, module.init(jax.random.key(0), jnp.zeros((1, 48, 48, 3)), train=False)


@pytest.fixture(scope="module")
def chosen(labelled):
    lists = {(budget, seed): choose(labelled, budget, seed) for budget, seed in (("6", 0), ("14", 0), ("14", 1))}
    assert set(lists["6", 0]) < set(lists["14", 0])
    assert set(lists["14", 0]) != set(lists["14", 1])
    return lists


@pytest.fixture(scope="module")
def found(encoder, labelled, chosen):
    return probe_lists(*encoder, labelled.bands, labelled, chosen, l2=L2, pictures=1, **SETTINGS)


class Counted:
    """The tiles, and how often each was read; some are damaged."""

    pauses = ()

    def __init__(self, source, damaged=()):
        self.source, self.damaged, self.reads = source, damaged, collections.Counter()
        self.describe = source.describe

    def read(self, index, pauses):
        self.reads[index] += 1
        if index in self.damaged:
            raise UnreadableTileError(self.describe(index), "a damaged record")
        return self.source.read(index, pauses)


def test_each_head_scores_as_a_probe_of_its_own(encoder, labelled, chosen, found):
    module, variables = encoder
    mesh = local_mesh()
    encode = make_forward(module, labelled.bands, mesh)(variables)
    network = make_forward(Segmenter(module, LinearHead(3)), labelled.bands, mesh)
    assert list(found) == list(chosen)
    for key, indices in chosen.items():
        head = fit_probe(encode, (labelled.train[int(i)] for i in indices), 3, l2=L2, devices=mesh.size)
        own = {"params": {"encoder": variables["params"], "decoder": head}}
        forward = network({**own, "batch_stats": {"encoder": variables["batch_stats"]}})
        alone = evaluate(forward, labelled.test, labelled.classes, pictures=1, **SETTINGS)
        assert list(found[key].by_scene) == list(alone.by_scene) == ["south_0.png", "south_1.png"]
        for (group, matrix), (expected_group, expected) in zip(
            found[key].by_scene.values(), alone.by_scene.values(), strict=True
        ):
            assert group == expected_group == "south"
            assert matrix.sum() == 96 * 128
            # A product with nine columns may round otherwise than one with three: a tie of two classes may fall so.
            assert np.abs(matrix - expected).sum() <= 4
        assert found[key].scores["miou"] == pytest.approx(alone.scores["miou"], abs=1e-3)
        assert found[key].scores["miou"] > 0.3
        (crop,), (expected_crop,) = found[key].pictures, alone.pictures
        np.testing.assert_array_equal(crop.image, expected_crop.image)
        assert (crop.prediction != expected_crop.prediction).mean() < 1e-3
    first, second, third = (evaluation.matrix for evaluation in found.values())
    assert (first != second).any()
    assert (second != third).any()


def test_tiles_are_read_and_encoded_once_and_scenes_opened_once(encoder, labelled, chosen, found):
    opened = collections.Counter()

    def watched(scene):
        @contextlib.contextmanager
        def opening():
            opened[scene.name] += 1
            with scene.open() as its:
                yield its

        return scene._replace(open=opening)

    source = Counted(labelled.train)
    counted = labelled._replace(train=source, test=tuple(map(watched, labelled.test)))
    again = probe_lists(*encoder, labelled.bands, counted, chosen, l2=L2, **SETTINGS)
    distinct = {int(i) for indices in chosen.values() for i in indices}
    assert len(distinct) < sum(map(len, chosen.values()))
    assert source.reads == dict.fromkeys(distinct, 1)
    assert opened == {"south_0.png": 1, "south_1.png": 1}
    for key, evaluation in again.items():
        np.testing.assert_array_equal(evaluation.matrix, found[key].matrix)


def test_a_tile_that_cannot_be_read_is_left_out_of_every_list(encoder, labelled, chosen, caplog):
    damaged = int(chosen["6", 0][2])
    assert damaged in chosen["14", 0]
    source = Counted(labelled.train, damaged={damaged})
    lists = {key: chosen[key] for key in (("6", 0), ("14", 0))}
    with caplog.at_level("WARNING", logger="absl"):
        found = probe_lists(*encoder, labelled.bands, labelled._replace(train=source), lists, l2=L2, **SETTINGS)
    assert caplog.text.count("cannot be read (a damaged record)") == 1
    without = {key: indices[indices != damaged] for key, indices in lists.items()}
    expected = probe_lists(*encoder, labelled.bands, labelled, without, l2=L2, **SETTINGS)
    for key, evaluation in found.items():
        np.testing.assert_array_equal(evaluation.matrix, expected[key].matrix)


def test_lists_of_the_same_tiles_share_a_head(encoder, labelled, chosen, found):
    twice = {"first": chosen["6", 0], "turned": chosen["6", 0][::-1], "other": chosen["14", 1]}
    shared = probe_lists(*encoder, labelled.bands, labelled, twice, l2=L2, **SETTINGS)
    assert list(shared) == list(twice)
    assert shared["first"] is shared["turned"]
    np.testing.assert_allclose(shared["other"].matrix, found["14", 1].matrix, atol=4)
    assert probe_lists(*encoder, labelled.bands, labelled, {}, l2=L2, **SETTINGS) == {}
