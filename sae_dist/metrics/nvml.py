"""The state of a run's GPUs from NVIDIA's management library, as numbers by name.

Each query is tried on each GPU: one that a GPU does not support is left out from then on; one that fails
otherwise is left out of that sample.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from sae_dist.core.text import GIB

THROTTLED_BY = {
    0x8: "hardware slowdown",
    0x20: "temperature (software)",
    0x40: "temperature (hardware)",
    0x80: "power brake",
}
"""Bits of NVML's clock event reasons that mean that something is wrong. Idle clocks, clocks that were set,
and the power cap (0x4), under which a busy GPU ordinarily runs, are not among them."""
ALL_LINKS = 0xFFFFFFFF


@dataclass
class _Gpu:
    handle: Any
    index: int
    events: Any = None
    unsupported: set[str] = field(default_factory=set)
    energy_at_start: float | None = None
    integrated_j: float = 0.0
    last_s: float | None = None
    last: dict[str, float] = field(default_factory=dict)
    xids: int = 0
    xid: int = 0


class Nvml:
    """A sampler of the GPUs with these UUIDs.

    Args:
        library: pynvml.
        uuids: as torch writes them, without "GPU-".

    Raises:
        library.NVMLError: there is no driver, or it does not know a GPU.
    """

    def __init__(self, library: ModuleType, uuids: list[str]):
        self.library = library
        library.nvmlInit()
        self.gpus = []
        for uuid in uuids:
            handle = library.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
            gpu = _Gpu(handle, library.nvmlDeviceGetIndex(handle))
            self._ask(gpu, "xid", self._listen)
            self.gpus.append(gpu)

    def sample(self) -> dict[int, dict[str, float]]:
        """Measure what `metrics.catalogue` lists under gpu/{gpu}/, by the GPU's number on this machine."""
        return {gpu.index: self._sample(gpu, time.monotonic()) for gpu in self.gpus}

    def close(self) -> None:
        """Shut the library down."""
        self.library.nvmlShutdown()

    def _sample(self, gpu: _Gpu, now: float) -> dict[str, float]:
        found: dict[str, float] = {}
        for name, query in self._queries().items():
            value = self._ask(gpu, name, query)
            if value is not None:
                found |= value
        for total in ("nvlink_sent_kib", "nvlink_received_kib"):
            if total in found:
                rate = self._rate(gpu, total, found[total], now)
                found.pop(total)
                if rate is not None:
                    found[total.replace("_kib", "_gib_per_s")] = rate / 2**20
        if "power_w" in found and gpu.last_s is not None:
            gpu.integrated_j += found["power_w"] * (now - gpu.last_s)
        if "energy_j" not in found:
            found["energy_j"] = gpu.integrated_j
        gpu.last_s = now
        return found

    def _queries(self) -> dict[str, Callable[[_Gpu], dict[str, float]]]:
        lib = self.library
        ecc, link = self._ecc, self._link
        return {
            "power": lambda gpu: {"power_w": lib.nvmlDeviceGetPowerUsage(gpu.handle) / 1000},
            "energy": self._energy,
            "utilisation": lambda gpu: {
                "utilisation": lib.nvmlDeviceGetUtilizationRates(gpu.handle).gpu / 100,
                "memory_utilisation": lib.nvmlDeviceGetUtilizationRates(gpu.handle).memory / 100,
            },
            "memory": lambda gpu: {"memory_gib": lib.nvmlDeviceGetMemoryInfo(gpu.handle).used / GIB},
            "temperature": lambda gpu: {
                "temperature_c": lib.nvmlDeviceGetTemperature(gpu.handle, lib.NVML_TEMPERATURE_GPU)
            },
            "sm": lambda gpu: {"sm_mhz": lib.nvmlDeviceGetClockInfo(gpu.handle, lib.NVML_CLOCK_SM)},
            "mem": lambda gpu: {"memory_mhz": lib.nvmlDeviceGetClockInfo(gpu.handle, lib.NVML_CLOCK_MEM)},
            "reasons": self._reasons,
            "uncorrected": lambda gpu: ecc(gpu, "uncorrected", lib.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            "corrected": lambda gpu: ecc(gpu, "corrected", lib.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            "xid": self._xid,
            "pcie": self._pcie,
            "sent": lambda gpu: link(gpu, "nvlink_sent_kib", lib.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX),
            "received": lambda gpu: link(
                gpu, "nvlink_received_kib", lib.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX
            ),
        }

    def _ask(self, gpu: _Gpu, name: str, query: Callable[[_Gpu], Any]) -> Any:
        if name in gpu.unsupported:
            return None
        lib = self.library
        try:
            return query(gpu)
        except lib.NVMLError as error:
            if isinstance(error, lib.NVMLError_NotSupported | lib.NVMLError_FunctionNotFound):
                gpu.unsupported.add(name)
            return None

    def _energy(self, gpu: _Gpu) -> dict[str, float]:
        joules = self.library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) / 1000
        if gpu.energy_at_start is None:
            gpu.energy_at_start = joules
        return {"energy_j": joules - gpu.energy_at_start}

    def _reasons(self, gpu: _Gpu) -> dict[str, float]:
        mask = self.library.nvmlDeviceGetCurrentClocksEventReasons(gpu.handle)
        return {"clock_event_reasons": mask, "throttled": float(any(mask & bit for bit in THROTTLED_BY))}

    def _ecc(self, gpu: _Gpu, name: str, kind: int) -> dict[str, float]:
        lib = self.library
        return {f"ecc_{name}": lib.nvmlDeviceGetTotalEccErrors(gpu.handle, kind, lib.NVML_VOLATILE_ECC)}

    def _pcie(self, gpu: _Gpu) -> dict[str, float]:
        lib = self.library
        sent = lib.nvmlDeviceGetPcieThroughput(gpu.handle, lib.NVML_PCIE_UTIL_TX_BYTES)
        received = lib.nvmlDeviceGetPcieThroughput(gpu.handle, lib.NVML_PCIE_UTIL_RX_BYTES)
        return {"pcie_sent_gib_per_s": sent / 2**20, "pcie_received_gib_per_s": received / 2**20}

    def _link(self, gpu: _Gpu, name: str, number: int) -> dict[str, float]:
        lib = self.library
        (value,) = lib.nvmlDeviceGetFieldValues(gpu.handle, [(number, ALL_LINKS)])
        if value.nvmlReturn:
            raise lib.NVMLError(value.nvmlReturn)
        return {name: value.value.ullVal}

    def _rate(self, gpu: _Gpu, name: str, total: float, now: float) -> float | None:
        before, gpu.last[name] = gpu.last.get(name), total
        return (
            None if before is None or gpu.last_s is None else (total - before) / max(now - gpu.last_s, 1e-9)
        )

    def _listen(self, gpu: _Gpu) -> None:
        lib = self.library
        gpu.events = lib.nvmlEventSetCreate()
        lib.nvmlDeviceRegisterEvents(gpu.handle, lib.nvmlEventTypeXidCriticalError, gpu.events)

    def _xid(self, gpu: _Gpu) -> dict[str, float]:
        """Count XID events since the last sample; return their number so far, and the last error."""
        lib = self.library
        while True:
            try:
                event = lib.nvmlEventSetWait_v2(gpu.events, 0)
            except lib.NVMLError_Timeout:
                break
            gpu.xids += 1
            gpu.xid = int(event.eventData)
        return {"xids": gpu.xids, "xid": gpu.xid}


def reasons_in_words(mask: int) -> str:
    """Name the reasons why a GPU is slowed down, from its clock event reasons."""
    return ", ".join(word for bit, word in THROTTLED_BY.items() if mask & bit)
