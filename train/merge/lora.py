"""Merge rules for LoRA: what counts is the delta weight s B A, with s = alpha / r.

A module's factors are A (r x d_in) and B (d_out x r). No rule but `dense` ever builds a d_out x d_in matrix.

    factor   s (sum w B) (sum w A)                                    has cross terms
    cat      A = rows of all A_j, B = columns w_j s_j B_j             exact; rank = sum of ranks
    svd      the exact sum, cut to rank r: B = U sqrt(S), A = sqrt(S) V^T      the best of that rank
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from train.merge.rules import MergeError, State, weighted_sum

A, B = "lora_A.weight", "lora_B.weight"
Modules: TypeAlias = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # module -> (A, B)


@dataclass(frozen=True)
class LoRA:
    """One source: its factors, and the scaling of all of them."""

    modules: Modules
    scaling: float


@dataclass(frozen=True)
class MergedLoRA:
    """The result, whose scaling is 1."""

    modules: Modules
    errors: Mapping[str, float]  # module -> ||exact sum - result|| / ||exact sum||, Frobenius


def lora_of(state: State, scaling: float) -> LoRA:
    """The factors in an adapter's tensors. Raises MergeError for a tensor that is none."""
    modules: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for key, value in state.items():
        if not key.endswith((f".{A}", f".{B}")) or value.dim() != 2:
            raise MergeError(
                f"tensor '{key}' {tuple(value.shape)} is no LoRA factor of a linear layer. Trained "
                "beside it (modules_to_save), a bias, DoRA's magnitudes, an embedding or a convolution: "
                "none of these is merged. Train the adapter without it"
            )
        if key.endswith(A):
            module = key.removesuffix(f".{A}")
            if f"{module}.{B}" not in state:
                raise MergeError(f"tensor '{key}' has no partner '{module}.{B}'")
            modules[module] = (value, state[f"{module}.{B}"])
    if alone := [k for k in state if k.endswith(B) and k.removesuffix(f".{B}") not in modules]:
        raise MergeError(f"tensor '{alone[0]}' has no partner ending in '{A}'")
    return LoRA(modules, scaling)


def state_of(modules: Modules) -> dict[str, torch.Tensor]:
    """The factors by the names they are saved under."""
    made = {}
    for module, (a, b) in modules.items():
        made[f"{module}.{A}"], made[f"{module}.{B}"] = a.contiguous(), b.contiguous()
    return made


def refuse_shapes(sources: Sequence[LoRA]) -> None:
    """Raises MergeError where adapters are for other modules or sizes; ranks may differ."""
    first, *others = (
        {m: (len(b), a.shape[1]) for m, (a, b) in one.modules.items()} for one in sources
    )
    for i, one in enumerate(others, start=2):
        if different := sorted(one.keys() ^ first.keys()):
            raise MergeError(f"source 1 and source {i}: only one of them has '{different[0]}'")
        for module, size in one.items():
            if size != first[module]:
                raise MergeError(
                    f"module '{module}': source {i} is for a layer of {size}, source 1 for one of "
                    f"{first[module]}"
                )


