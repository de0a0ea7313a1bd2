"""Calls of layers are met on their way, and see each member's weights: W + A B^T.

The parameter itself stays in the model. Within `ThinLayers` every function of torch that receives
it is stopped: a linear, convolution, embedding or attention function is computed from the shared
weight and the thin factors (`thin`), any other is refused, never run with the shared weight alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, resolve_name

from evostep.engines.base import CannotScore
from evostep.engines.thin import merged_attention, thin_convolution, thin_embedding, thin_linear


@dataclass(frozen=True)
class Thin:
    """A weight and one member's factors, within vmap.

    Attributes:
        name: of the parameter.
        weight: the parameter itself.
        A: (rows, r), where the weight is a matrix of its first dimension x all others.
        B: (columns, r).
    """

    name: str
    weight: Tensor
    A: Tensor
    B: Tensor


class Layouts:
    """Shared weights in the form in which a product reads them, made once for all members."""

    def __init__(self) -> None:
        self._made: dict[tuple[Any, ...], Tensor] = {}

    def get(self, weight: Tensor, key: Any, make: Callable[[], Tensor]) -> Tensor:
        """Give what `make` gave when it was first called for this weight and key."""
        whole = (id(weight), key, torch.is_autocast_enabled(weight.device.type))
        if whole not in self._made:
            self._made[whole] = make()
        return self._made[whole]


class ThinLayers(TorchFunctionMode):
    """Within it, in a function that is vmapped over members, layers have the members' weights.

    Args:
        thin: the weights that members share, with one member's factors.
        replaced: the parameters for which the model holds a member's own tensor; that one of them
            is used nevertheless means that the model reaches it by another way.
        layouts: of the shared weights, for all calls.
        contiguous: whether convolutions give contiguous tensors; else channels are last in
            memory, which is faster, but some views are impossible.

    Attributes:
        widest: bytes of the largest tensor of one member that any call gave.
    """

    def __init__(
        self,
        thin: Iterable[Thin],
        replaced: Mapping[str, Tensor],
        layouts: Layouts,
        *,
        contiguous: bool = False,
    ) -> None:
        super().__init__()
        self.thin = {id(one.weight): one for one in thin}
        self.layouts = layouts
        self.contiguous = contiguous
        self.widest = 0
        self._watched = {id(tensor): name for name, tensor in replaced.items()}
        self._watched |= {key: one.name for key, one in self.thin.items()}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute a call; raises CannotScore where that is impossible."""
        kwargs = kwargs or {}
        call = Call(self, func, self._among((*args, *kwargs.values())))
        rule = _RULES.get(func)
        out = rule(call, *args, **kwargs) if rule is not None else NotImplemented
        if out is NotImplemented:
            if call.uses and func not in _HARMLESS:
                if func not in _PERHAPS_NOTHING:
                    raise call.refusal()
                if (out := func(*args, **kwargs)) is args[0]:
                    return out
                raise call.refusal()
            out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            self.widest = max(self.widest, out.numel() * out.element_size())
        return out

    def _among(self, values: Iterable[Any]) -> set[int]:
        """Give the watched tensors among values and the lists, tuples and dictionaries in them."""
        found: set[int] = set()
        for value in values:
            if isinstance(value, Tensor):
                if id(value) in self._watched:
                    found.add(id(value))
            elif isinstance(value, list | tuple):
                found |= self._among(value)
            elif isinstance(value, dict):
                found |= self._among(value.values())
        return found

    def name_of(self, key: int) -> str:
        """Give the name of a watched tensor."""
        return self._watched[key]


@dataclass(frozen=True)
class Call:
    """A call of a function, and the watched tensors that it uses."""

    layers: ThinLayers
    func: Callable[..., Any]
    uses: set[int]

    def refusal(self) -> CannotScore:
        """Give the error for a function that no rule is for."""
        name = self.layers.name_of(min(self.uses, key=self.layers.name_of))
        layer = name.rpartition(".")[0]
        where = f"layer {layer!r}" if layer else "the model"
        function = resolve_name(self.func) or getattr(self.func, "__name__", repr(self.func))
        return CannotScore(
            f"{where}: {function} uses {name!r} in a way in which members cannot share it"
        )

    def only(self, *weights: Any) -> list[Thin | None]:
        """Give the thin weights among these; refuse where another argument is one, too."""
        found = [self.layers.thin.get(id(weight)) for weight in weights]
        if self.uses - {id(one.weight) for one in found if one is not None}:
            raise self.refusal()
        return found


