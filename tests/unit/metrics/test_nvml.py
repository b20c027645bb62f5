"""Numbers of GPUs, through a fake of the functions of pynvml that are called."""

from types import SimpleNamespace

import pytest

from sae_dist.metrics import nvml as module
from sae_dist.metrics.catalogue import known
from sae_dist.metrics.nvml import Nvml, reasons_in_words


class NVMLError(Exception):
    pass


class NVMLError_NotSupported(NVMLError):
    pass


class NVMLError_FunctionNotFound(NVMLError):
    pass


class NVMLError_Timeout(NVMLError):
    pass


class FakeNvml:
    """A fake of the module pynvml with two GPUs; `missing` are functions that the GPUs do not support."""

    NVMLError, NVMLError_NotSupported = NVMLError, NVMLError_NotSupported
    NVMLError_FunctionNotFound, NVMLError_Timeout = NVMLError_FunctionNotFound, NVMLError_Timeout
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM = 0, 1, 2
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC = 0, 1, 0
    NVML_PCIE_UTIL_TX_BYTES, NVML_PCIE_UTIL_RX_BYTES = 0, 1
    NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX = 138, 139
    nvmlEventTypeXidCriticalError = 8

    def __init__(self, missing: tuple[str, ...] = ()):
        self.missing, self.calls = missing, []
        self.joules, self.kib, self.reasons, self.xids = 5000.0, 0, 0x4, list[int]()
        self.open = False

    def __getattribute__(self, name):
        if name.startswith("nvml"):
            object.__getattribute__(self, "calls").append(name)
            if name in object.__getattribute__(self, "missing"):

                def refuse(*_):
                    raise NVMLError_NotSupported

                return refuse
        return object.__getattribute__(self, name)

    def nvmlInit(self):
        self.open = True

    def nvmlShutdown(self):
        self.open = False

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-a": 0, "GPU-b": 1}[uuid]

    def nvmlDeviceGetIndex(self, handle):
        return handle + 4

    def nvmlDeviceGetPowerUsage(self, handle):
        return 300_000 + 100_000 * handle

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        return self.joules * 1000

    def nvmlDeviceGetUtilizationRates(self, handle):
        return SimpleNamespace(gpu=80, memory=40)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=3 * 2**30, total=80 * 2**30)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        return 60 + handle

    def nvmlDeviceGetClockInfo(self, handle, kind):
        return {1: 1755, 2: 2619}[kind]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):
        return self.reasons

    def nvmlDeviceGetTotalEccErrors(self, handle, kind, counter):
        return kind

    def nvmlDeviceGetPcieThroughput(self, handle, counter):
        return 2**20 * (1 + counter)

    def nvmlDeviceGetFieldValues(self, handle, fields):
        ((number, scope),) = fields
        assert scope == module.ALL_LINKS
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(ullVal=self.kib * (number - 137)))]

    def nvmlEventSetCreate(self):
        return "events"

    def nvmlDeviceRegisterEvents(self, handle, types, events):
        assert types == 8

    def nvmlEventSetWait_v2(self, events, milliseconds):
        assert milliseconds == 0, "the thread must not wait"
        if not self.xids:
            raise NVMLError_Timeout
        return SimpleNamespace(eventData=self.xids.pop(0))


@pytest.fixture
def seconds(monkeypatch):
    """A clock that a test moves."""
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_every_number_by_its_gpu_and_all_of_them_in_the_catalogue(seconds):
    fake = FakeNvml()
    nvml = Nvml(fake, ["a", "b"])
    nvml.sample()
    seconds.now += 2.0
    fake.joules, fake.kib, fake.reasons, fake.xids = 5600.0, 2**22, 0x44, [31, 79]
    first, second = (nvml.sample()[index] for index in (4, 5))
    assert all(known(f"gpu/0.4/{name}") for name in first)
    assert (first["power_w"], second["power_w"]) == (300.0, 400.0)
    assert first["energy_j"] == 600.0 and first["utilisation"] == 0.8 and first["memory_gib"] == 3.0
    assert (first["sm_mhz"], first["memory_mhz"], first["temperature_c"]) == (1755, 2619, 60)
    assert first["nvlink_sent_gib_per_s"] == 2.0 and first["nvlink_received_gib_per_s"] == 4.0
    assert first["pcie_sent_gib_per_s"] == 1.0 and first["pcie_received_gib_per_s"] == 2.0
    assert first["throttled"] == 1.0 and reasons_in_words(0x44) == "temperature (hardware)"
    assert (first["ecc_corrected"], first["ecc_uncorrected"]) == (0, 1)
    assert (first["xids"], first["xid"]) == (2, 79)
    nvml.close()
    assert not fake.open


def test_what_a_gpu_does_not_support_is_left_out_and_not_asked_again(seconds):
    missing = ("nvmlDeviceGetFieldValues", "nvmlEventSetCreate", "nvmlDeviceGetTotalEnergyConsumption")
    fake = FakeNvml(missing)
    nvml = Nvml(fake, ["a"])
    nvml.sample()
    seconds.now += 2.0
    asked = len(fake.calls)
    found = nvml.sample()[4]
    assert not {name for name in found if "nvlink" in name or "xid" in name}
    assert not set(missing) & set(fake.calls[asked:])
    assert found["energy_j"] == 600.0, "power times time"
    assert found["power_w"] == 300.0


def test_the_power_cap_is_no_throttling(seconds):
    nvml = Nvml(FakeNvml(), ["a"])
    found = nvml.sample()[4]
    assert found["clock_event_reasons"] == 0x4 and found["throttled"] == 0.0
