"""Every built-in function, operator and module of the language, through a compiled executable.

Each case is a program of one line; what it must give is computed here, in plain Python, from the
definition in grammar/README.md. `test_every_name_is_tried` holds the table of that reference
against the cases, so a built-in without a case fails.
"""
import math
import os
import random
import re

from common import EMULATOR, PVDMC, ROOT, Skip, Tensors, run, scratch, write_tensors

B = 2                                   # samples in a batch


class T:
    """A tensor: shape and row-major values."""

    def __init__(self, shape, data):
        self.shape, self.data = tuple(shape), list(data)
        assert len(self.data) == math.prod(self.shape), f"{self.shape}: {len(self.data)} values"

    def __getitem__(self, index):
        index = index if isinstance(index, tuple) else (index,)
        assert len(index) == len(self.shape), index
        assert all(0 <= i < n for i, n in zip(index, self.shape)), index
        at = 0
        for i, n in zip(index, self.shape):
            at = at * n + i
        return self.data[at]

    def get(self, *index):
        """The element, 0 outside: what padding reads."""
        return self[index] if all(0 <= i < n for i, n in zip(index, self.shape)) else 0.0

    def map(self, fn):
        return T(self.shape, map(fn, self.data))


def indices(shape):
    if not shape:
        return [()]
    return [(i, *rest) for i in range(shape[0]) for rest in indices(shape[1:])]


def make(shape, fn):
    return T(shape, [fn(*index) for index in indices(shape)])


def row(*values):
    return T([len(values)], values)


def number(value):
    return T([], [value])


RNG = random.Random(11)


def reals(*shape, lo=-2.0, hi=2.0):
    return make(shape, lambda *_: RNG.uniform(lo, hi))


def ints(*shape, limit):
    return make(shape, lambda *_: RNG.randrange(limit))


# Inputs of the programs, by name: type in the language, values.
INPUTS = {
    "x": ("[b, 3, 4]", reals(B, 3, 4)),
    "y": ("[b, 3, 4]", reals(B, 3, 4)),
    "p": ("[b, 3, 4]", reals(B, 3, 4, lo=0.1)),
    "u": ("[b, 4]", reals(B, 4)),
    "half": ("[7]", T([7], [-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999999])),
    "k": ("int[b]", T([B], [2, 0])),
    "m": ("int[b, 3]", ints(B, 3, limit=5)),
    "signs": ("int[4]", T([4], [-7, 7, -8, 3])),
    "line": ("[b, 2, 7]", reals(B, 2, 7)),
    "plane": ("[b, 2, 5, 6]", reals(B, 2, 5, 6)),
    "wide": ("[b, 4, 5, 6]", reals(B, 4, 5, 6)),
    "cube": ("[b, 2, 3, 4, 5]", reals(B, 2, 3, 4, 5)),
    "q": ("[b, 2, 3, 4]", reals(B, 2, 3, 4)),
    "keys": ("[b, 2, 5, 4]", reals(B, 2, 5, 4)),
    "values": ("[b, 2, 5, 6]", reals(B, 2, 5, 6)),
    "mask": ("bool[1, 1, 3, 5]", T([1, 1, 3, 5], [1, 0, 1, 1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 1, 1])),
    "angles": ("[3, 4]", reals(3, 4)),
    "t": ("int", number(3)),
    "r": ("real", number(0.75)),
}
X = {name: value for name, (_, value) in INPUTS.items()}

CASES = []      # (name, inputs, result types, body, expected tensors)
MODELS = []     # declarations of models
WEIGHTS = {}    # parameter name -> tensor


def case(expression, expected, types=None):
    """A program that gives one expression, or several as a list."""
    text = re.sub(r'"[^"]*"', "", expression)
    used = [name for name in INPUTS if re.search(rf"\b{name}\b", text)]
    if "[b" in text and not used or used == ["t"]:
        used.append("u")                # an input that says how many samples there are
    expected = expected if isinstance(expected, list) else [expected]
    CASES.append((f"case{len(CASES)}", used, expression, expected, types))


# ---- elementwise ----

def sigmoid(v):
    return 1 / (1 + math.exp(-v))


def gelu_tanh(v):
    return v / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v ** 3)))


