"""Running a model over batches while hooks look at what its layers are called with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pgkmeans_sk.nn.layer_inputs import Lookups, Reader, RowMask, Vectors, reader_of
from pgkmeans_sk.nn.moments import MomentSums, RowCounts, SecondMoment
from pgkmeans_sk.nn.weight_uses import Use

Forward = Callable[[nn.Module, Any], Any]
MaskOf = Callable[[Any], Tensor | None]
Records = dict[str, SecondMoment | RowCounts]


def run_batch(model: nn.Module, batch: Any) -> Any:
    """The model's output for a batch: its positional or keyword arguments, or its only one."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)


def attention_mask_of(batch: Any) -> Tensor | None:
    """``batch["attention_mask"]`` if there is one of two axes: one entry a token."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


def input_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    uses: Sequence[Use],
    forward: Forward | None,
    mask_of: MaskOf | None,
    max_bytes: int,
) -> tuple[Records, dict[str, str], int]:
    """Records and notes by first name, and the number of batches.

    Raises
    ------
    ValueError, TypeError
        If a mask is none, or those that were given fit the input of no layer.
    """
    sums = _Sums(uses, max_bytes)
    run = run_batch if forward is None else forward
    n_batches, is_fitted = 0, False
    unfitting: Tensor | None = None
    with torch.no_grad(), sums.watching():
        for batch in batches:
            n_batches += 1
            given = given_mask(batch, mask_of)
            sums.mask = RowMask(given)
            run(model, batch)
            is_fitted |= sums.mask.fitted
            unfitting = unfitting if given is None else given
    if mask_of is not None and unfitting is not None and not is_fitted:
        raise unfitting_mask(unfitting)
    return *sums.records(), n_batches


def given_mask(batch: Any, mask_of: MaskOf | None) -> Tensor | None:
    """The mask (batch, tokens) of a batch: what ``mask_of`` says, or the batch itself.

    Raises
    ------
    ValueError
        If ``mask_of`` gives anything else.
    """
    return attention_mask_of(batch) if mask_of is None else _checked(mask_of(batch))


def unfitting_mask(mask: Tensor) -> ValueError:
    """The error for masks that fit the input of no layer."""
    return ValueError(
        f"Got a mask of shape {tuple(mask.shape)}, but expected (batch, tokens), as the input of "
        "at least one layer has it."
    )


def _checked(mask: Any) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        what = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"Got {what} from mask(batch), but expected a tensor (batch, tokens).")
    return mask


class _Sums:
    """What is added up for each weight, and the hooks that do it."""

    def __init__(self, uses: Sequence[Use], max_bytes: int) -> None:
        self.mask = RowMask(None)
        self._uses = uses
        self._max_bytes = max_bytes
        self._moments: dict[str, MomentSums] = {}
        self._counts: dict[str, Tensor] = {}
        self._notes: dict[str, str] = {}
        # The axis and column groups of the first use of a weight as a factor.
        self._layouts: dict[str, tuple[int, int, int]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on all layers, inside."""
        by_module: dict[nn.Module, dict[str, Use]] = {}
        for use in self._uses:
            by_module.setdefault(use.module, {})[use.tensor_name] = use
        with ExitStack() as stack:
            for module, uses in by_module.items():
                reader = reader_of(module)
                if reader is not None:
                    hook = self._hook(reader, uses)
                    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
            yield

    def _hook(self, reader: Reader, uses: Mapping[str, Use]) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # The user's forward may ask for gradients; autocast would shorten the products.
            device = next(a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                for seen in reader(module, args, kwargs, self.mask):
                    use = uses.get(seen.tensor_name)
                    if use is not None:
                        self._add(use, seen)

        return look

    def _add(self, use: Use, seen: Vectors | Lookups) -> None:
        name = use.first_name
        if isinstance(seen, Lookups):
            counts = torch.bincount(seen.indices, minlength=seen.n_rows)
            old = self._counts.get(name)
            self._counts[name] = counts if old is None else old + counts.to(old.device)
            return
        n_columns = seen.values.shape[-1]
        layout = (use.axis, seen.n_groups, seen.column_groups)
        if self._layouts.setdefault(name, layout) != layout:
            self._notes[name] = (
                f"the use as {use.names[0]!r} is not part of its record: it has other rows there"
            )
            return
        if name not in self._moments:
            device = seen.values.device
            self._moments[name] = MomentSums(n_columns, seen.n_groups, self._max_bytes, device)
        self._moments[name].add(seen.values, seen.groups)

    def records(self) -> tuple[Records, dict[str, str]]:
        """The records and the notes by first name; sums are given up one by one."""
        found: Records = {}
        for name in list(self._moments):
            sums = self._moments.pop(name)
            record = sums.record(self._layouts[name][2])
            if record is None:
                self._notes[name] = "its inputs were empty, or all left out by the mask"
                continue
            if not sums.is_full:
                self._notes[name] = (
                    f"of the second moment of {len(record.diagonal)} columns, only what is along "
                    f"the diagonal was kept: all would take more than max_bytes={self._max_bytes}"
                )
            found[name] = record
        for name, counts in self._counts.items():
            moment, row_counts = found.get(name), counts.cpu().numpy()
            if isinstance(moment, SecondMoment):
                found[name] = replace(moment, row_counts=row_counts)
            else:
                found[name] = RowCounts(counts=row_counts)
        return found, self._notes