# Rules: each has the arguments of the torch functions that it stands for. NotImplemented: as torch.


def _linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    (thin,) = call.only(weight)
    if thin is None:
        return NotImplemented
    return thin_linear(input, weight, thin.A, thin.B, bias)


def _matmul(call: Call, input: Tensor, other: Tensor) -> Any:
    """Take x W: the transposed weight with the factors' parts exchanged."""
    (thin,) = call.only(other)
    if thin is None or other.dim() != 2:
        return NotImplemented
    return thin_linear(input, other.T, thin.B, thin.A, None)


def _addmm(
    call: Call, input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1
) -> Any:
    (thin,) = call.only(mat2)
    if thin is None or input.dim() != 1 or beta != 1 or alpha != 1:
        return NotImplemented
    return thin_linear(mat1, mat2.T, thin.B, thin.A, input)


def _embedding(
    call: Call,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,  # matters to gradients alone  # noqa: ARG001 - as torch calls it
    max_norm: float | None = None,
    norm_type: float = 2.0,  # noqa: ARG001 - as torch calls it
    scale_grad_by_freq: bool = False,  # noqa: ARG001 - as torch calls it
    sparse: bool = False,  # noqa: ARG001 - as torch calls it
) -> Any:
    (thin,) = call.only(weight)
    if thin is None or max_norm is not None:  # it would write into the shared weight
        return NotImplemented
    return thin_embedding(input, weight, thin.A, thin.B)


