"""Inside torchrun the command joins instead of spawning."""

from tests.commands import TINY, rows, sae_dist

TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone")


def test_joins_as_a_rank(tmp_path):
    done = sae_dist(
        tmp_path, "train", *TINY, "train_tokens=15360", "name=joined", "topology.shard=2", launcher=TORCHRUN
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "outputs" / "joined")] == list(range(1, 21))
    assert (tmp_path / "outputs" / "joined" / "export" / "cfg.json").exists()


def test_wrong_world_size_is_one_line(tmp_path):
    done = sae_dist(tmp_path, "train", *TINY, "name=wrong", "topology.shard=4", launcher=TORCHRUN)
    ours = [line for line in done.stderr.splitlines() if line.startswith("sae-dist: error:")]
    assert done.returncode != 0
    assert len(ours) == 1 and "topology" in ours[0] and "2" in ours[0]
    assert not (tmp_path / "outputs" / "wrong").exists()
