"""Counts the operations and the memory of everything that torch does inside it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

_aten = torch.ops.aten


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operations (of matrices, convolutions and attention, by torch's own formulas), and the most bytes
    alive at once of all memory that is allocated inside, besides `without`.

    Works on tensors with and without memory. Unlike torch's `FlopCounterMode` it keeps no tensor alive.
    Counts storages, so views cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0.0
        self.now = self.most = self.without = 0
        self._known: Any = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket) or flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        given: set[int] = set()
        tree_map_only(Tensor, lambda t: given.add(t.untyped_storage()._cdata), (args, kwargs))
        tree_map_only(Tensor, lambda t: self._made(t, given), out)
        return out

    def _made(self, tensor: Tensor, given: set[int]) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in given or storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = weakref.ref(storage, self._freed(size))
        self.now += size
        self.most = max(self.most, self.now - self.without)

    def _freed(self, size: int) -> Callable[[Any], None]:
        def free(_: Any) -> None:
            self.now -= size

        return free


def _attention(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> float:
    return float(sdpa_flop_count(q.shape, k.shape, v.shape))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> float:
    count = sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)  # type: ignore[no-untyped-call]
    return float(count)


_FORMULAS: dict[Any, Callable[..., float]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Of the attention that torch has for CPUs, which its table leaves out."""
