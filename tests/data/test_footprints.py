import itertools
import json
import math

import numpy as np
import pytest
from rasterio.crs import CRS
from rasterio.transform import Affine
from rasterio.warp import transform

from grass_jax.data.footprints import Footprint, footprint_of, merge_overlapping, overlapping_footprints
from grass_jax.data.geotiff import Georeference

UTM11, UTM12 = (CRS.from_epsg(code) for code in (26911, 26912))


def at(x, y, *, size=100, gsd=0.5, crs=UTM11, angle=0.0):
    c, s = gsd * math.cos(math.radians(angle)), gsd * math.sin(math.radians(angle))
    grid = Affine(c, s, x, s, -c, y)
    return footprint_of(Georeference(crs, grid), size, size)


def test_neighbours_that_touch_or_share_less_than_a_pixel_do_not_overlap():
    first = at(500000, 4000000)
    for shift, overlaps in [(50, False), (49.6, False), (49.4, True), (0, True), (60, False)]:
        for dx, dy in ((shift, 0), (0, -shift), (-shift, 0)):
            found = overlapping_footprints([first, at(500000 + dx, 4000000 + dy)])
            assert found == ([(0, 1)] if overlaps else []), (dx, dy)


def test_turned_scenes_are_compared_by_their_outlines_and_not_by_their_boxes():
    angle = 30
    side = 50
    c, s = side * math.cos(math.radians(angle)), side * math.sin(math.radians(angle))
    grid = [at(500000 + c * i + s * j, 4000000 + s * i - c * j, angle=angle) for i in range(3) for j in range(3)]
    assert overlapping_footprints(grid) == []
    assert overlapping_footprints([*grid, at(500000 + c / 2, 4000000 + s / 2, angle=angle)]) == [(0, 9), (3, 9)]


def test_pairs_equal_a_look_at_every_pair():
    rng = np.random.default_rng(0)
    placed = rng.uniform(0, 400, (40, 2)).round(1)
    footprints = [at(500000 + x, 4000000 + y) for x, y in placed]
    expected = [
        (i, j) for i, j in itertools.combinations(range(40), 2) if (np.abs(placed[i] - placed[j]) <= 49.5 + 1e-9).all()
    ]
    assert 10 < len(expected) < 400
    assert overlapping_footprints(footprints) == expected


def test_other_coordinate_systems_are_compared_on_the_ground():
    [x], [y] = transform(UTM11, UTM12, [774000.0], [4000000.0])
    here, same, far = at(774000, 4000000), at(x, y, crs=UTM12), at(x + 500, y, crs=UTM12)
    degrees = transform(UTM11, "EPSG:4326", [774010.0], [3999990.0])
    inside = at(degrees[0][0], degrees[1][0], size=10, gsd=1e-6, crs=CRS.from_epsg(4326))
    neighbour = at(774050, 4000000)
    assert overlapping_footprints([here, same, far, inside, neighbour]) == [(0, 1), (0, 3), (1, 3), (1, 4)]


def test_unknown_and_local_coordinates_are_not_mixed_with_others():
    local = CRS.from_wkt('LOCAL_CS["site",UNIT["metre",1]]')
    assert footprint_of(None, 9, 9) is None
    assert footprint_of(Georeference(None, Affine.identity()), 9, 9) is None
    assert overlapping_footprints([None, at(5, 5), None]) == []
    assert overlapping_footprints([at(5, 5, crs=local), at(5, 5), None, at(5, 5)]) == [(1, 3)]
    assert overlapping_footprints([at(5, 5, crs=local), at(5, 5), at(9, 9, crs=local)]) == [(0, 2)]


def test_files_without_a_coordinate_system_are_compared_with_each_other():
    rng = np.random.default_rng(1)
    placed = np.array([500000, 4000000]) + rng.uniform(0, 150, (24, 2)).round(1)
    systems = [(None, UTM11, UTM12)[i % 3] for i in range(24)]
    bare = [i for i in range(24) if systems[i] is None]
    near = {(i, j) for i, j in itertools.combinations(bare, 2) if (np.abs(placed[i] - placed[j]) <= 49.5 + 1e-9).all()}
    assert 2 < len(near) < 20
    footprints = [at(x, y, crs=crs) for (x, y), crs in zip(placed, systems, strict=True)]
    assert overlapping_footprints([footprints[i] for i in bare]) == [
        (bare.index(i), bare.index(j)) for i, j in sorted(near)
    ]
    found = overlapping_footprints(footprints)
    assert {(i, j) for i, j in found if i in bare or j in bare} == near
    assert len(found) > len(near), "those of one system are still found"
    stored = Footprint(*json.loads(json.dumps(footprints[0])))
    assert overlapping_footprints([stored, footprints[0]]) == [(0, 1)]


def test_groups_join_along_chains_under_their_first_name():
    line = [at(500000 + 40 * i, 4000000) for i in range(4)] + [at(600000, 4000000), None]
    groups, pairs = merge_overlapping(["d", "c", "b", "x", "x", "q"], line)
    assert pairs == [(0, 1), (1, 2), (2, 3)]
    assert groups == ["b", "b", "b", "b", "b", "q"]  # the last x shares a group with the first, by name
    assert merge_overlapping(["z", "y"], [None, None]) == (["z", "y"], [])


def test_a_footprint_survives_json():
    stored = Footprint(*json.loads(json.dumps(at(1, 2))))
    assert stored.transform == pytest.approx([0.5, 0, 1, 0, -0.5, 2])
    assert overlapping_footprints([stored, at(1, 2)]) == [(0, 1)]
