"""The tensor parallel size: as told, by a recipe, or the least that fits."""

from __future__ import annotations

from runbook.errors import PRECONDITION, USAGE, RunbookError
from runbook.steps.new import fit
from runbook.steps.new.choice import STATED, Choice
from runbook.steps.new.kv import Cache
from runbook.steps.new.machine import GIB, Machine
from runbook.steps.new.model import Model
from runbook.steps.new.recipe import Recipe


def ranks_for(
    model: Model,
    machine: Machine,
    cache: Cache,
    wish: fit.Wish,
    batched: int,
    told: int | None,
    recipe: Recipe | None,
) -> tuple[Choice, fit.Need]:
    """The tensor parallel size, and what a rank then needs. Raises `RunbookError`."""
    key = "tensor_parallel_size"
    why = STATED.format(option="--tensor-parallel-size")
    if told is None and recipe and recipe.ranks and recipe.ranks <= max(1, machine.gpus):
        told, why = recipe.ranks, "by the recipe"
    if told is not None:
        if bad := fit.divides(model, told):
            raise RunbookError(
                f"{bad} cannot be divided among {told} ranks",
                code="does_not_divide",
                exit_code=USAGE,
                remedy="leave --tensor-parallel-size out",
            )
        return Choice(key, told, why), fit.need(model, cache, wish, batched, told)
    if not machine.gpus:
        need = fit.need(model, cache, wish, batched, 1)
        return Choice(key, 1, "one CPU worker holds it all"), need
    room, most = fit.room(machine), None
    for ranks in fit.candidates(model, machine.gpus):
        need = fit.need(model, cache, wish, batched, ranks)
        if need.all <= room:
            card = f"{room / GIB:.0f} of a card's {machine.gpu_memory / GIB:.0f} GiB"
            return Choice(key, ranks, f"the least whose ranks fit {card}: {need.words()}"), need
        most = (ranks, need)
    raise _too_large(model, machine, cache, wish, batched, most)


def _too_large(
    model: Model,
    machine: Machine,
    cache: Cache,
    wish: fit.Wish,
    batched: int,
    most: tuple[int, fit.Need] | None,
) -> RunbookError:
    message = (
        f"{wish.users} users at {wish.context:,} tokens of {model.source} do not fit "
        f"{machine.gpus} x {machine.gpu_memory / GIB:.0f} GiB"
    )
    if most is None:
        cause, remedy = "no number of ranks divides its heads", "take other hardware"
    else:
        ranks, need = most
        cause = f"each of {ranks} ranks needs {need.words()}, of {fit.room(machine) / GIB:.1f} GiB"
        spare = fit.room(machine) - need.weights - need.work
        length = wish.context
        while length > 1024 and wish.users * cache.request(length, batched, ranks) > spare:
            length = length * 7 // 8
        fits = wish.users * cache.request(length, batched, ranks) <= spare
        remedy = (
            f"ask for --context {length // 1024 * 1024 or length}, or fewer --users"
            if fits
            else "take a smaller model or format, or cards with more memory"
        )
    return RunbookError(
        message, code="does_not_fit", exit_code=PRECONDITION, cause=cause, remedy=remedy
    )
