import argparse
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from benchmarks.input import measure
from grass_jax.data.loader import batches, steps_per_epoch
from grass_jax.data.source import open_tiles


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(5):
        y, x = np.mgrid[:40, :40]
        Image.fromarray(np.stack([y, x, np.full_like(y, number)], -1).astype(np.uint8)).save(folder / f"{number}.png")
    return {"path": folder, "tile_size": 16, "data_dir": tmp_path_factory.mktemp("tfds")}


@pytest.fixture(scope="module")
def source(place):
    return open_tiles("image_folder", **place)


def test_batches_hold_the_tiles_that_their_index_names(source):
    assert len(source) == 45
    assert steps_per_epoch(source, 8) == 5
    seen = []
    for batch in batches(source, batch_size=8, seed=1, start=0, stop=5):
        assert batch["image"].shape == (8, 16, 16, 3)
        assert batch["image"].dtype == np.uint8
        assert batch["index"].dtype == np.int32
        corner = batch["image"][:, 0, 0].astype(int)  # y, x, file
        np.testing.assert_array_equal(corner[:, [2, 0, 1]], source.positions[batch["index"]])
        seen += batch["index"].tolist()
    assert len(set(seen)) == 40


def test_batches_keep_the_bands_and_the_dtype_of_the_files(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (5, 40, 40), np.uint16)
    with rasterio.open(
        tmp_path / "a.tif",
        "w",
        driver="GTiff",
        count=5,
        height=40,
        width=40,
        dtype="uint16",
        crs="EPSG:32633",
        transform=rasterio.Affine(1, 0, 5, 0, -1, 5),
    ) as raster:
        raster.write(pixels)
    source = open_tiles("image_folder", path=tmp_path, tile_size=16, data_dir=tmp_path / "tfds")
    (batch,) = batches(source, batch_size=9, seed=1, start=0, stop=1)
    assert batch["image"].dtype == np.uint16
    for image, (_, y, x) in zip(batch["image"], source.positions[batch["index"]].tolist(), strict=True):
        np.testing.assert_array_equal(image, pixels[:, y : y + 16, x : x + 16].transpose(1, 2, 0))


@pytest.mark.parametrize("count", [2, 4])
def test_rows_of_all_processes_make_the_global_batch(source, count):
    options = {"batch_size": 8, "seed": 3, "start": 3, "stop": 8}  # over the end of an epoch
    whole = list(batches(source, **options))
    parts = [list(batches(source, **options, process_index=i, process_count=count)) for i in range(count)]
    assert len(whole) == 5
    for step, batch in enumerate(whole):
        for name, rows in batch.items():
            np.testing.assert_array_equal(np.concatenate([part[step][name] for part in parts]), rows)
            assert len(parts[0][step][name]) == 8 // count


def test_a_run_resumes_at_any_step(source):
    whole = list(batches(source, batch_size=8, seed=3, start=0, stop=12, threads=1))
    for start in (0, 4, 5, 11, 12):
        rest = list(batches(source, batch_size=8, seed=3, start=start, stop=12, threads=3))
        assert len(rest) == 12 - start
        for expected, batch in zip(whole[start:], rest, strict=True):
            np.testing.assert_array_equal(expected["index"], batch["index"])
            np.testing.assert_array_equal(expected["image"], batch["image"])
    assert any(
        not np.array_equal(a["index"], b["index"])
        for a, b in zip(whole, batches(source, batch_size=8, seed=4, start=0, stop=12), strict=True)
    )


def test_an_abandoned_iterator_ends_its_threads(source):
    before = set(threading.enumerate())
    iterator = batches(source, batch_size=8, seed=0, start=0, stop=10_000)
    next(iterator)
    started = set(threading.enumerate()) - before
    assert started
    iterator.close()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    batches(source, batch_size=8, seed=0, start=0, stop=5)  # never started


def test_wrong_batch_sizes_are_refused(source):
    with pytest.raises(ValueError, match="must divide by the number of processes, 3"):
        batches(source, batch_size=8, seed=0, start=0, stop=1, process_count=3)
    with pytest.raises(ValueError, match="between 1 and the number of tiles, 45"):
        batches(source, batch_size=46, seed=0, start=0, stop=1)


def test_overlapping_tiles_that_share_a_batch_are_counted_in_the_log(place, caplog):
    dense = open_tiles("image_folder", **place, stride=8)
    list(batches(dense, batch_size=10, seed=0, start=0, stop=1))
    assert "overlapping tiles share a batch" not in caplog.text
    list(batches(dense, batch_size=40, seed=0, start=0, stop=3, log_overlaps=False))
    assert "overlapping tiles share a batch" not in caplog.text
    list(batches(dense, batch_size=40, seed=0, start=0, stop=3))
    assert caplog.text.count("overlapping tiles share a batch") == 1


def test_a_source_can_be_pickled(source):
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[7]["image"], source[7]["image"])
    np.testing.assert_array_equal(copy.positions, source.positions)
    with pytest.raises(IndexError):
        source[45]


def test_worker_processes_give_the_same_batches(place, source, tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        from absl import app
        from grass_jax.data.loader import batches
        from grass_jax.data.source import open_tiles

        def main(argv):
            source = open_tiles("image_folder", path={str(place["path"])!r}, tile_size=16,
                                data_dir={str(place["data_dir"])!r})
            print([b["index"].tolist() for b in batches(source, batch_size=8, seed=2, start=0, stop=7, workers=2)])
            print([name for name in ("tensorflow", "torch", "cv2") if name in sys.modules])

        if __name__ == "__main__":
            app.run(main)
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=150)
    expected = [batch["index"].tolist() for batch in batches(source, batch_size=8, seed=2, start=0, stop=7)]
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(expected), "[]"]


def test_the_benchmark_measures_every_way_of_reading(source):
    rates = measure(source, argparse.Namespace(batch_size=8, workers=[0], seconds=0.01))
    ways = {name.partition(",")[0].partition(" as")[0] for name in rates}
    assert ways == {"read", "decode", "input"}
    assert min(rate["tiles_per_second"] for rate in rates.values()) > 0
    assert {rate["cores"] for name, rate in rates.items() if "1 thread" in name} == {1}