def _stacked(
    sources: Sequence[LoRA], weights: Sequence[float], module: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows of all A, columns w s B), in float64: their product is the exact sum."""
    used = [*zip(sources, weights, strict=True)]
    a = torch.cat([one.modules[module][0].double() for one in sources])
    b = torch.cat([w * one.scaling * one.modules[module][1].double() for one, w in used], dim=1)
    return a, b


def product_norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """Frobenius norm of B A, from the factors of B's and A's QR."""
    return float((_upper(b) @ _upper(a.T).T).norm())


def _upper(matrix: torch.Tensor) -> torch.Tensor:
    upper: torch.Tensor = torch.linalg.qr(matrix, mode="r").R
    return upper


def cat(sources: Sequence[LoRA], weights: Sequence[float]) -> MergedLoRA:
    """The exact sum. Ranks and alphas may differ."""
    made = {}
    for module, (like, _) in sources[0].modules.items():
        a, b = _stacked(sources, weights, module)
        made[module] = (a.to(like.dtype), b.to(like.dtype))
    return MergedLoRA(made, dict.fromkeys(made, 0.0))


def factor(sources: Sequence[LoRA], weights: Sequence[float]) -> MergedLoRA:
    """Weighted sums of the A and of the B, as published, of sources of one rank and scaling."""
    made, errors = {}, {}
    for module, (like, _) in sources[0].modules.items():
        a = weighted_sum([one.modules[module][0].double() for one in sources], weights)
        b = weighted_sum([one.modules[module][1].double() for one in sources], weights)
        b = b * sources[0].scaling
        exact_a, exact_b = _stacked(sources, weights, module)
        away = product_norm(torch.cat([exact_b, -b], 1), torch.cat([exact_a, a]))
        errors[module] = _ratio(away, product_norm(exact_b, exact_a))
        made[module] = (a.to(like.dtype), b.to(like.dtype))
    return MergedLoRA(made, errors)


def _ratio(away: float, whole: float) -> float:
    return 0.0 if away == 0 else away / whole if whole > 0 else math.inf


def svd(
    sources: Sequence[LoRA],
    weights: Sequence[float],
    rank: int | None = None,
    energy: float | None = None,
) -> MergedLoRA:
    """The best approximation of the exact sum of rank `rank`; null: the largest of the sources'.

    energy: instead of a rank, the share of the squared singular values that every module keeps. The rank of
    all is then that of the module that needs most.
    """
    rank = rank or _largest(sources)
    cores = {}
    for module in sources[0].modules:
        a, b = _stacked(sources, weights, module)
        # B A = Q_b (R_b R_a^T) Q_a^T, and the core is only as large as the sum of ranks.
        q_b, r_b = torch.linalg.qr(b)
        q_a, r_a = torch.linalg.qr(a.T)
        u, s, vh = torch.linalg.svd(r_b @ r_a.T)
        kept = len(s) if energy is not None else min(rank, len(s))
        cores[module] = (q_b @ u[:, :kept], s, vh[:kept] @ q_a.T)
    if energy is not None:
        rank = max(_needed(s, energy) for _, s, _ in cores.values())
    return _cut(cores, rank, sources[0])


def _largest(sources: Sequence[LoRA]) -> int:
    return max(rank_of(one.modules) for one in sources)


def rank_of(modules: Modules) -> int:
    """The largest rank of a module."""
    return max(len(a) for a, _ in modules.values())


def _needed(s: torch.Tensor, energy: float) -> int:
    """How many of the singular values, largest first, have this share of the sum of squares."""
    if not 0 < energy <= 1:
        raise MergeError(f"energy={energy}: must be above 0 and at most 1")
    squares = s.square()
    # At energy 1, what rounding leaves of zero singular values asks for no rank.
    share = squares.cumsum(0) / squares.sum().clamp(min=1e-300)
    return min(len(s), int((share < energy - 1e-12).sum()) + 1)


def _cut(
    cores: Mapping[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]], rank: int, like: LoRA
) -> MergedLoRA:
    """U, S, V^T of every module as factors of one rank; where a module has fewer, zeros."""
    if rank < 1:
        raise MergeError(f"rank={rank}: must be 1 or more")
    made, errors = {}, {}
    for module, (u, s, vh) in cores.items():
        kept = min(rank, len(s))
        root = s[:kept].sqrt()
        a, b = root.unsqueeze(1) * vh[:kept], u[:, :kept] * root
        dtype = like.modules[module][0].dtype
        made[module] = (a.to(dtype), b.to(dtype))
        errors[module] = _ratio(float(s[kept:].norm()), float(s.norm()))
    return MergedLoRA(filled(made, rank), errors)


def filled(modules: Modules, rank: int) -> Modules:
    """The same with factors of one rank, zeros where a module has fewer."""
    made = {}
    for module, (a, b) in modules.items():
        lacking = rank - len(a)
        if lacking:
            a = torch.cat([a, a.new_zeros(lacking, a.shape[1])])
            b = torch.cat([b, b.new_zeros(len(b), lacking)], dim=1)
        made[module] = (a, b)
    return made


def dense(
    sources: Sequence[LoRA],
    rule: Callable[[Sequence[State]], State],
    rank: int | None = None,
) -> MergedLoRA:
    """Any rule on the delta weights themselves, cut to `rank`; null: the largest of the sources'.

    Builds d_out x d_in matrices, of one module at a time. For rules that look at single entries.
    """
    cores = {}
    for module in sources[0].modules:
        taus = []
        for one in sources:
            a, b = one.modules[module]
            taus.append({module: one.scaling * (b.double() @ a.double())})
        cores[module] = torch.linalg.svd(rule(taus)[module], full_matrices=False)
    return _cut(cores, rank or _largest(sources), sources[0])
