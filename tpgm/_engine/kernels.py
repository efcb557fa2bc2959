"""Machine code for a CPU, made by numba: one reading of the numbers where torch would make several.

Tensors come as addresses, cut into pieces (see ``tpgm._engine.compiled``, which alone calls this): piece k is
`length[k]` neighbouring numbers of tensor `tensor[k]` from number `start[k]` on, all in the row `row[k]` of those of
all tensors. `like` is an empty array of the numbers' type. Sums over a piece go into one float64 a piece. What is
computed, and why, stands with the plain twins: ``tpgm.projection`` and ``tpgm.plain.steps``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

EPS = 1e-8
# rows of the optimizers' table of addresses; AdamSPD has the first six
P, G, M, V, STEP, A, D, NORMS, RADIUS, MEAN, SQUARE = range(11)


@intrinsic
def _pointer(context: Any, address: Any, like: Any) -> Any:
    pointer = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], context.get_value_type(pointer))

    return pointer(types.int64, like), generate


def _compiled(function: Any) -> Any:
    """Sums may be reordered; that NaN and infinity occur is not assumed away. Other Python threads run meanwhile."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep the machine code: it is made anew in every process
        return njit(**options)(function)


@_compiled
def _at(addresses, tensor, start, length, like):
    return carray(_pointer(addresses[tensor] + start * like.itemsize, like), length)


# --- the passes of TPGM


@_compiled
def _norm(w, a, mars):
    total = 0.0
    if mars:
        rough = w.dtype.type(0)
        for i in range(len(w)):
            rough += abs(w[i] - a[i])
        total += rough
    else:  # in float64: squares of small displacements would vanish
        for i in range(len(w)):
            total += np.float64(w[i] - a[i]) ** 2
    return total


@_compiled
def _scaled(out, w, a, ratio):
    if ratio < 1:
        for i in range(len(w)):
            out[i] = a[i] + ratio * (w[i] - a[i])
    elif out.ctypes.data != w.ctypes.data:
        for i in range(len(w)):
            out[i] = w[i]


@_compiled
def measure(low, high, like, pieces, weights, anchors, mars, sums):
    tensor, start, length, _ = pieces
    for k in range(low, high):
        t, s, n = tensor[k], start[k], length[k]
        sums[k] = _norm(_at(weights, t, s, n, like), _at(anchors, t, s, n, like), mars)


@_compiled
def dots(low, high, like, pieces, gradients, weights, anchors, sums):
    tensor, start, length, _ = pieces
    for k in range(low, high):
        t, s, n = tensor[k], start[k], length[k]
        g, w, a = _at(gradients, t, s, n, like), _at(weights, t, s, n, like), _at(anchors, t, s, n, like)
        total = like.dtype.type(0)
        for i in range(n):
            total += g[i] * (w[i] - a[i])
        sums[k] = total


@_compiled
def scale(low, high, like, pieces, outs, weights, anchors, ratios):
    tensor, start, length, row = pieces
    for k in range(low, high):
        t, s, n = tensor[k], start[k], length[k]
        _scaled(_at(outs, t, s, n, like), _at(weights, t, s, n, like), _at(anchors, t, s, n, like), ratios[row[k]])


# --- steps of the base optimizers, as torch's fused kernels take them


@_compiled
def _adam_constants(settings, step, like):
    """Of ``p ← keep p − size m / (√v · root + small)`` and of the moments, in the numbers' type."""
    lr, decay, beta1, beta2, eps = settings[0], settings[1], settings[2], settings[3], settings[4]
    real = like.dtype.type
    size, root = lr / (1 - beta1**step), 1 / math.sqrt(1 - beta2**step)
    return real(1 - beta1), real(beta2), real(1 - beta2), real(1 - lr * decay), real(size), real(root), real(eps)