def _convolution(dimensions: int) -> Callable[..., Any]:
    def rule(
        call: Call,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Any:
        (thin,) = call.only(weight)
        if thin is None:
            return NotImplemented
        if input.dim() == dimensions + 1:
            return rule(
                call, input.unsqueeze(0), weight, bias, stride, padding, dilation, groups
            ).squeeze(0)
        steps, spread = _each(stride, dimensions), _each(dilation, dimensions)
        if isinstance(padding, str):
            input, padding = _padded(input, padding, weight.shape[2:], spread)
        around = _each(padding, dimensions)
        if dimensions == 1:  # as one row
            input = input.unsqueeze(2)
            steps, around, spread = (1, *steps), (0, *around), (1, *spread)
        out = _convolved(call, input, thin, bias, steps, around, spread, groups)
        if call.layers.contiguous:
            out = out.contiguous()
        return out.squeeze(2) if dimensions == 1 else out

    return rule


def _each(value: Any, dimensions: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dimensions if len(values) == 1 else values


def _padded(
    input: Tensor, padding: str, taps: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Turn "same" and "valid" into numbers; where one side needs more, pad it at once."""
    if padding == "valid":
        return input, (0,)
    total = [d * (k - 1) for k, d in zip(taps, dilation, strict=True)]
    if any(t % 2 for t in total):
        input = F.pad(input, [side for t in reversed(total) for side in (0, t % 2)])
    return input, tuple(t // 2 for t in total)


def _convolved(
    call: Call,
    x: Tensor,
    thin: Thin,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Convolve over two or three dimensions, as a product where there is a single tap."""
    weight, B = thin.weight, thin.B
    if weight.dim() < 4:
        weight = weight.unsqueeze(2)
    taps = [
        _useful(*one)
        for one in zip(weight.shape[2:], x.shape[2:], stride, padding, dilation, strict=True)
    ]
    padding = tuple(p - t.start * d for p, t, d in zip(padding, taps, dilation, strict=True))
    kept = (slice(None), slice(None), *taps)
    B = B.view(*weight.shape[1:], -1)[kept[1:]].reshape(-1, B.shape[1])
    single = all(t.stop - t.start == 1 for t in taps)
    key = tuple((t.start, t.stop) for t in taps)
    get = call.layers.layouts.get
    if single and groups == 1 and not any(padding):
        matrix = get(thin.weight, key, lambda: _cast(weight[kept].flatten(1).contiguous()))
        steps: Any = (..., *(slice(None, None, s) for s in stride))
        x = x[steps].movedim(1, -1)
        return thin_linear(x, matrix, thin.A, B, bias).movedim(-1, 1)
    layout = torch.channels_last if weight.dim() == 4 else torch.channels_last_3d
    kernel = get(thin.weight, key, lambda: _cast(weight[kept].contiguous(memory_format=layout)))
    return thin_convolution(x, kernel, thin.A, B, bias, stride, padding, dilation, groups)


def _cast(weight: Tensor) -> Tensor:
    """Do what autocast would do, once for all calls."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device) or weight.dtype == torch.float64:
        return weight
    return weight.to(torch.get_autocast_dtype(device))


def _useful(taps: int, size: int, stride: int, padding: int, dilation: int) -> slice:
    """Give the taps that meet more than padding: on small maps others only multiply zeros."""
    reach = size + 2 * padding - dilation * (taps - 1) - 1
    last = reach // stride * stride  # where the last window begins
    met = [
        tap
        for tap in range(taps)
        if tap * dilation + last >= padding and tap * dilation - padding < size
    ]
    if not met:
        return slice(0, taps)
    first, end = met[0], met[-1] + 1
    rest = padding - first * dilation
    shorter = size + 2 * rest - dilation * (end - first - 1) - 1
    if rest < 0 or shorter // stride != reach // stride:
        return slice(0, taps)
    return slice(first, end)


def _attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    if call.uses or dropout_p > 0:
        return NotImplemented
    return merged_attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)


def _multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Compute what `nn.MultiheadAttention` does, but for its rarer options."""
    rare = (bias_k, bias_v, static_k, static_v)
    if any(one is not None for one in rare) or add_zero_attn or (training and dropout_p > 0):
        return NotImplemented
    if is_causal and attn_mask is None:
        return NotImplemented  # an error of the caller's
    call.only(in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, out_proj_weight)
    batched = query.dim() == 3
    if not batched:
        same = key is query, value is key
        query = query.unsqueeze(1)
        key = query if same[0] else key.unsqueeze(1)
        value = key if same[1] else value.unsqueeze(1)
        if key_padding_mask is not None:
            key_padding_mask = key_padding_mask.unsqueeze(0)
    weights = (
        [(w, slice(None)) for w in (q_proj_weight, k_proj_weight, v_proj_weight)]
        if use_separate_proj_weight
        else [
            (in_proj_weight, slice(i * embed_dim_to_check, (i + 1) * embed_dim_to_check))
            for i in range(3)
        ]
    )
    if query is key and key is value and not use_separate_proj_weight:
        packed = _project(call, query, in_proj_weight, slice(None), in_proj_bias)
        q, k, v = packed.chunk(3, -1)
    else:
        biases = [None] * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
        q, k, v = (
            _project(call, x, weight, rows, bias)
            for x, (weight, rows), bias in zip((query, key, value), weights, biases, strict=True)
        )
    # (length, batch, heads * d) -> (batch, heads, length, d)
    q, k, v = (t.unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3) for t in (q, k, v))
    mask = _mask(attn_mask, key_padding_mask, q, k)
    shares = None
    if need_weights:
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        shares = (scores if mask is None else scores + mask).softmax(-1)
        out = shares @ v
        shares = shares.mean(1) if average_attn_weights else shares
        shares = shares if batched else shares.squeeze(0)
    else:
        out = merged_attention(q, k, v, mask, False, None, False)
    out = out.permute(2, 0, 1, 3).flatten(2)
    out = _project(call, out, out_proj_weight, slice(None), out_proj_bias)
    return (out if batched else out.squeeze(1)), shares


def _project(call: Call, x: Tensor, weight: Any, rows: slice, bias: Tensor | None) -> Tensor:
    """Apply some rows of a weight, thin or not."""
    thin = call.layers.thin.get(id(weight))
    if thin is None:
        return F.linear(x, weight[rows], bias)
    out: Tensor = thin_linear(x, thin.weight[rows], thin.A[rows], thin.B, bias)
    return out


def _mask(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:  # noqa: ARG001 - as torch calls it
    """Join the masks of `nn.MultiheadAttention` to one that is added to the scores."""

    def added(mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(q.dtype)
        zeros = torch.zeros(mask.shape, dtype=q.dtype, device=mask.device)
        return zeros.masked_fill(mask, -math.inf)

    mask = None
    if attn_mask is not None:
        mask = added(attn_mask)
        if mask.dim() == 3:  # (batch * heads, L, S)
            mask = mask.view(q.shape[0], q.shape[1], *mask.shape[1:])
        else:
            mask = mask[None, None]
    if padding is not None:
        lengths = added(padding)[:, None, None]
        mask = lengths.expand(-1, -1, q.shape[2], -1) if mask is None else mask + lengths
    return mask


def _layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if call.uses or weight is None:
        return NotImplemented
    # torch's loop is the slower one where there is no weight
    one = torch.ones(*normalized_shape, dtype=weight.dtype, device=weight.device)
    normal = F.layer_norm(input, normalized_shape, one, torch.zeros_like(one), eps)
    return _scaled(normal, weight, bias)


def _group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if call.uses or weight is None:
        return NotImplemented
    ones = (-1, *[1] * (input.dim() - 2))
    normal = F.group_norm(input, num_groups, eps=eps)
    return _scaled(normal, weight.view(ones), None if bias is None else bias.view(ones))


def _batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - as torch calls it
    eps: float = 1e-5,
) -> Any:
    if call.uses or training or running_mean is None or running_var is None or weight is None:
        return NotImplemented
    scale = weight * torch.rsqrt(running_var + eps)
    shift = -running_mean * scale if bias is None else bias - running_mean * scale
    ones = (-1, *[1] * (input.dim() - 2))
    return _scaled(input, scale.view(ones), shift.view(ones))


def _mean_pool(call: Call, input: Tensor, output_size: Any) -> Any:
    """Pool to one value; torch's own fixes strides in a way that vmap does member by member."""
    if call.uses or not all(size == 1 for size in _each(output_size, 1)):
        return NotImplemented
    return input.mean((-2, -1), keepdim=True)


def _scaled(x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """Scale and shift in one pass, in the type of x."""
    if shift is None:
        return x * scale.to(x.dtype)
    return torch.addcmul(shift.to(x.dtype), x, scale.to(x.dtype))


def _add(call: Call, input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Add a weight, such as a table of positions, to something that is at least as large."""
    terms = [input, other]
    for i, thin in enumerate(call.only(*terms)):
        rest = terms[1 - i]
        if thin is None:
            continue
        if not isinstance(rest, Tensor) or rest.numel() < thin.weight.numel() or rest is terms[i]:
            return NotImplemented
        terms[i] = _dense(thin.weight, thin.A, thin.B)
    return (
        call.func(*terms, alpha=alpha)
        if call.uses and alpha != 1
        else call.func(*terms)
        if call.uses
        else NotImplemented
    )


def _dense(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return torch.addmm(weight.flatten(1), A, B.T).view(weight.shape)


_RULES: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    torch.conv1d: _convolution(1),
    torch.conv2d: _convolution(2),
    torch.conv3d: _convolution(3),
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.adaptive_avg_pool2d: _mean_pool,
    **dict.fromkeys((torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _add),
}

# what only tells what a weight is like
_HARMLESS: frozenset[Any] = frozenset(
    [
        *(
            getattr(Tensor, attribute).__get__
            for attribute in (
                *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "is_leaf"),
                *("is_cuda", "is_cpu", "is_mps", "is_xpu", "is_meta", "is_mkldnn"),
                *("is_nested", "is_quantized", "is_sparse", "itemsize", "nbytes"),
            )
        ),
        *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.nelement, Tensor.stride),
        *(Tensor.is_contiguous, Tensor.element_size, Tensor.get_device, Tensor.__len__),
        *(Tensor.is_floating_point, torch.is_floating_point, Tensor.is_complex, torch.is_complex),
        *(torch.numel, Tensor.data_ptr),
    ]
)
# what gives the weight itself where there is nothing to do
_PERHAPS_NOTHING: frozenset[Any] = frozenset(
    [
        *(Tensor.to, Tensor.contiguous, Tensor.type_as, Tensor.float, Tensor.double, Tensor.half),
        *(Tensor.bfloat16, Tensor.cpu, Tensor.cuda),
    ]
)
