"""Every test runs on eight virtual CPU devices with a compilation cache: XLA compiles are most of the suite's time."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import numpy as np
import pytest

jax.config.update("jax_compilation_cache_dir", str(Path(__file__).parents[1] / ".jax_cache"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="session")
def vectors():
    """Opens one file of vectors made by running the original implementation: `vectors("lam_v8_c64_h7")`."""
    return lambda name: np.load(Path(__file__).parent / "reference" / f"{name}.npz", allow_pickle=False)
