"""The floors of `sae-dist bench step`, and a dense dictionary, in torch alone.

product_float32, product_tf32, product_bfloat16
            the floor: the encoder's bare product x W_enc^T, in tiles of latents, each into the same memory
copy        of W_enc, on the device
dense       a TopK dictionary as one would write it down: every score, topk, scatter, dense product;
            compiled by torch.compile, float32 ("high" on a GPU), torch's fused Adam, unit decoder rows. No
            clipping, no radial projection, no statistics but those that AuxK needs

Letters: as core.types.

python -m sae_dist.bench.step.plain job.json
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from sae_dist.bench.peers.step_io import (
    LR,
    SEED,
    Problem,
    draw,
    read_job,
    seconds_of,
    serve,
    sum_of_squares,
)
from sae_dist.bench.scaling import EncoderProduct
from sae_dist.kernels.products import products

ROWS = 256
DTYPES = {
    "product_float32": torch.float32,
    "product_tf32": torch.float32,
    "product_bfloat16": torch.bfloat16,
}
DEAD_AFTER = 10_000_000
AUX_COEFFICIENT = 1 / 32


class Floor:
    """An operation that a step cannot do without; it trains nothing. See `peers.step_io.Stepper`."""

    def __init__(self, problem: Problem, act: Callable[[], object], settings: str, *, tf32: bool = False):
        self.problem, self.act, self.settings, self.tf32 = problem, act, settings, tf32

    def squared_error(self, x_BD: Tensor) -> Tensor:
        """Return the squared error by the definition, which others must match; draws the weights again."""
        return by_definition(x_BD, draw(self.problem.ask, self.problem.device))

    def revive(self, dead_F: Tensor | None) -> None:
        """Do nothing: there are no counters."""

    def num_dead(self) -> int:
        """Return 0: there are no latents."""
        return 0

    def run(self, steps: int) -> float:
        """Repeat the operation; return the seconds."""
        with products(tf32=self.tf32):
            return seconds_of(lambda: [self.act() for _ in range(steps)], self.problem.device)


def by_definition(x_BD: Tensor, problem: Problem) -> Tensor:
    """Return the summed squared error of relu(topk(W_enc (x - b_dec) + b_enc)) W_dec + b_dec.

    A few rows at a time, as scores of all latents would take too much memory.
    """
    W_enc_FD, errors = problem.W_enc_FD(), []
    for rows in x_BD.split(ROWS):
        score_BF = torch.addmm(problem.b_enc_F, rows - problem.b_dec_D, W_enc_FD.T)
        val_BK, idx_BK = score_BF.topk(problem.k, dim=1)
        code_BF = torch.zeros_like(score_BF).scatter_(1, idx_BK, val_BK.relu())
        errors.append(sum_of_squares(rows - code_BF @ problem.W_dec_FD - problem.b_dec_D))
    return torch.stack(errors).sum()


class Dense:
    """A TopK dictionary as one would write it down, compiled; see `peers.step_io.Stepper`."""

    def __init__(self, problem: Problem):
        self.x_BD, self.k = problem.x_BD, problem.k
        self.W_enc_FD, self.b_enc_F, self.W_dec_FD, self.b_dec_D = (
            torch.nn.Parameter(each.clone())
            for each in (problem.W_enc_FD(), problem.b_enc_F, problem.W_dec_FD, problem.b_dec_D)
        )
        self.parameters = [self.W_enc_FD, self.b_enc_F, self.W_dec_FD, self.b_dec_D]
        self.adam = torch.optim.Adam(self.parameters, lr=LR, fused=True)
        self.since_F = torch.zeros(problem.latents, dtype=torch.int64, device=problem.device)
        self.compiled = torch.compile(self.loss, dynamic=False)
        off = torch._dynamo.config.disable
        compiled = "torch.compile switched off by TORCHDYNAMO_DISABLE" if off else "torch.compile"
        self.settings = f"float32, {compiled}, fused Adam, AuxK 1/32"
        self.aux_k = 0
        self.ready: set[int] = set()

    def forward(self, x_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scores, the latents with the best of them, and the reconstruction."""
        score_BF = torch.addmm(self.b_enc_F, x_BD - self.b_dec_D, self.W_enc_FD.T)
        val_BK, idx_BK = score_BF.topk(self.k, dim=1)
        code_BF = torch.zeros_like(score_BF).scatter(1, idx_BK, val_BK.relu())
        return score_BF, idx_BK, code_BF @ self.W_dec_FD + self.b_dec_D

    def loss(self, x_BD: Tensor, dead_F: Tensor, aux_k: int) -> tuple[Tensor, Tensor]:
        """Return the loss, and the latents chosen in each row."""
        score_BF, idx_BK, y_BD = self.forward(x_BD)
        error_BD = x_BD - y_BD
        total = error_BD.square().sum(1).mean()
        if aux_k:
            val_BK, aux_BK = score_BF.masked_fill(~dead_F, -torch.inf).topk(aux_k, dim=1)
            code_BF = torch.zeros_like(score_BF).scatter(1, aux_BK, val_BK.relu())
            residual_BD = error_BD.detach()
            missed = (residual_BD - code_BF @ self.W_dec_FD).square().sum()
            total = total + AUX_COEFFICIENT * missed / residual_BD.square().sum()
        return total, idx_BK

    def squared_error(self, x_BD: Tensor) -> Tensor:
        """Return the squared error by the same formulas, not compiled."""
        with products(tf32=True):
            return sum_of_squares(x_BD - self.forward(x_BD)[2])

    def revive(self, dead_F: Tensor | None) -> None:
        """Set the counters, and how many latents AuxK chooses: no step then has to ask the device."""
        self.since_F.zero_()
        if dead_F is not None:
            self.since_F[dead_F] = DEAD_AFTER + 1
        self.aux_k = min(self.x_BD.shape[1] // 2, self.num_dead())

    def num_dead(self) -> int:
        """Count the dead latents by the counters."""
        return int((self.since_F > DEAD_AFTER).sum())

    def run(self, steps: int) -> float:
        """Make training steps; return their seconds without those of compiling."""
        with products(tf32=True):
            if self.aux_k not in self.ready:
                self.step()
                self.ready.add(self.aux_k)
            return seconds_of(partial(self.steps, steps), self.x_BD.device)

    def steps(self, number: int) -> None:
        """Make some steps, one after the other."""
        for _ in range(number):
            self.step()

    def step(self) -> None:
        """Make one step: loss, gradients, update, unit rows, counters."""
        total, idx_BK = self.compiled(self.x_BD, self.since_F > DEAD_AFTER, self.aux_k)
        total.backward()
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            self.W_dec_FD.div_(self.W_dec_FD.norm(dim=1, keepdim=True))
            self.since_F += len(self.x_BD)
            self.since_F[idx_BK.flatten()] = 0


def product(problem: Problem, name: str) -> Floor:
    """Return the encoder's product in one dtype as a floor.

    Raises:
        ValueError: this CPU cannot multiply in it.
    """
    dtype = DTYPES[name]
    if problem.device.type == "cpu" and dtype == torch.bfloat16:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            raise ValueError("this CPU does not multiply bfloat16")
    encoder = EncoderProduct(problem.latents, problem.width, problem.batch, problem.device, dtype)
    dtype_name = name.removeprefix("product_")
    return Floor(problem, encoder, f"x W_enc^T, {dtype_name}", tf32=dtype_name == "tf32")


def copy(problem: Problem) -> Floor:
    """Return the copy of W_enc to another place as a floor."""
    made = torch.Generator(problem.device).manual_seed(SEED)
    source = torch.randn(problem.latents, problem.width, generator=made, device=problem.device)
    target = torch.empty_like(source)
    return Floor(problem, lambda: target.copy_(source), f"W_enc, {source.nbytes / 1e9:.2f} GB")


def make_plain(name: str) -> Callable[[Problem], Floor | Dense]:
    """Return what makes the contestant that the job's variant names."""
    if name == "dense":
        return Dense
    return copy if name == "copy" else lambda problem: product(problem, name)


def main() -> None:
    job = read_job()
    if job.variant == "dense":
        import torch._inductor.compile_fx
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # no pool of processes that stays beside the others
    serve(job, make_plain(job.variant), None, rehearse=False)


if __name__ == "__main__":
    main()
