"""What several processes share out among them, instead of each having all of it.

`optimizer`: each process keeps the optimizer's state of its share of the trained parameters,
updates these, and sends them to the others. Parameters and gradients are whole everywhere, so the
weights are bitwise those that processes without shares compute.

`full`: the parameters that the backbone was loaded with are shared out too, by torch's FSDP2, with
their gradients and the optimizer's state. A layer is gathered while it computes. What a method has
added (blocks, prompts, routers) stays whole in every process. This holds while a phase is trained
(`fully_sharded`); before and after it all parameters are whole, for whatever reads the model.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from retain.system import processes

if TYPE_CHECKING:  # imported where it is used: a single process needs none of it
    from torch.distributed.tensor import DTensor


def share_of(checkpoint: str | Path) -> Path:
    """Returns the file of this process's share of the optimizer's state in a checkpoint.

    The first process's is named as the whole that Trainer writes; the others' are numbered like its
    random states.
    """
    number = f"_{processes.rank()}" if processes.rank() else ""
    return Path(checkpoint) / f"optimizer{number}.pt"


# -- optimizer


def shared_out(
    kind: type[torch.optim.Optimizer], groups: list[dict[str, Any]], options: dict[str, Any]
) -> torch.optim.Optimizer:
    """Returns an optimizer of a class that keeps this process's share of the state.

    Its `state_dict` is that share, in the numbering of its own parameters.
    """
    with warnings.catch_warnings():
        # The package also holds optimizers in TorchScript, which nobody uses here.
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated")
        from torch.distributed.optim import ZeroRedundancyOptimizer

    class Share(ZeroRedundancyOptimizer):
        """Gives and takes its own share only, where the base class gathers all on one process."""

        def state_dict(self) -> dict[str, Any]:
            # The schedule sets the rates of the whole, which the share takes over in a step only.
            _copy_settings(self.param_groups, self.optim.param_groups)
            share: dict[str, Any] = self.optim.state_dict()
            return share

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.optim.load_state_dict(state_dict)
            _copy_settings(self.optim.param_groups, self.param_groups)

    return Share(groups, optimizer_class=kind, **options)


def _copy_settings(source: list[dict[str, Any]], target: list[dict[str, Any]]) -> None:
    for given, taken in zip(source, target, strict=True):
        taken.update({name: value for name, value in given.items() if name != "params"})


# -- full


@contextmanager
def fully_sharded(
    module: nn.Module, layers: tuple[nn.Module, ...], loaded: tuple[nn.Parameter, ...]
) -> Iterator[dict[int, nn.Parameter]]:
    """Shares out a model's loaded parameters while it is trained in here.

    Meanwhile the model's own parameters are DTensors, or whole within a layer that computes and, of
    what is in no layer (embeddings), within `module`. The `loaded` objects hold NaN, so that
    whoever still reads them is found out. They are the model's again afterwards, with what was
    learned; after an error nothing is put back.

    Args:
        module: what Trainer calls; the model is in it.
        layers: its parts that are gathered one at a time.
        loaded: the parameters to share out, on their device. All others stay whole.

    Yields:
        The parameter to train in place of each loaded one, by the id of the latter.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    known = {id(parameter) for parameter in loaded}
    places = [
        (part, name, parameter)
        for part in module.modules()
        for name, parameter in part._parameters.items()
        if parameter is not None and id(parameter) in known
    ]  # a tied parameter has several
    others = {parameter for parameter in module.parameters() if id(parameter) not in known}
    mesh = init_device_mesh(loaded[0].device.type, (processes.count(),))
    before = [(part, type(part), _hooks(part)) for part in module.modules()]
    shares: dict[int, nn.Parameter] = {}
    for part in (*layers, module):
        fully_shard(part, mesh=mesh, ignored_params=others)
        for owner, name, parameter in places:
            share = owner._parameters[name]
            if share is not None and share is not parameter and id(parameter) not in shares:
                shares[id(parameter)] = share
                nothing = torch.full((), torch.nan, dtype=parameter.dtype, device=parameter.device)
                parameter.data = nothing.expand(parameter.shape)
    yield shares
    for part, kind, hooks in before:
        _undo(part, kind, hooks)
    for owner, name, parameter in places:
        if (share := shares.pop(id(parameter), None)) is not None:
            parameter.data = whole(share.detach())
        owner._parameters[name] = parameter
    gc.collect()  # what FSDP2 held refers to itself


