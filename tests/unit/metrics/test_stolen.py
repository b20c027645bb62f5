"""What a hypervisor gives to others, in the line under a table of times."""

from types import SimpleNamespace

from sae_dist.metrics import stolen


def reading(**seconds):
    return SimpleNamespace(**{"user": 100.0, "nice": 0.0, "system": 10.0, "idle": 500.0} | seconds)


def test_the_share_is_of_the_time_asked_for():
    before = reading(steal=3.0, irq=0.0, softirq=0.0)
    now = reading(user=128.0, system=12.0, idle=900.0, steal=13.0, irq=0.0, softirq=0.0)
    assert stolen.share(before, now) == 10 / 40


def test_it_is_none_where_it_is_not_known_and_where_nothing_was_asked_for():
    assert stolen.share(reading(), reading(user=128.0)) == 0
    assert stolen.share(reading(steal=1.0), reading(steal=1.0, idle=900.0)) == 0


def test_a_remark_only_where_it_matters(monkeypatch):
    monkeypatch.setattr(stolen.psutil, "cpu_times", lambda: reading(steal=0.0))
    found = stolen.Stolen()
    for steal, remark in ((0.1, ""), (10.0, "; the host gave 25% of the processor time to others")):
        monkeypatch.setattr(stolen.psutil, "cpu_times", lambda steal=steal: reading(user=130.0, steal=steal))
        assert found.remark() == remark