UNARY = {
    "abs": abs, "exp": math.exp, "sin": math.sin, "cos": math.cos, "tanh": math.tanh,
    "sigmoid": sigmoid,
    "softplus": lambda v: math.log(1 + math.exp(v)), "relu": lambda v: max(v, 0.0),
    "silu": lambda v: v * sigmoid(v),
    "gelu": lambda v: v * (1 + math.erf(v / math.sqrt(2))) / 2, "gelu_tanh": gelu_tanh,
    "identity": lambda v: v,
    "sqrt": math.sqrt, "log": math.log, "log2": math.log2, "floor": math.floor, "round": round,
}
for name, fn in UNARY.items():
    operand = "p" if name in ("sqrt", "log", "log2") else "x"
    case(f"{name}({operand})", X[operand].map(fn))                          # of a tensor,
    case(f"f32([{name}(0.3), {name}(1.7)])", row(fn(0.3), fn(1.7)))         # of numbers,
    case(f"u * 0 + {name}(r)", X["u"].map(lambda _, fn=fn: fn(0.75)))  # of a number of the step
case("round(half)", X["half"].map(round))       # to the even one, as for numbers
case("f32([round(-2.5), round(0.5), round(1.5), round(2.5)])", row(-2, 0, 2, 2))
case("f32([leaky_relu(-2, 0.2), leaky_relu(3, 0.2)])", row(-0.4, 3))
case("leaky_relu(x, 0.2)", X["x"].map(lambda v: v if v > 0 else 0.2 * v))
case("x |> leaky_relu(_, 0.2)", X["x"].map(lambda v: v if v > 0 else 0.2 * v))
case("clamp(x, -0.5, 1)", X["x"].map(lambda v: min(max(v, -0.5), 1)))
case("f32([clamp(2, -1, 1), clamp(-0.5, 0, 1), clamp(0.5, 0, 1)])", row(1, 0, 0.5))
case("min(x, y)", make((B, 3, 4), lambda *i: min(X["x"][i], X["y"][i])))
case("max(x, y)", make((B, 3, 4), lambda *i: max(X["x"][i], X["y"][i])))
case("max(x, 0.5) + min(0.25, y)",
     make((B, 3, 4), lambda *i: max(X["x"][i], 0.5) + min(0.25, X["y"][i])))
case("f32([min(3, 4), max(3, 4.5), min(-1.0, 2)])", row(3, 4.5, -1))
case("where(x > y, x, 2 * y)",
     make((B, 3, 4), lambda *i: X["x"][i] if X["x"][i] > X["y"][i] else 2 * X["y"][i]))
case("where(x > 0, 1.0, 0.0)", X["x"].map(lambda v: float(v > 0)))
case("dropout(x, 0.5)", X["x"])                 # a program runs in evaluation mode

# ---- operators ----

case("x + y * 2 - x / p",
     make((B, 3, 4), lambda *i: X["x"][i] + X["y"][i] * 2 - X["x"][i] / X["p"][i]))
case("x % p", make((B, 3, 4), lambda *i: X["x"][i] - X["p"][i] * math.floor(X["x"][i] / X["p"][i])))
case("-x ^ 2 + p ^ 0.5 + 2 ^ x + p ^ -1 + p ^ x", make(
    (B, 3, 4), lambda *i: -X["x"][i] ** 2 + X["p"][i] ** 0.5 + 2 ** X["x"][i] + 1 / X["p"][i]
                          + X["p"][i] ** X["x"][i]))
for symbol, fn in {"<": lambda v, w: v < w, "<=": lambda v, w: v <= w, ">": lambda v, w: v > w,
                   ">=": lambda v, w: v >= w, "==": lambda v, w: v == w,
                   "!=": lambda v, w: v != w}.items():
    case(f"where(m {symbol} 2, 1.0, 0.0)", X["m"].map(lambda v, fn=fn: float(fn(v, 2))))
case("where(x > 0 and y > 0 or not (x > -1), 1.0, 0.0)", make(
    (B, 3, 4), lambda *i: float((X["x"][i] > 0 and X["y"][i] > 0) or not X["x"][i] > -1)))