def _hooks(module: nn.Module) -> dict[str, set[int]]:
    """Returns the numbers of a module's hooks by the name of their kind."""
    return {name: set(hooks) for name, hooks in vars(module).items() if "_hooks" in name and hooks}


def _undo(module: nn.Module, kind: type[nn.Module], hooks: Mapping[str, set[int]]) -> None:
    """Removes from a module what `fully_shard` has added; torch has no function for it."""
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY
    from torch.distributed._composable_state import _module_state_mapping

    module.__class__ = kind
    for name, known in _hooks(module).items():
        for number in known - hooks.get(name, set()):
            del vars(module)[name][number]
    for name in (STATE_KEY, REGISTRY_KEY, "_is_fsdp_managed_module", "_fsdp_use_orig_params"):
        vars(module).pop(name, None)
    _module_state_mapping.pop(module, None)


def is_share(tensor: Tensor) -> TypeGuard[DTensor]:
    """Tells whether a tensor is this process's share of one that is shared out."""
    if processes.count() == 1:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def own(share: Tensor) -> Tensor:
    """Returns the numbers of a share that lie in this process; of another tensor, all."""
    return share.to_local() if is_share(share) else share


def whole(share: Tensor) -> Tensor:
    """Gathers a tensor that is shared out, which every process has to call; returns others."""
    return share.full_tensor() if is_share(share) else share


def own_part(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns of a whole tensor what this process has of a parameter of the same shape."""
    if not is_share(parameter):
        return tensor
    first = own(parameter).shape[0]
    size = -(-tensor.shape[0] // processes.count())  # as FSDP2 cuts rows, the last short or none
    return tensor.narrow(0, min(processes.rank() * size, tensor.shape[0]), first)


def total(terms: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Adds up terms that were computed of parameters, in whole or in shares.

    Every process has to call it. The gradient of a term is averaged over the processes, as that of
    a loss is.

    Args:
        terms: each parameter with the scalar that was computed of what this process has of it.
    """
    of_whole = [term for parameter, term in terms if not is_share(parameter)]
    of_shares = [term for parameter, term in terms if is_share(parameter)]
    sums = [torch.stack(of_whole).sum()] if of_whole else []
    if of_shares:
        sums.append(_AddUp.apply(torch.stack(of_shares).sum()))
    return torch.stack(sums).sum()


class _AddUp(torch.autograd.Function):
    """Σ x over processes, with the mean of the processes' gradients as gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = x.clone()
        dist.all_reduce(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        mean = gradients[0] / processes.count()
        dist.all_reduce(mean)
        return mean


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gathers what is shared out, one by one, in the first process's RAM.

    Every process has to call it. The others get none of what is shared out.
    """
    result = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if is_share(tensor):
            full = full.cpu() if processes.is_first() else full[:0]
        result[name] = full
    return result


def divided(tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns whole tensors as they can be loaded into parameters of the same names."""
    result = {}
    for name, tensor in tensors.items():
        parameter = parameters[name]
        if is_share(parameter):
            from torch.distributed.tensor import distribute_tensor

            mesh, placements = parameter.device_mesh, parameter.placements
            tensor = distribute_tensor(tensor, mesh, placements, src_data_rank=None)
        result[name] = tensor
    return result


def own_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Returns the state of an optimizer without what other processes hold of it."""
    stored = optimizer.state_dict()
    state = {
        number: {name: own(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        for number, values in stored["state"].items()
    }
    return {**stored, "state": state}


def load_own_state(optimizer: torch.optim.Optimizer, stored: dict[str, Any]) -> None:
    """Restores what `own_state` returned in this process."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        number: {name: _as(v, parameters[number]) for name, v in values.items()}
        for number, values in stored["state"].items()
    }
    optimizer.load_state_dict({**stored, "state": state})


def _as(value: Any, parameter: nn.Parameter) -> Any:
    """Makes a tensor of a parameter's state a share like the parameter; not a step's number."""
    if not (is_share(parameter) and isinstance(value, Tensor) and value.ndim):
        return value
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def average(parameters: list[nn.Parameter]) -> None:
    """Replaces gradients by their means over the processes."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= processes.count()
            dist.all_reduce(parameter.grad)
