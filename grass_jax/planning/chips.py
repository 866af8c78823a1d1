"""What known accelerators can do at best, from their makers' data sheets: the roof that a step is held against."""

import re
from typing import Any, NamedTuple


class Chip(NamedTuple):
    """What one JAX device can do; where a chip is two devices (TPU v2, v3 and 7x), half of the chip.

    Attributes:
        name: as people call it.
        bfloat16: FLOP/s of dense matrix products with bfloat16 inputs.
        float32: FLOP/s of those with float32 inputs, as XLA does them when nothing else is asked for: on TPU in one
            pass of bfloat16, on NVIDIA in TF32 where the chip has it.
        high: FLOP/s of float32 products with `Precision.HIGH`: on TPU three passes of bfloat16, on NVIDIA TF32.
        exact: FLOP/s of those with `Precision.HIGHEST`: on TPU six passes of bfloat16.
        memory: bytes.
        bandwidth: bytes/s to and from memory.
        link: bytes/s that it can send to other chips over all its links together: ICI, NVLink, or PCIe where it has no
            others.
    """

    name: str
    bfloat16: float
    float32: float
    high: float
    exact: float
    memory: float
    bandwidth: float
    link: float


def _tpu(name: str, bfloat16: float, memory: float, bandwidth: float, link: float) -> Chip:
    peak = bfloat16 * 1e12
    return Chip(f"TPU {name}", peak, peak, peak / 3, peak / 6, memory * 2**30, bandwidth * 1e9, link * 1e9)


def _gpu(
    name: str, bfloat16: float, float32: float, exact: float, memory: float, bandwidth: float, link: float
) -> Chip:
    tera, giga = 1e12, 1e9
    products = (bfloat16 * tera, float32 * tera, float32 * tera, exact * tera)
    return Chip(f"NVIDIA {name}", *products, memory * giga, bandwidth * giga, link * giga)


# By the pattern that the device's kind matches, the first that does; teraFLOP/s, GiB or GB, GB/s, GB/s.
# TPU: docs.cloud.google.com/tpu/docs, the page of each version; a page's "bidirectional" ICI bandwidth is twice what a
# chip can send. GPU: NVIDIA's data sheets without sparsity, NVLink's bandwidth halved for the same reason. V100 and T4
# have no bfloat16, which XLA computes in float32 there.
CHIPS = (
    (r"TPU ?v2", _tpu("v2", 46 / 2, 8, 700 / 2, 248 / 2)),
    (r"TPU ?v3", _tpu("v3", 123 / 2, 16, 900 / 2, 328 / 2)),
    (r"TPU ?v4 lite|TPU ?v4i", _tpu("v4i", 138, 8, 614, 100)),  # Jouppi et al., ISCA 2021
    (r"TPU ?v4", _tpu("v4", 275, 32, 1228, 300)),
    (r"TPU ?v5 ?lite|TPU ?v5e", _tpu("v5e", 197, 16, 819, 200)),
    (r"TPU ?v5", _tpu("v5p", 459, 95, 2765, 600)),
    (r"TPU ?v6", _tpu("v6e", 918, 32, 1638, 400)),
    (r"TPU ?v?7", _tpu("7x", 2307 / 2, 192 / 2, 7380 / 2, 600 / 2)),
    (r"B200", _gpu("B200", 2250, 1125, 75, 180, 8000, 900)),
    (r"H200 NVL", _gpu("H200 NVL", 835, 418, 60, 141, 4800, 450)),
    (r"H200", _gpu("H200", 989, 495, 67, 141, 4800, 450)),
    (r"GH200", _gpu("GH200", 989, 495, 67, 96, 4000, 450)),
    (r"H100 PCIe", _gpu("H100 PCIe", 756, 378, 51, 80, 2000, 300)),
    (r"H100 NVL", _gpu("H100 NVL", 835, 418, 60, 94, 3900, 300)),
    (r"H100", _gpu("H100", 989, 495, 67, 80, 3350, 450)),
    (r"A100.*80GB PCIe", _gpu("A100 80GB PCIe", 312, 156, 19.5, 80, 1935, 300)),
    (r"A100.*80GB", _gpu("A100 80GB", 312, 156, 19.5, 80, 2039, 300)),
    (r"A100", _gpu("A100", 312, 156, 19.5, 40, 1555, 300)),
    (r"A10G", _gpu("A10G", 70, 35, 35, 24, 600, 32)),
    (r"A10\b", _gpu("A10", 125, 62.5, 31.2, 24, 600, 32)),
    (r"A40\b", _gpu("A40", 150, 75, 37.4, 48, 696, 56)),
    (r"RTX A6000", _gpu("RTX A6000", 155, 77, 38.7, 48, 768, 56)),
    (r"L40S", _gpu("L40S", 362, 183, 91.6, 48, 864, 32)),
    (r"L4\b", _gpu("L4", 121, 60, 30.3, 24, 300, 32)),
    (r"T4\b", _gpu("T4", 8.1, 8.1, 8.1, 16, 320, 16)),
    (r"V100.*32GB", _gpu("V100 32GB", 15.7, 15.7, 15.7, 32, 900, 150)),
    (r"V100", _gpu("V100", 15.7, 15.7, 15.7, 16, 900, 150)),
    (r"RTX 5090", _gpu("RTX 5090", 209, 105, 105, 32, 1792, 64)),
    (r"RTX 4090", _gpu("RTX 4090", 165, 82.6, 82.6, 24, 1008, 32)),
    (r"RTX 3090", _gpu("RTX 3090", 71, 35.6, 35.6, 24, 936, 32)),
)


def chip_of(device: Any) -> Chip | None:
    """Finds what a device can do.

    Args:
        device: one of `jax.devices()`, or of a topology's.

    Returns:
        The chip; None where it is not in the table, as a CPU.
    """
    kind = str(device.device_kind)
    return next((chip for pattern, chip in CHIPS if re.search(rf"(?<![A-Za-z0-9])(?:{pattern})", kind)), None)