case("signs % 3", X["signs"].map(lambda v: v % 3), "int[4]")
case("div(signs, 3)", X["signs"].map(lambda v: v // 3), "int[4]")
case("signs / 2", X["signs"].map(lambda v: v / 2))
case("f32([7 % 3, -7 % 3, 7 % -3, -7.5 % 2, 2 ^ 3 ^ 2, 6 / 3, 7 / 2.0, -2 ^ 2])",
     row(1, 2, -2, 0.5, 512, 2, 3.5, -4))
case("u * 0 + t * r + t / 2 - t % 2 + div(t, 2) + t ^ 2",
     X["u"].map(lambda _: 3 * 0.75 + 1.5 - 1 + 1 + 9))
case("f32([if t in [1, 3] then 1 else 0, if t in 0..3 then 1 else 0, if t in 3..9 then 1 else 0])",
     row(1, 0, 1))
case("f32([if 3 in [1, 3] then 1 else 0, if 3 in 0..3 then 1 else 0,"
     " if \"a\" in [\"b\"] then 1 else 0])", row(1, 0, 0))
case("where(m in [1, 4], 1.0, 0.0)", X["m"].map(lambda v: float(v in (1, 4))))
case("where(m in 1..3, 1.0, 0.0)", X["m"].map(lambda v: float(v in (1, 2))))
case("if t > 2 and r < 1 then u else -u", X["u"])
case("if t != 3 then u else if t == 3 then 2 * u else 3 * u", X["u"].map(lambda v: 2 * v))
case("if t < 3 then u else if t >= 4 then 2 * u else 3 * u", X["u"].map(lambda v: 3 * v))

# ---- indices ----

case("x[.., 0]", make((B, 4), lambda b, j: X["x"][b, 0, j]))
case("x[..., -1]", make((B, 3), lambda b, i: X["x"][b, i, 3]))
case("x[..., 1..-1]", make((B, 3, 2), lambda b, i, j: X["x"][b, i, j + 1]))
case("x[.., 1.., ..2]", make((B, 2, 2), lambda b, i, j: X["x"][b, i + 1, j]))
case("x[..., t]", make((B, 3), lambda b, i: X["x"][b, i, 3]))
case("[0.5, 1.5, 2.5][k]", make((B,), lambda b: [0.5, 1.5, 2.5][X["k"][b]]))
case("u * [0.5, 1.5, 2.5, 3.5][t]", X["u"].map(lambda v: v * 3.5))
case("f32([[1, 2], [3, 4], [5, 6]])[k]", make((B, 2), lambda b, j: 2 * X["k"][b] + j + 1))
case("f32([10, 11, 12, 13, 14][1..-1] + [9, 8][..1] + [7, 6][1..])", row(11, 12, 13, 9, 6))

# ---- reductions ----


def mean(values):
    return math.fsum(values) / len(values)


def var(values):
    return mean([(v - mean(values)) ** 2 for v in values])


for name, fn in {"sum": math.fsum, "mean": mean, "max": max, "min": min, "var": var}.items():
    case(f'{name}(x, "b c n -> b 1 n")',
         make((B, 1, 4), lambda b, _, n, fn=fn: fn([X["x"][b, c, n] for c in range(3)])))
    case(f'{name}(x, "b c n -> b")',
         make((B,), lambda b, fn=fn: fn([X["x"][b, c, n] for c in range(3) for n in range(4)])))
    case(f'{name}(x, "b c (n pair) -> c n", pair: 2)', make((3, 2), lambda c, n, fn=fn: fn(
        [X["x"][b, c, 2 * n + j] for b in range(B) for j in range(2)])))
    case(f"{name}(x)", number(fn(X["x"].data)))
    case(f"f32([{name}([3, 1.5, 4])])", row(fn([3, 1.5, 4]))) if name != "var" else case(
        "full([1], var([3, 1.5, 4]))", row(var([3, 1.5, 4])))
for name, fn in {"any": any, "all": all}.items():
    case(f'where({name}(x > 1, "b c n -> b c"), 1.0, 0.0)',
         make((B, 3), lambda b, c, fn=fn: float(fn(X["x"][b, c, n] > 1 for n in range(4)))))
    case(f"where({name}(x > -1.9), 1.0, 0.0)", number(float(fn(v > -1.9 for v in X["x"].data))))
    case(f"f32([if {name}([true, false]) then 1 else 0])", row(float(fn([True, False]))))
case('sum(x > 0, "b c n -> b c")',
     make((B, 3), lambda b, c: sum(X["x"][b, c, n] > 0 for n in range(4))), "int[b, 3]")
case("sum(x > 0)", number(sum(v > 0 for v in X["x"].data)), "int")
case("sum([x, y, 2 * x])", make((B, 3, 4), lambda *i: 3 * X["x"][i] + X["y"][i]))
case("mean([x, y])", make((B, 3, 4), lambda *i: (X["x"][i] + X["y"][i]) / 2))
case("max([x, y, p])", make((B, 3, 4), lambda *i: max(X["x"][i], X["y"][i], X["p"][i])))
case("f32([sum(0..5), max(0..5), mean([1, 2])])", row(10, 4, 1.5))


def softmax(values, i):
    return math.exp(values[i]) / math.fsum(map(math.exp, values))


case("softmax(x)", make((B, 3, 4), lambda b, c, n: softmax([X["x"][b, c, j] for j in range(4)], n)))
case("softmax(x, axis: 1)",
     make((B, 3, 4), lambda b, c, n: softmax([X["x"][b, j, n] for j in range(3)], c)))

# ---- movement ----

case('rearrange(x, "b c (n pair) -> b pair c n", pair: 2)',
     make((B, 2, 3, 2), lambda b, p, c, n: X["x"][b, c, 2 * n + p]))
case('rearrange(u, "b n -> b 1 (n 1)")', make((B, 1, 4), lambda b, _, n: X["u"][b, n]))
case('repeat(u, "b n -> b 3 (n two)", two: 2)', make((B, 3, 8), lambda b, i, n: X["u"][b, n // 2]))
case('pack([x, u], "b *")',
     make((B, 16), lambda b, i: X["x"][b, i // 4, i % 4] if i < 12 else X["u"][b, i - 12]))
case('unpack(x, "b c *", like: [[3], [1]])', [make((B, 3, 3), lambda *i: X["x"][i]),
                                              make((B, 3, 1), lambda b, c, _: X["x"][b, c, 3])])
case('unpack(pack([x, 2 * x], "b c *"), "b c *", like: [x, x])',
     [X["x"], X["x"].map(lambda v: 2 * v)])
case("concat([x, y], axis: 1)",
     make((B, 6, 4), lambda b, c, n: X["x"][b, c, n] if c < 3 else X["y"][b, c - 3, n]))
case("concat([x, y], axis: -1)",
     make((B, 3, 8), lambda b, c, n: X["x"][b, c, n] if n < 4 else X["y"][b, c, n - 4]))
case("split(x, 2, axis: 2)",
     [make((B, 3, 2), lambda b, c, n, part=part: X["x"][b, c, 2 * part + n]) for part in (0, 1)])
case("split(x, [1, 3], axis: -1)", [make((B, 3, 1), lambda b, c, n: X["x"][b, c, n]),
                                    make((B, 3, 3), lambda b, c, n: X["x"][b, c, n + 1])])
case("pad(x, [[0, 0], [1, 0], [2, 1]])",
     make((B, 4, 7), lambda b, c, n: X["x"].get(b, c - 1, n - 2)))
case("pad(u, [[0, 0], [0, 2]], value: 7)", make((B, 6), lambda b, n: X["u"][b, n] if n < 4 else 7))
case("flip(x, axis: 1)", make((B, 3, 4), lambda b, c, n: X["x"][b, 2 - c, n]))
case("flip(x, axis: -1)", make((B, 3, 4), lambda b, c, n: X["x"][b, c, 3 - n]))
case("pick(x, k, axis: 1)", make((B, 4), lambda b, n: X["x"][b, X["k"][b], n]))
case("window(line, t, 3, axis: 2)", make((B, 2, 3), lambda b, c, n: X["line"][b, c, n + 3]))

# ---- products ----

case('einsum("b c n, b d n -> b c d", x, y)', make(
    (B, 3, 3), lambda b, c, d: sum(X["x"][b, c, n] * X["y"][b, d, n] for n in range(4))))
case('einsum("b c n, b n, b c n -> b", x, u, y)', make(
    (B,), lambda b: sum(X["x"][b, c, n] * X["u"][b, n] * X["y"][b, c, n]
                        for c in range(3) for n in range(4))))
case('einsum("b c n -> n c", x)', make((4, 3), lambda n, c: sum(X["x"][b, c, n] for b in range(B))))


def attend(b, h, i, e, scale=0.5, sees=lambda i, j: True):
    seen = [j for j in range(5) if sees(i, j)]
    logits = [scale * sum(X["q"][b, h, i, d] * X["keys"][b, h, j, d] for d in range(4))
              for j in seen]
    return sum(softmax(logits, n) * X["values"][b, h, j, e] for n, j in enumerate(seen))


case("attention(q, keys, values)", make((B, 2, 3, 6), attend))
case("attention(q, keys, values, scale: 2.0)", make((B, 2, 3, 6), lambda *i: attend(*i, scale=2.0)))
case("attention(q, keys, values, mask: mask)",
     make((B, 2, 3, 6), lambda *i: attend(*i, sees=lambda i, j: X["mask"][0, 0, i, j])))
case("attention(q, keys[.., .., ..3], values[.., .., ..3], causal: true)",
     make((B, 2, 3, 6), lambda *i: attend(*i, sees=lambda i, j: j <= i)))


def rotated(b, n, d):
    v = lambda d: X["x"][b, n, d]                                           # noqa: E731
    angle, partner = X["angles"][n, d], -v(d + 1) if d % 2 == 0 else v(d - 1)
    return v(d) * math.cos(angle) + partner * math.sin(angle)


case("rotary(x, angles)", make((B, 3, 4), rotated))

# ---- pooling, resizing ----

for name, fn in {"avg_pool": mean, "max_pool": max}.items():
    case(f"{name}(line, 2)",
         make((B, 2, 3), lambda b, c, n, fn=fn: fn([X["line"][b, c, 2 * n + j] for j in range(2)])))
    case(f"{name}(plane, 2)", make((B, 2, 2, 3), lambda b, c, i, j, fn=fn: fn(
        [X["plane"][b, c, 2 * i + di, 2 * j + dj] for di in range(2) for dj in range(2)])))
    case(f"{name}(cube, 2)", make((B, 2, 1, 2, 2), lambda b, c, i, j, k, fn=fn: fn(
        [X["cube"][b, c, 2 * i + u, 2 * j + v, 2 * k + w]
         for u in range(2) for v in range(2) for w in range(2)])))
case("resize_nearest(plane, 2)",
     make((B, 2, 10, 12), lambda b, c, i, j: X["plane"][b, c, i // 2, j // 2]))


def along(n_in, n_out, i):
    """Corners not aligned: two neighbours and the weight of the second."""
    at = min(max((i + 0.5) * n_in / n_out - 0.5, 0), n_in - 1)
    low = int(at)
    return low, min(low + 1, n_in - 1), at - low


def resized(b, c, i, j):
    top, bottom, v = along(5, 8, i)
    left, right, w = along(6, 3, j)
    at = lambda row, col: X["plane"][b, c, row, col]                        # noqa: E731
    upper = (1 - w) * at(top, left) + w * at(top, right)
    return (1 - v) * upper + v * ((1 - w) * at(bottom, left) + w * at(bottom, right))


case("resize_linear(plane, [8, 3])", make((B, 2, 8, 3), resized))

# ---- new tensors, lists, numbers ----

case("zeros([2, 3])", make((2, 3), lambda *_: 0))
case("ones([2, 3]) + zeros([1, 1])", make((2, 3), lambda *_: 1))
case("u + full([b, 4], 2.5) + full([1, 1], r)", X["u"].map(lambda v: v + 3.25))
case("full([b], t)", make((B,), lambda _: 3), "int[b]")
case("f32(m) / 2", X["m"].map(lambda v: v / 2))
case("f32(0..4)", row(0, 1, 2, 3))
case("int(x * 3)", X["x"].map(lambda v: int(v * 3)), "int[b, 3, 4]")        # towards zero
case("f32([int(2.7), int(-2.7), int(true)])", row(2, -2, 1))
case("f32([len([5, 6, 7]), len(0..4)])", row(3, 4))
case("f32([10 * i + v for i, v in enumerate([4, 5, 6])])", row(4, 15, 26))
case("f32([v * w for v, w in zip([1, 2, 3], 4..7)])", row(4, 10, 18))
case("f32(reverse([1, 2, 3]) + [v for v in reverse(0..3)])", row(3, 2, 1, 2, 1, 0))
case("f32(cumprod([2, 3, 0.5]))", row(2, 6, 3))
case("f32(linspace(1, 3, 5))", row(1, 1.5, 2, 2.5, 3))
case("f32([div(7, 2), div(-7, 2), div(7, -2), div(7.5, 2)])", row(3, -4, -4, 3))
case("f32([floor(2.7), floor(-2.2), pi, 2 * pi])", row(2, -3, math.pi, 2 * math.pi))
case("f32([v * w for v in [1, 2] for w in [3, 4, 5] if v + w > 4])", row(4, 5, 6, 8, 10))
case("stop_gradient(x)", X["x"])

# ---- random numbers: the streams are Philox's, as in runtime/random_bits.h ----

SEED = 5


def philox(stream, block):
    name = 2166136261
    for byte in stream.encode():
        name = (name ^ byte) * 16777619 % 2 ** 32
    counter, key = [block, 0, 0, name], [SEED, 0]
    for _ in range(10):
        low, high = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [high >> 32 ^ counter[1] ^ key[0], high % 2 ** 32,
                   low >> 32 ^ counter[3] ^ key[1], low % 2 ** 32]
        key = [(key[0] + 0x9E3779B9) % 2 ** 32, (key[1] + 0xBB67AE85) % 2 ** 32]
    return counter


def words(stream, count):
    return [philox(stream, i // 4)[i % 4] for i in range(count + count % 2)]


def uniforms(stream, count):
    return [(word >> 8) / 2 ** 24 for word in words(stream, count)[:count]]


def normals(stream, count):
    drawn, out = words(stream, count), []
    for first, second in zip(drawn[::2], drawn[1::2]):
        radius = math.sqrt(-2 * math.log((first + 0.5) / 2 ** 32))
        turn = 2 * math.pi * second / 2 ** 32
        out += [radius * math.cos(turn), radius * math.sin(turn)]
    return out[:count]


case('normal([b, 3, 4], stream: "n")', T((B, 3, 4), normals("n", 24)))
case('normal([b, 4], mean: 1, std: 0.5, stream: "n")',
     T((B, 4), [1 + 0.5 * v for v in normals("n", 8)]))
case('uniform([b, 4], stream: "u")', T((B, 4), uniforms("u", 8)))
case('uniform([b, 4], -1, 3, stream: "u")', T((B, 4), [4 * v - 1 for v in uniforms("u", 8)]))
case('randint(-3, 10, shape: [b, 3], stream: "i")',
     T((B, 3), [(w * 13 >> 32) - 3 for w in words("i", 6)]), "int[b, 3]")
case('where(bernoulli(0.4, shape: [b, 4], stream: "c"), 1.0, 0.0)',
     T((B, 4), [float(v < 0.4) for v in uniforms("c", 8)]))
case('u * 0 + uniform([], stream: "one") + randint(0, 100, stream: "two")',
     X["u"].map(lambda _: uniforms("one", 1)[0] + (words("two", 1)[0] * 100 >> 32)))
case('if bernoulli(0.4, stream: "coin") then u else -u',
     X["u"].map(lambda v: v if uniforms("coin", 1)[0] < 0.4 else -v))

# ---- modules ----


def model(name, declaration, **weights):
    MODELS.append(f"model {name} = {declaration}")
    for field, tensor in weights.items():
        WEIGHTS[f"{name}.{field}"] = tensor
    return weights


def weighted(w, bias, o, terms):
    return (bias[o] if bias else 0.0) + math.fsum(w[index] * v for index, v in terms)


lin = model("lin", "Linear(4, 3)", weight=reals(3, 4), bias=reals(3))
case("lin(x)", make((B, 3, 3), lambda b, i, o: weighted(
    lin["weight"], lin["bias"], o, [((o, d), X["x"][b, i, d]) for d in range(4)])))
bare = model("bare", "Linear(4, 3, bias: false)", weight=reals(3, 4))
case("u |> bare", make((B, 3), lambda b, o: weighted(
    bare["weight"], None, o, [((o, d), X["u"][b, d]) for d in range(4)])))


def convolved(x, w, bias, stride, pad, groups=1):
    """Any number of axes behind [batch, channels]."""
    kernel, out, per = w.shape[2:], w.shape[0] // groups, w.shape[1]
    sizes = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], kernel, stride, pad)]

    def at(b, o, *place):
        def from_(c, tap):
            return x.get(b, o // out * per + c,
                         *(i * s - p + t for i, s, p, t in zip(place, stride, pad, tap)))
        return weighted(w, bias, o, [((o, c, *tap), from_(c, tap))
                                     for c in range(per) for tap in indices(kernel)])
    return make((x.shape[0], w.shape[0], *sizes), at)


def transposed(x, w, bias, stride, pad):
    kernel, axes = w.shape[2:], len(w.shape) - 2
    sizes = [(n - 1) * s - 2 * p + k for n, k, s, p in zip(x.shape[2:], kernel, stride, pad)]
    out = make((x.shape[0], w.shape[1], *sizes), lambda b, o, *_: bias[o] if bias else 0.0)
    for b, c, *place in indices(x.shape):
        for o in range(w.shape[1]):
            for tap in indices(kernel):
                to = [i * s - p + t for i, s, p, t in zip(place, stride, pad, tap)]
                if all(0 <= i < n for i, n in zip(to, sizes)):
                    at = 0
                    for i, n in zip((b, o, *to), out.shape):
                        at = at * n + i
                    out.data[at] += x[(b, c, *place)] * w[(c, o, *tap)]
    assert axes == len(stride)
    return out


c1 = model("c1", "Conv1d(2, 3, 3, stride: 2, pad: 1)", weight=reals(3, 2, 3), bias=reals(3))
case("c1(line)", convolved(X["line"], c1["weight"], c1["bias"], [2], [1]))
c2 = model("c2", "Conv2d(4, 6, 3, pad: 1, groups: 2)", weight=reals(6, 2, 3, 3), bias=reals(6))
case("c2(wide)", convolved(X["wide"], c2["weight"], c2["bias"], [1, 1], [1, 1], 2))
c2s = model("c2s", "Conv2d(2, 3, [3, 2], stride: [2, 1], pad: [0, 1], bias: false)",
            weight=reals(3, 2, 3, 2))
case("c2s(plane)", convolved(X["plane"], c2s["weight"], None, [2, 1], [0, 1]))
c2p = model("c2p", "Conv2d(4, 3, 1)", weight=reals(3, 4, 1, 1), bias=reals(3))
case("c2p(wide)", convolved(X["wide"], c2p["weight"], c2p["bias"], [1, 1], [0, 0]))
depthwise = model("depthwise", "Conv2d(4, 4, 3, groups: 4)", weight=reals(4, 1, 3, 3),
                  bias=reals(4))
case("depthwise(wide)",
     convolved(X["wide"], depthwise["weight"], depthwise["bias"], [1, 1], [0, 0], 4))
c3 = model("c3", "Conv3d(2, 3, 2, stride: 2, pad: 1)", weight=reals(3, 2, 2, 2, 2), bias=reals(3))
case("c3(cube)", convolved(X["cube"], c3["weight"], c3["bias"], [2] * 3, [1] * 3))
t1 = model("t1", "ConvTranspose1d(2, 3, 4, stride: 2, pad: 1)", weight=reals(2, 3, 4),
           bias=reals(3))
case("t1(line)", transposed(X["line"], t1["weight"], t1["bias"], [2], [1]))
t2 = model("t2", "ConvTranspose2d(2, 3, 3, stride: 2, bias: false)", weight=reals(2, 3, 3, 3))
case("t2(plane)", transposed(X["plane"], t2["weight"], None, [2, 2], [0, 0]))
t2e = model("t2e", "ConvTranspose2d(2, 3, 2, stride: 2)", weight=reals(2, 3, 2, 2), bias=reals(3))
case("t2e(plane)", transposed(X["plane"], t2e["weight"], t2e["bias"], [2, 2], [0, 0]))
t3 = model("t3", "ConvTranspose3d(2, 1, 3, pad: 1)", weight=reals(2, 1, 3, 3, 3), bias=reals(1))
case("t3(cube)", transposed(X["cube"], t3["weight"], t3["bias"], [1] * 3, [1] * 3))


def normal_to(values, v, eps):
    return (v - mean(values)) / math.sqrt(var(values) + eps)


def layer_norm(weight, bias, eps):
    def at(b, i, d):
        v = normal_to([X["x"][b, i, j] for j in range(4)], X["x"][b, i, d], eps)
        return v * weight[d] + bias[d] if weight else v
    return make((B, 3, 4), at)


ln = model("ln", "LayerNorm(4)", weight=reals(4), bias=reals(4))
case("ln(x)", layer_norm(ln["weight"], ln["bias"], 1e-5))
model("plain", "LayerNorm(4, eps: 0.1, affine: false)")
case("plain(x)", layer_norm(None, None, 0.1))
rms = model("rms", "RMSNorm(4)", weight=reals(4))
case("rms(x)", make((B, 3, 4), lambda b, i, d: X["x"][b, i, d] * rms["weight"][d] / math.sqrt(
    mean([X["x"][b, i, j] ** 2 for j in range(4)]) + 1e-6)))
gn = model("gn", "GroupNorm(2, 4, eps: 0.01)", weight=reals(4), bias=reals(4))
case("gn(wide)", make((B, 4, 5, 6), lambda b, c, i, j: gn["bias"][c] + gn["weight"][c] * normal_to(
    [X["wide"][b, c // 2 * 2 + g, h, w] for g in range(2) for h in range(5) for w in range(6)],
    X["wide"][b, c, i, j], 0.01)))
bn = model("bn", "BatchNorm(2)", weight=reals(2), bias=reals(2), running_mean=reals(2),
           running_var=reals(2, lo=0.5),
           num_batches_tracked=number(7))
case("bn(plane)", make((B, 2, 5, 6), lambda b, c, i, j: bn["bias"][c] + bn["weight"][c] * (
    X["plane"][b, c, i, j] - bn["running_mean"][c]) / math.sqrt(bn["running_var"][c] + 1e-5)))
case("evaluating(bn)(plane) - bn(plane)", make((B, 2, 5, 6), lambda *_: 0.0))
case("training(bn)(plane)", make(
    (B, 2, 5, 6), lambda b, c, i, j: bn["bias"][c] + bn["weight"][c] * normal_to(
        [X["plane"][a, c, h, w] for a in range(B) for h in range(5) for w in range(6)],
        X["plane"][b, c, i, j], 1e-5)))
emb = model("emb", "Embedding(5, 3)", weight=reals(5, 3))
case("emb(m)", make((B, 3, 3), lambda b, i, c: emb["weight"][X["m"][b, i], c]))
scale = model("scale", "Scale")
WEIGHTS["scale.w"] = reals(1, 4)
case("scale(u)", make((B, 4), lambda b, n: X["u"][b, n] * WEIGHTS["scale.w"][0, n]))
case("recompute(lin)(x) - lin(x)", make((B, 3, 3), lambda *_: 0.0))
model("drop", "Drop")
case('where(training(drop)(p) == 0, 0.0, 1.0)',
     T((B, 3, 4), [float(v >= 0.4) for v in uniforms("dropout.0", 24)]))

MODULES = """
module Scale { w = Param([1, 4], init: ones); def forward(x: [b, 4]) = w * x }
module Drop { layers = [dropout(_, 0.4)]; def forward(x: [...]) = layers(x) }
"""


# ---- running them ----

def program(case_):
    name, used, expression, expected, types = case_
    inputs = ", ".join(f"{input_}: {INPUTS[input_][0]}" for input_ in used)
    results = ", ".join(f"o{i}: {types}" if types else f"o{i}" for i in range(len(expected)))
    return f"program {name}({inputs}) -> {results} = {expression}"


def built(dtype, target):
    """The executable with all cases, and files of inputs and weights."""
    folder = scratch(f"builtins_{dtype}_{target}")
    with open(f"{folder}/builtins.model", "w", encoding="ascii") as file:
        file.write(MODULES + "\n".join(MODELS) + "\n" + "\n".join(map(program, CASES)) + "\n")
    run(PVDMC, f"{folder}/builtins.model", "-o", f"{folder}/exe", "--dtype", dtype,
        "--target", target)
    code = "F64" if dtype == "f64" else "F32"
    write_tensors(f"{folder}/weights.safetensors", {
        name: ("I64" if name.endswith("tracked") else code, tensor.shape, tensor.data)
        for name, tensor in WEIGHTS.items()})
    write_tensors(f"{folder}/in.safetensors", {
        name: (code_of(kind, code), value.shape, value.data)
        for name, (kind, value) in INPUTS.items()})
    return folder


def code_of(kind, code):
    return "I64" if kind.startswith("int") else "BOOL" if kind.startswith("bool") else code


def wrong(have, want, bound):
    if tuple(have[0]) != want.shape:
        return f"shape {have[0]}, not {list(want.shape)}"
    for i, (got, wanted) in enumerate(zip(have[1], want.data)):
        if not abs(got - wanted) <= bound * max(1.0, abs(wanted)):
            return f"element {i} is {got!r}, not {wanted!r}"
    return None


def check(dtype, bound, target="cpu"):
    folder, failures = built(dtype, target), []
    env = {"PVDM_CUDA_DRIVER": EMULATOR} if target == "simt" else None
    for case_ in CASES:
        name, used, expression, expected, _ = case_
        if dtype == "f32" and "half" in used:
            continue                                        # its last element is not an f32
        weights = [part for model_ in MODELS
                   for part in ("--weights", weights_of(folder, model_.split()[1]))
                   if re.search(rf"\b{model_.split()[1]}\b", expression)
                   and model_.split()[1] not in ("plain", "drop")]
        out = f"{folder}/out.safetensors"
        try:
            run(f"{folder}/exe", "run", name, "--in", f"{folder}/in.safetensors", "--out", out,
                "--seed", SEED, *weights,
                env=env)
        except AssertionError as error:
            failures.append(f"{expression}: {error}")
            continue
        outputs = Tensors(out)
        for i, want in enumerate(expected):
            told = wrong((outputs.shape(f"o{i}"), outputs.get(f"o{i}")), want, bound)
            if told:
                failures.append(f"{expression}: output {i}: {told}")
    assert not failures, f"{len(failures)} of {len(CASES)}:\n" + "\n".join(failures)
    return f"{len(CASES)} programs"


def weights_of(folder, name):
    return f"{name}={folder}/weights.safetensors#{name}."


def test_builtins_f64():
    return check("f64", 2e-6)           # draws are f32


def test_builtins_f32():
    return check("f32", 2e-5)


def test_builtins_simt():
    """The same programs by CUDA kernels on the emulator."""
    if not os.path.exists(EMULATOR):
        raise Skip("the emulator was not built")
    return check("f32", 2e-5, "simt")


def test_every_name_is_tried():
    with open(os.path.join(ROOT, "grammar", "README.md"), encoding="utf-8") as file:
        text = file.read().split("## What is built in")[1].split("\n## ")[0]
    names = set()
    for line in text.splitlines():
        if line.startswith("| `"):
            for quoted in re.findall(r"`([^`]*)`", line.split(" | ")[0]):
                names |= set(re.findall(r"[A-Za-z_]\w*", quoted.split("(")[0]))
    tried = set(re.findall(r"\w+", " ".join([MODULES, *MODELS, *(case_[2] for case_ in CASES)])))
    missing = sorted(names - tried)
    assert len(names) > 70 and not missing, f"no case for {missing} of {len(names)} names"
    return f"{len(names)} names"
