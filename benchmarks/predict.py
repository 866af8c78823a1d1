"""Peak memory of mapping a small and a large scene, which should differ little.

    python -m benchmarks.predict                        3,000 and 12,000 pixels square: three minutes on 2 CPU cores
    python -m benchmarks.predict --sides=3000,30000     a larger one

Each scene is a tiled GeoTIFF with a nodata border, made in a temporary folder and mapped in a process of its own by a
small convolution in place of a network, so that what is measured is reading, windows, blending and writing.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CLASSES = 6
BLOCK = 512


def make_scene(path: Path, side: int) -> None:
    """Writes a scene of four bands, row of blocks by row of blocks."""
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    options = {"crs": "EPSG:26911", "transform": from_origin(500000, 3800000, 0.6, 0.6), "nodata": 0}
    shape = {"count": 4, "height": side, "width": side, "dtype": "uint8"}
    blocks = {"tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "compress": "deflate", "zlevel": 1}
    with rasterio.open(path, "w", driver="GTiff", photometric="RGB", **shape, **options, **blocks) as raster:
        for y in range(0, side, BLOCK):
            rows = min(BLOCK, side - y)
            coarse = rng.integers(1, 256, (4, -(-rows // 16), -(-side // 16)), np.uint8)
            bands = coarse.repeat(16, 1).repeat(16, 2)[:, :rows, :side].copy()
            bands[:, :, :100] = 0
            raster.write(bands, window=Window(0, y, side, rows))  # pyright: ignore[reportCallIssue]


def small_network(classes: int) -> Callable:
    """Two convolutions and as many classes as asked for."""
    import jax
    import jax.numpy as jnp

    first, second = (
        jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 3, 3, 8), (1, 1, 8, classes)])
    )

    @jax.jit
    def forward(tiles):
        features = tiles.astype(jnp.float32) / 128 - 1
        for kernel in (first, second):
            features = jax.lax.conv_general_dilated(
                jnp.tanh(features), kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return features

    return forward


def peak_memory() -> float:
    """Most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a new process starts at that of the one that has started it
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


def map_scene(options: argparse.Namespace) -> dict[str, float]:
    """Maps one scene in this process; returns its peak memory and time."""
    from grass_jax.segment.predict import predict_file

    start = time.perf_counter()
    predict_file(
        small_network(CLASSES),
        options.scene,
        options.scene.parent / "maps",
        classes=[f"class {i}" for i in range(CLASSES)],
        colours=np.arange(3 * CLASSES, dtype=np.uint8).reshape(CLASSES, 3) * 12,
        window=options.window,
        batch_size=options.batch_size,
        probabilities=options.probabilities,
        progress=False,
    )
    return {"mib": peak_memory(), "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="3000,12000", help="sides of the scenes in pixels")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--probabilities", action="store_true", help="write probabilities as well")
    parser.add_argument("--scene", type=Path, help=argparse.SUPPRESS)  # of the process that maps one scene
    options = parser.parse_args()
    if options.scene:
        print(json.dumps(map_scene(options)))
        return
    sides = [int(side) for side in options.sides.split(",")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in sides:
            scene = Path(folder, f"scene{side}.tif")
            make_scene(scene, side)
            command = [sys.executable, "-m", "benchmarks.predict", f"--scene={scene}", f"--window={options.window}"]
            command += [f"--batch_size={options.batch_size}"] + ["--probabilities"] * options.probabilities
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[side] = json.loads(done.stdout.splitlines()[-1])
            speed = side**2 / 1e6 / found[side]["seconds"]
            print(f"{side:6d} x {side:6d}  peak {found[side]['mib']:7.0f} MiB  {speed:5.2f} megapixels a second")
    difference = found[sides[-1]]["mib"] - found[sides[0]]["mib"]
    print(f"difference: {difference:.0f} MiB")


if __name__ == "__main__":
    main()
