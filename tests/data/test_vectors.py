import json
import os
import sqlite3

import numpy as np
import pyogrio
import pyogrio.raw
import pytest
import rasterio.warp
import shapely
from matplotlib.path import Path as Outline
from rasterio.crs import CRS
from rasterio.transform import Affine

from grass_jax.data.geotiff import Georeference
from grass_jax.data.labels import IGNORE, Labels, UnknownLabelError
from grass_jax.data.limits import UnusableImageError
from grass_jax.data.vectors import burn

UTM = CRS.from_epsg(26911)
NORTH_UP = Affine(0.5, 0, 4e5, 0, -0.5, 4e6)
COS, SIN = 0.5 * np.cos(0.6), 0.5 * np.sin(0.6)
TURNED = Affine(COS, SIN, 4e5, SIN, -COS, 4e6)
LABELS = Labels(("road", "tree", "car"), values=(3, 4, 5), ignore=(0, 255))
HEIGHT, WIDTH = 40, 60
SQUARE = [(5.2, 6.2), (30.2, 8.7), (27.7, 33.1), (9.1, 29.4)]  # pixels (x, y), no centre on an edge


def to_ground(points, transform=NORTH_UP, crs=UTM):
    """Pixels (x, y) as coordinates of a CRS."""
    x = [transform.a * x + transform.b * y + transform.c for x, y in points]
    y = [transform.d * x + transform.e * y + transform.f for x, y in points]
    return list(zip(*rasterio.warp.transform(UTM, crs, x, y), strict=True))


def save(path, shapes, values, crs=UTM, field="class", layer=None, append=False):
    kinds = {shape.geom_type for shape in shapes if shape}
    pyogrio.raw.write(
        path,
        shapely.to_wkb(np.array(shapes, object)),
        [np.array(values)],
        [field],
        geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown",
        crs=None if crs is None else crs.to_wkt(),
        layer=layer,
        append=append,
    )
    return path


def draw(path, transform=NORTH_UP, *, labels=LABELS, crs=UTM, attribute="class", **options):
    mask = burn(path, Georeference(crs, transform), HEIGHT, WIDTH, labels, attribute, **options)
    whole = mask.rows(0, HEIGHT)
    assert (mask.height, mask.width) == whole.shape == (HEIGHT, WIDTH)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(
        np.concatenate([mask.rows(y, min(y + 7, HEIGHT)) for y in range(0, HEIGHT, 7)]), whole
    )
    return whole


