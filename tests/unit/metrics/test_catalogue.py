"""The table of all metrics: unique names, the file made of it, and what the dashboard shows."""

from dataclasses import fields
from pathlib import Path

from sae_dist.metrics import catalogue
from sae_dist.metrics.catalogue import EVAL, ROW, SUMMARY, known, markdown
from sae_dist.metrics.dashboard import SECTIONS
from sae_dist.train.balance import Waits

GROUPS = {"loss", "sparsity", "latents", "optim", "perf", "stream", "gpu", "host", "eval", "plots"}


def test_the_file_is_what_the_table_says():
    assert Path(catalogue.__file__).with_name("README.md").read_text() == markdown()


def test_names_are_unique_and_grouped():
    names = [metric.name for metric in (*ROW, *EVAL)]
    assert len(set(names)) == len(names)
    assert {name.split("/")[0] for name in names if "/" in name} == GROUPS
    assert all(metric.unit and metric.meaning for metric in (*ROW, *EVAL, *SUMMARY))


def test_placeholders_stand_for_one_part_of_a_name():
    assert known("gpu/0.3/power_w") and known("host/12/cpu") and known("plots/loss_fvu")
    assert not known("gpu/0/3/power_w") and not known("gpu//power_w") and not known("perf/unheard_of")


def test_the_dashboard_shows_known_metrics_alone():
    shown = {name for _, panels in SECTIONS for _, metrics, _ in panels for name in metrics}
    assert shown <= {metric.name for metric in (*ROW, *EVAL)}


def test_what_producers_and_consumers_waited_is_in_the_catalogue():
    said = {metric.name for metric in SUMMARY if metric.name.startswith("balance.")}
    assert said == {f"balance.{field.name}" for field in fields(Waits)}