@_compiled
def _adam(i, p, g, m, v, constants):
    first, second, rest, keep, size, root, small = constants
    mean = m[i] + first * (g[i] - m[i])
    square = second * v[i] + rest * g[i] * g[i]
    m[i], v[i] = mean, square
    p[i] = keep * p[i] - size * mean / (np.sqrt(square) * root + small)


@_compiled
def _sgd(i, p, g, m, constants):
    lr, decay, momentum, now, ahead = constants
    slope = g[i] + decay * p[i]
    speed = momentum * m[i] + slope
    m[i] = speed
    p[i] -= lr * (now * slope + ahead * speed)


@_compiled
def _step_of(at, t):
    return carray(_pointer(at[STEP, t], np.empty(0, np.float32)), 1)


# --- FTP


@_compiled
def _ftp_adam(p, g, m, v, a, d, constants, mars):
    product, rough, total = p.dtype.type(0), p.dtype.type(0), 0.0
    for i in range(len(p)):
        product += g[i] * d[i]
        _adam(i, p, g, m, v, constants)
        moved = p[i] - a[i]
        d[i] = moved
        if mars:
            rough += abs(moved)
        else:
            total += np.float64(moved) ** 2
    return product, rough if mars else total


@_compiled
def _ftp_sgd(p, g, m, a, d, constants, mars):
    product, rough, total = p.dtype.type(0), p.dtype.type(0), 0.0
    for i in range(len(p)):
        product += g[i] * d[i]
        _sgd(i, p, g, m, constants)
        moved = p[i] - a[i]
        d[i] = moved
        if mars:
            rough += abs(moved)
        else:
            total += np.float64(moved) ** 2
    return product, rough if mars else total


@_compiled
def ftp_adam(low, high, like, pieces, at, settings, mars, products, sums):
    tensor, start, length, _ = pieces
    last, constants = -1, _adam_constants(settings, 1, like)
    for k in range(low, high):
        t, s, n = tensor[k], start[k], length[k]
        if t != last:
            last, constants = t, _adam_constants(settings, _step_of(at, t)[0] + 1, like)
        p, g, m, v = (
            _at(at[P], t, s, n, like),
            _at(at[G], t, s, n, like),
            _at(at[M], t, s, n, like),
            _at(at[V], t, s, n, like),
        )
        products[k], sums[k] = _ftp_adam(
            p, g, m, v, _at(at[A], t, s, n, like), _at(at[D], t, s, n, like), constants, mars
        )


@_compiled
def ftp_sgd(low, high, like, pieces, at, settings, mars, products, sums):
    tensor, start, length, _ = pieces
    real = like.dtype.type
    nesterov = settings[3] > 0
    constants = (
        real(settings[0]),
        real(settings[1]),
        real(settings[2]),
        real(nesterov),
        real(settings[2] if nesterov else 1),
    )
    for k in range(low, high):
        t, s, n = tensor[k], start[k], length[k]
        p, g, m = _at(at[P], t, s, n, like), _at(at[G], t, s, n, like), _at(at[M], t, s, n, like)
        products[k], sums[k] = _ftp_sgd(p, g, m, _at(at[A], t, s, n, like), _at(at[D], t, s, n, like), constants, mars)


@_compiled
def ftp_sweep(low, high, like, pieces, at, adam, settings, mars, products, sums):
    """The base step; the products of gradient and last displacement; the displacement, and its norms."""
    if adam:
        ftp_adam(low, high, like, pieces, at, settings, mars, products, sums)
    else:
        ftp_sgd(low, high, like, pieces, at, settings, mars, products, sums)