def centres_inside(points):
    """Pixels whose centre a polygon of pixel coordinates holds."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    return Outline(points).contains_points(np.stack([x, y], -1).reshape(-1, 2)).reshape(HEIGHT, WIDTH)


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED], ids=["north up", "turned"])
@pytest.mark.parametrize(("name", "crs"), [("a.gpkg", UTM), ("a.shp", CRS.from_epsg(32611)), ("a.geojson", None)])
def test_polygons_of_any_format_and_crs(tmp_path, transform, name, crs):
    crs = crs or CRS.from_epsg(4326)  # a GeoJSON's own
    path = save(tmp_path / name, [shapely.Polygon(to_ground(SQUARE, transform, crs))], ["tree"], crs)
    expected = np.where(centres_inside(SQUARE), 1, IGNORE)
    assert 0 < (expected == 1).sum() < expected.size
    np.testing.assert_array_equal(draw(path, transform), expected)


def test_holes_parts_and_order(tmp_path):
    hole = [(12.3, 13.4), (20.6, 13.1), (19.7, 20.8)]
    other = [(40.3, 3.2), (55.6, 5.1), (47.7, 18.8)]
    first = shapely.MultiPolygon(
        [shapely.Polygon(to_ground(SQUARE), [to_ground(hole)]), shapely.Polygon(to_ground(other))]
    )
    over = [(25.3, 2.1), (44.4, 12.2), (28.2, 38.3)]
    path = save(tmp_path / "a.gpkg", [first, shapely.Polygon(to_ground(over))], ["road", "car"])
    expected = np.full((HEIGHT, WIDTH), IGNORE)
    expected[(centres_inside(SQUARE) & ~centres_inside(hole)) | centres_inside(other)] = 0
    expected[centres_inside(over)] = 2
    np.testing.assert_array_equal(draw(path), expected)
    save(tmp_path / "b.gpkg", [shapely.Polygon(to_ground(over)), first], ["car", "road"])
    expected[(centres_inside(SQUARE) & ~centres_inside(hole)) | centres_inside(other)] = 0
    np.testing.assert_array_equal(draw(tmp_path / "b.gpkg"), expected)


@pytest.mark.parametrize("transform", [NORTH_UP, TURNED], ids=["north up", "turned"])
@pytest.mark.parametrize("radius", [1.5, 2.0, 4.5])
def test_points_are_discs(tmp_path, radius, transform):
    points = [(10.3, 12.1), (40.2, 0.3), (60.9, 20.7)]  # the last lies outside, its disc reaches in
    path = save(tmp_path / "a.geojson", [shapely.Point(p) for p in to_ground(points, transform)], [3, 4, 5], UTM)
    result = draw(path, transform, radius=radius)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    for class_id, point in enumerate(points):
        distance = np.hypot(x - point[0], y - point[1])
        assert (result[distance < 0.99 * radius] == class_id).all()
        assert (result == class_id).any()
        assert not (result[distance > radius] == class_id).any()


def test_lines_are_strokes(tmp_path):
    line = [(5.2, 5.3), (30.1, 30.4), (50.3, 10.2)]
    path = save(tmp_path / "a.shp", [shapely.LineString(to_ground(line))], ["car"])
    result = draw(path, radius=3)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    distances = []
    for start, end in zip(np.array(line)[:-1], np.array(line)[1:], strict=True):
        along = np.clip(
            ((x - start[0]) * (end - start)[0] + (y - start[1]) * (end - start)[1]) / sum((end - start) ** 2), 0, 1
        )
        distances.append(np.hypot(x - start[0] - along * (end - start)[0], y - start[1] - along * (end - start)[1]))
    distance = np.min(distances, 0)
    assert (result[distance < 2.97] == 2).all()
    assert (result[distance > 3] == IGNORE).all()


def test_a_radius_of_zero_marks_single_pixels(tmp_path):
    points = [(10.3, 12.1), (59.9, 39.9), (0.0, 0.4), (60.2, 3.0)]
    path = save(tmp_path / "a.gpkg", [shapely.Point(p) for p in to_ground(points)], ["tree"] * 4)
    expected = np.full((HEIGHT, WIDTH), IGNORE)
    expected[[12, 39, 0], [10, 59, 0]] = 1
    np.testing.assert_array_equal(draw(path, radius=0), expected)


def test_all_touched_covers_what_a_polygon_meets(tmp_path):
    sliver = [(5.1, 10.1), (50.3, 10.2), (50.3, 10.3), (5.1, 10.3)]
    path = save(tmp_path / "a.gpkg", [shapely.Polygon(to_ground(sliver))], ["tree"])
    assert (draw(path) == IGNORE).all()
    expected = np.full((HEIGHT, WIDTH), IGNORE)
    expected[10, 5:51] = 1
    np.testing.assert_array_equal(draw(path, all_touched=True), expected)


def test_background_fills_and_ignored_features_cut_out(tmp_path):
    labels = Labels(("road", "tree"), values=(3, 4), ignore=(0,), background="road")
    inner = [(12.3, 13.4), (20.6, 13.1), (19.7, 20.8)]
    shapes = [shapely.Polygon(to_ground(points)) for points in (SQUARE, inner)]
    expected = np.where(centres_inside(SQUARE), 1, 0)
    expected[centres_inside(inner)] = IGNORE
    result = draw(save(tmp_path / "a.gpkg", shapes, [4, 0]), labels=labels)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    "values",
    [["road", "tree", "car"], [3, 4, 5], [3.0, 4.0, 5.0], ["3", "4", "5"]],
    ids=["names", "int", "float", "text"],
)
@pytest.mark.parametrize("name", ["a.gpkg", "a.shp", "a.geojson"])
def test_classes_by_name_or_id(tmp_path, values, name):
    points = [(10.3, 12.1), (20.2, 12.3), (30.1, 20.7)]
    crs = CRS.from_epsg(4326)
    path = save(tmp_path / name, [shapely.Point(p) for p in to_ground(points, crs=crs)], values, crs)
    result = draw(path)
    assert [result[int(y), int(x)] for x, y in points] == [0, 1, 2]
    assert (result != IGNORE).sum() < 60


def test_ids_of_labels_by_colour_are_the_places_of_the_classes(tmp_path):
    labels = Labels(("road", "tree"), values=("#FF0000", "#00FF00"), ignore=("#000000",))
    path = save(tmp_path / "a.gpkg", [shapely.Point(p) for p in to_ground([(10.3, 12.1)])], [1])
    assert draw(path, labels=labels)[12, 10] == 1


def test_a_scene_far_from_every_feature_says_so(tmp_path):
    path = save(tmp_path / "a.gpkg", [shapely.Polygon(to_ground(SQUARE))], ["tree"])
    grid = Georeference(UTM, NORTH_UP)
    assert burn(path, grid, HEIGHT, WIDTH, LABELS, "class").features == 1
    far = burn(path, Georeference(UTM, Affine(0.5, 0, 5e5, 0, -0.5, 4e6)), HEIGHT, WIDTH, LABELS, "class")
    assert far.features == 0
    np.testing.assert_array_equal(far.rows(0, HEIGHT), np.full((HEIGHT, WIDTH), IGNORE))
    beside = burn(path, Georeference(UTM, Affine(0.5, 0, 4e5 + 16, 0, -0.5, 4e6)), HEIGHT, WIDTH, LABELS, "class")
    assert beside.features == 0


def test_a_country_around_the_scene(tmp_path):
    degrees = CRS.from_epsg(4326)
    # The corners 90 degrees from the zone's meridian have no place in it.
    world = shapely.Polygon([(-180, 0), (-27, 0), (-27, 80), (-180, 80)], [to_ground(SQUARE, crs=degrees)])
    expected = np.where(centres_inside(SQUARE), IGNORE, 0)
    np.testing.assert_array_equal(draw(save(tmp_path / "a.gpkg", [world], ["road"], degrees)), expected)
    bow = shapely.Polygon([(-170, 80), (170, -80), (170, 80), (-170, -80)])  # crosses itself, far from the scene
    assert (draw(save(tmp_path / "b.gpkg", [bow], ["road"], degrees)) == 0).all()


def test_a_file_is_read_again_when_it_has_changed(tmp_path):
    path = tmp_path / "a.geojson"
    for count in (1, 2):
        points = [(10.3, 12.1), (40.2, 20.3)][:count]
        save(path, [shapely.Point(p) for p in to_ground(points)], ["tree"] * count, UTM)
        assert burn(path, Georeference(UTM, NORTH_UP), HEIGHT, WIDTH, LABELS, "class").features == count


def test_empty_geometries_and_other_tables_are_passed_over(tmp_path):
    path = save(
        tmp_path / "a.gpkg",
        [shapely.Polygon(to_ground(SQUARE)), shapely.Polygon(), None],
        ["tree", "car", "car"],
        layer="main",
    )
    with sqlite3.connect(path) as table:
        table.execute("CREATE TABLE layer_styles (id INTEGER PRIMARY KEY, class TEXT)")
        table.execute(
            "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES ('layer_styles', 'attributes', 's')"
        )
    table.close()
    np.testing.assert_array_equal(draw(path), np.where(centres_inside(SQUARE), 1, IGNORE))
    save(path, [shapely.Point(to_ground([(1, 1)])[0])], ["b"], layer="other", field="kind", append=True)
    np.testing.assert_array_equal(draw(path), np.where(centres_inside(SQUARE), 1, IGNORE))
    save(path, [shapely.Point(to_ground([(1, 1)])[0])], ["car"], layer="third", append=True)
    with pytest.raises(ValueError, match="the field 'class' in the layers main, third: keep one"):
        draw(path)


def test_what_is_missing_is_said_in_a_sentence(tmp_path):
    shape = [shapely.Polygon(to_ground(SQUARE))]
    path = save(tmp_path / "a.gpkg", shape, ["tree"], field="kind")
    with pytest.raises(ValueError, match=r"a\.gpkg has no field 'class' .* its fields are: kind"):
        draw(path)
    with pytest.raises(UnknownLabelError, match=r"a\.gpkg holds 1 feature\(s\) of the class 'tree', which is neither"):
        draw(path, attribute="kind", labels=Labels(("road",)))
    with pytest.raises(ValueError, match=r"image has no CRS to place the features of .*a\.gpkg by"):
        draw(path, attribute="kind", crs=None)
    with pytest.warns(UserWarning, match="crs"):
        save(tmp_path / "b.shp", shape, ["tree"], None)
    with pytest.raises(ValueError, match=r"b\.shp does not say its CRS: add it"):
        draw(tmp_path / "b.shp")
    feature = {"type": "Feature", "properties": {"class": None}, "geometry": shapely.geometry.mapping(shape[0])}
    (tmp_path / "c.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    with pytest.raises(UnknownLabelError, match=r"1 feature\(s\) without a value in the field 'class'"):
        draw(tmp_path / "c.geojson")
    for radius in (0.5, -1, float("nan")):
        with pytest.raises(ValueError, match="radius must be 0 or at least 1"):
            draw(path, attribute="kind", radius=radius)


VRT = (
    """<OGRVRTDataSource><OGRVRTLayer name="other"><SrcDataSource>{}</SrcDataSource></OGRVRTLayer></OGRVRTDataSource>"""
)


@pytest.mark.parametrize("name", ["a.geojson", "a.json", "a.gpkg", "a.shp"])
def test_a_file_of_another_kind_is_not_opened(tmp_path, name):
    other = save(tmp_path / "other.gpkg", [shapely.Polygon(to_ground(SQUARE))], ["tree"])
    path = tmp_path / name
    path.write_text(VRT.format(other))  # of the driver that reads what stands elsewhere
    assert pyogrio.read_info(path)["driver"] == "OGR_VRT"
    for content in (VRT.format(other), "", "OAPIF:http://localhost", "[1]"):
        path.write_text(content)
        with pytest.raises(
            UnusableImageError, match=rf"^it does not begin as a \{path.suffix} file does: export it anew$"
        ):
            draw(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.geojson")
    with pytest.raises(UnusableImageError, match="no regular file"):
        draw(tmp_path / "a.geojson")
