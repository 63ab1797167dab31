"""The machine's devices: NVML and CPU slots, leases, packing, sampling."""