@_compiled
def ftp_radius(t, like, bounds, at, settings, mars, products, sums, ratios):
    """One step of Adam on the radius of tensor t; ratios of its rows from it."""
    kappa, lr = settings[5], settings[6]
    first, top, bottom, per_row = bounds[t, 0], bounds[t, 2], bounds[t, 3], bounds[t, 4]
    norms = _at(at[NORMS], t, 0, bottom - top, like)
    slope, largest, k = 0.0, 0.0, first
    for r in range(bottom - top):
        product, total = 0.0, 0.0
        for _ in range(per_row):
            product += products[k]
            total += sums[k]
            k += 1
        slope += product / (norms[r] + EPS)
        norms[r] = total if mars else math.sqrt(total)
        if not norms[r] <= largest:  # NaN too
            largest = norms[r]
    if slope > 0:
        slope *= kappa
    count = _step_of(at, t)
    count[0] += 1
    radius, mean, square = _at(at[RADIUS], t, 0, 1, like), _at(at[MEAN], t, 0, 1, like), _at(at[SQUARE], t, 0, 1, like)
    mean[0] += 0.1 * (slope - mean[0])
    square[0] += 0.001 * (slope * slope - square[0])
    hat = mean[0] / -math.expm1(count[0] * math.log(0.9))
    moved = radius[0] - lr * hat / (math.sqrt(square[0] / -math.expm1(count[0] * math.log(0.999))) + EPS)
    radius[0] = max(largest if moved > largest else moved, EPS)
    one, guard = like.dtype.type(1), like.dtype.type(EPS)
    for r in range(bottom - top):
        ratios[top + r] = min(radius[0] / (norms[r] + guard), one) if norms[r] > 0 else one


@_compiled
def ftp(chosen, like, pieces, bounds, at, adam, settings, mars, products, sums, ratios):
    """A whole step for each of the tensors `chosen`, one after another: the last pass finds small ones in the cache."""
    for t in chosen:
        first, last = bounds[t, 0], bounds[t, 1]
        ftp_sweep(first, last, like, pieces, at, adam, settings, mars, products, sums)
        ftp_radius(t, like, bounds, at, settings, mars, products, sums, ratios)
        scale(first, last, like, pieces, at[P], at[P], at[A], ratios)


# --- SPD


@_compiled
def spd_sweep(low, high, like, pieces, at, settings, products, before, after):
    """A step of Adam; before it the products of gradient and displacement; squared norms before and after."""
    tensor, start, length, _ = pieces
    last, constants = -1, _adam_constants(settings, 1, like)
    for k in range(low, high):
        t, s, n = tensor[k], start[k], length[k]
        if t != last:
            last, constants = t, _adam_constants(settings, _step_of(at, t)[0] + 1, like)
        p, g, m, v = (
            _at(at[P], t, s, n, like),
            _at(at[G], t, s, n, like),
            _at(at[M], t, s, n, like),
            _at(at[V], t, s, n, like),
        )
        a = _at(at[A], t, s, n, like)
        product, old, new = like.dtype.type(0), 0.0, 0.0
        for i in range(n):
            product += g[i] * (p[i] - a[i])
            old += np.float64(p[i] - a[i]) ** 2
            _adam(i, p, g, m, v, constants)
            new += np.float64(p[i] - a[i]) ** 2
        products[k], before[k], after[k] = product, old, new


@_compiled
def spd_ratio(t, bounds, at, settings, products, before, after, ratios):
    product, old, new = 0.0, 0.0, 0.0
    for k in range(bounds[t, 0], bounds[t, 1]):
        product += products[k]
        old += before[k]
        new += after[k]
    old, new = math.sqrt(old), math.sqrt(new)
    growth = min(max((new - old) / new, 0.0), 1.0) if new > 0 else 0.0
    ratios[t] = 1.0 - settings[5] * growth if product > 0 else 1.0
    _step_of(at, t)[0] += 1


@_compiled
def spd(chosen, like, pieces, bounds, at, settings, products, before, after, ratios):
    for t in chosen:
        first, last = bounds[t, 0], bounds[t, 1]
        spd_sweep(first, last, like, pieces, at, settings, products, before, after)
        spd_ratio(t, bounds, at, settings, products, before, after, ratios)
        scale(first, last, like, pieces, at[P], at[P], at[A], ratios)
