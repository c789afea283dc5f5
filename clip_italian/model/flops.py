"""Floating point operations of a function, counted from its program without compiling it."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax


def matmul_flops(function: Callable, *shapes: Any) -> float:
    """FLOPs of all matrix products and convolutions, 2 for each multiply-add.

    Everything else (softmax, norms, activations) is left out, as it is in the usual model FLOPs.
    The body of a scan counts once for each of its rounds, and of branches the dearest.

    Args:
      function: what to count; it is traced only.
      *shapes: its arguments, with `jax.ShapeDtypeStruct`s as leaves.

    Raises:
      NotImplementedError: a product stands in a `while_loop`, whose rounds are not known.
    """
    return _program(jax.make_jaxpr(function)(*shapes).jaxpr)


def _program(program: Any) -> float:
    return sum(map(_operation, program.eqns))


def _operation(operation: Any) -> float:
    name, params = operation.primitive.name, operation.params
    if name == "dot_general":
        return _product(operation)
    if name == "conv_general_dilated":
        return _convolution(operation)
    inner = [_program(program) for program in _programs(params)]
    if name == "while" and any(inner):
        raise NotImplementedError("matrix products in a while_loop: its rounds are not known")
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _programs(params: Mapping[str, Any]) -> Iterator[Any]:
    """The programs inside an operation (jit, remat, scan, custom derivatives, ...)."""
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            one = getattr(one, "jaxpr", one)  # closed over constants, or not
            if hasattr(one, "eqns"):
                yield one


def _product(operation: Any) -> float:
    (contracted, _), _ = operation.params["dimension_numbers"]
    left = operation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2.0 * depth * math.prod(operation.outvars[0].aval.shape)


def _convolution(operation: Any) -> float:
    """Each output is a sum over the kernel's places and its input channels (of one group)."""
    kernel = operation.invars[1].aval.shape
    outputs = kernel[operation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(kernel) / outputs * math.prod(operation.outvars[0].aval.shape)
