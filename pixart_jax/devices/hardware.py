"""What vendors publish about their accelerators."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Hardware:
    """One device, as JAX counts devices.

    peak_flops: dense bfloat16 FLOP/s with float32 accumulation. memory_bytes and bandwidth (bytes/s): of its own
    memory. watts: the most the device itself draws (TDP), None where the vendor does not say. device_kinds: what
    `jax.Device.device_kind` calls it. interconnect: bytes/s that a TPU can send to the others of its slice over all its
    links, which is half of what Google publishes as bidirectional; None where it is not known here. network: bytes/s
    that its part of the host's network cards sends to other slices; None likewise. matrix_rows: rows and columns of a
    TPU's matrix unit; products of narrower matrices leave the rest of it idle. clock: Hz, at which its matrix units
    together come to peak_flops.
    """

    peak_flops: float
    memory_bytes: float
    bandwidth: float
    watts: float | None
    device_kinds: tuple[str, ...]
    interconnect: float | None = None
    network: float | None = None
    matrix_rows: int = 1
    clock: float | None = None

    def utilisation(self, flops_per_second: float, num_devices: int) -> float:
        """Model FLOPs over all devices as a share of their peak: MFU (Chowdhery et al. 2022, PaLM, appendix B)."""
        return flops_per_second / (num_devices * self.peak_flops)


# NVIDIA's data sheets print twice the peak for H100 and H200, "with sparsity"; this is the dense half. The names are
# those of CUDA, the TPUs' those of jax/_src/pallas/mosaic/tpu_info.py.
HARDWARE = {
    # NVIDIA H200 data sheet, SXM.
    "h200": Hardware(989e12, 141e9, 4.8e12, 700, ("NVIDIA H200",)),
    # NVIDIA H100 data sheet, SXM.
    "h100": Hardware(989e12, 80e9, 3.35e12, 700, ("NVIDIA H100 80GB HBM3",)),
    # NVIDIA H100 data sheet and product brief PB-11133, PCIe.
    "h100-pcie": Hardware(756e12, 80e9, 2.0e12, 350, ("NVIDIA H100 PCIe",)),
    # NVIDIA A100 data sheet, SXM, 80 GB.
    "a100": Hardware(312e12, 80e9, 2.039e12, 400, ("NVIDIA A100-SXM4-80GB",)),
    # The same, 40 GB.
    "a100-40": Hardware(312e12, 40e9, 1.555e12, 400, ("NVIDIA A100-SXM4-40GB",)),
    # NVIDIA V100 data sheet, SXM2, 32 GB. It has no bfloat16: the peak is float16's.
    "v100": Hardware(125e12, 32e9, 0.9e12, 300, ("Tesla V100-SXM2-32GB", "Tesla V100-SXM2-16GB")),
    # cloud.google.com/tpu/docs/v4; the power is the most measured by Jouppi et al. 2023 (arXiv:2304.01433).
    "v4": Hardware(275e12, 32e9, 1.2e12, 192, ("TPU v4",)),
    # cloud.google.com/tpu/docs/v5e, v5p, v6e. Google publishes no power for these. Eight v5e share two network cards of
    # 100 Gbit/s, eight v6e four of 200. A v5e has four matrix units of 128×128, a v5p eight in two cores, a v6e four of
    # 256×256; the clocks follow from the peaks.
    "v5e": Hardware(197e12, 16e9, 0.819e12, None, ("TPU v5 lite", "TPU v5e"), 200e9, 3.125e9, 128, 1.5e9),
    "v5p": Hardware(459e12, 95e9, 2.765e12, None, ("TPU v5", "TPU v5p"), 600e9, None, 128, 1.75e9),
    "v6e": Hardware(918e12, 32e9, 1.64e12, None, ("TPU v6 lite", "TPU v6e"), 400e9, 12.5e9, 256, 1.75e9),
}


def chip_name(device_kind: str) -> str:
    """The key in HARDWARE of what `jax.Device.device_kind` names, "" of what is not there."""
    return next((name for name, hardware in HARDWARE.items() if device_kind in hardware.device_kinds), "")


def find_hardware(device_kind: str) -> Hardware | None:
    """The hardware that `jax.Device.device_kind` names, or None for a CPU and for what is not in HARDWARE."""
    return next((hardware for hardware in HARDWARE.values() if device_kind in hardware.device_kinds), None)
