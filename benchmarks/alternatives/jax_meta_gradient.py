"""Computes the meta-gradient by JAX on the CPU.

Network, losses, Adam and the whole meta-update in jax.numpy, under one jit.

`python -m benchmarks.alternatives.jax_meta_gradient SETTING FILE`, FILE as `MetaUpdate.write` leaves it; cases "time N"
and "peak N" for look-aheads of N updates, "checkpoint time N" and "checkpoint peak N" with `jax.checkpoint` around
each update. The environment sets the threads: one, XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
intra_op_parallelism_threads=1, and one core by affinity.

One reverse pass through all updates (jax.grad of jax.grad). Chosen by measuring on one core: convolutions as patches
and one matrix product (`lax.conv_general_dilated` takes 1.25 times as long on Nature at n = 1, 3 times on Snake at
n = 3), and updates one after another in one program (`lax.scan` takes 1.4 times as long at n = 3 on either). Above
n = 5 it is a scan all the same: compiling takes time with the length of the program, minutes at n = 20.

The batch is an argument of the jitted function: nothing is folded when compiling, though XLA may compute once what all
updates share, such as pictures in float. Compiling is not timed; its seconds are said.
"""

import ctypes
import json
import math
import re
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.alternatives.serve import serve

Array = Any
LONGEST_UNROLLED = 5

stop = lax.stop_gradient


def convolve(x: Array, weight: Array, stride: int) -> Array:
    """Convolve by patches and one matrix product; x [N, H, W, C], weight [O, C, k, k].

    A stride that divides the kernel is taken out first, by blocks of pixels: k² / stride² patches are cut, not k².
    """
    outputs, channels, kernel, _ = weight.shape
    if stride > 1:
        assert kernel % stride == 0
        kernel //= stride
        n, rows, columns, _ = x.shape
        rows, columns = rows // stride, columns // stride
        x = x[:, : rows * stride, : columns * stride].reshape(n, rows, stride, columns, stride, channels)
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(n, rows, columns, stride * stride * channels)
        weight = weight.reshape(outputs, channels, kernel, stride, kernel, stride)
        weight = weight.transpose(2, 4, 3, 5, 1, 0)
    else:
        weight = weight.transpose(2, 3, 1, 0)
    rows, columns = x.shape[1] - kernel + 1, x.shape[2] - kernel + 1
    patches = [x[:, i : i + rows, j : j + columns] for i in range(kernel) for j in range(kernel)]
    patches = patches[0] if len(patches) == 1 else jnp.concatenate(patches, -1)
    return patches @ weight.reshape(-1, outputs)


class MetaUpdate:
    """Runs one fixed meta-update."""

    def __init__(self, setting: str, file: Path):
        data = dict(np.load(file))
        self.constants = json.loads(str(data.pop("constants")))
        self.count = int(data.pop("count"))
        self.start = tuple(jnp.asarray(data.pop(name)) for name in ("theta", "first", "second"))
        self.eta = jnp.asarray(data.pop("eta"))
        self.batch = {name: jnp.asarray(x) for name, x in data.items()}
        self.apply = {"nature": self.nature, "snake": self.snake}[setting]
        self.compiled: dict[tuple[int, bool], tuple[Callable[..., Array], float]] = {}

    def parameters(self, theta: Array) -> dict[str, Array]:
        """Return tensors by name."""
        result, at = {}, 0
        for name, shape in zip(self.constants["names"], self.constants["shapes"], strict=True):
            size = math.prod(shape)
            result[name] = theta[at : at + size].reshape(shape)
            at += size
        return result

    @staticmethod
    def conv(p: dict[str, Array], name: str, x: Array, stride: int, scale: float = 1.0) -> Array:
        return jax.nn.relu(convolve(x, p[f"{name}.weight"] * scale, stride) + p[f"{name}.bias"])

    @staticmethod
    def linear(p: dict[str, Array], name: str, x: Array) -> Array:
        return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    @staticmethod
    def flat(x: Array) -> Array:
        """Put channels first, as the weights of the next layer expect."""
        return x.transpose(0, 3, 1, 2).reshape(len(x), -1)

    def nature(self, p: dict[str, Array], observation: Array, heads: tuple[str, ...]) -> dict[str, Array]:
        """Return the outputs of `NatureCnn` by head."""
        x = observation.transpose(0, 2, 3, 1).astype(jnp.float32)
        x = self.conv(p, "torso.0", x, 4, 1.0 / 255.0)
        x = self.conv(p, "torso.4", self.conv(p, "torso.2", x, 2), 1)
        x = jax.nn.relu(self.linear(p, "torso.7", self.flat(x)))
        return {head: self.linear(p, head, stop(x) if head == "outer_value" else x) for head in heads}

    def snake(self, p: dict[str, Array], observation: Array, heads: tuple[str, ...]) -> dict[str, Array]:
        """Return the outputs of `SnakeCnn` by head."""
        outputs = {}
        for head in heads:
            x = self.conv(p, f"{head}.1", observation, 2)
            x = self.conv(p, f"{head}.3", jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), 1)  # SAME
            x = jax.nn.relu(self.linear(p, f"{head}.6", self.flat(x)))
            x = jax.nn.relu(self.linear(p, f"{head}.8", x))
            outputs[head] = self.linear(p, f"{head}.10", x)
        return outputs

    def forward(self, theta: Array, batch: dict[str, Array], heads: tuple[str, ...]) -> dict[str, Array]:
        """Evaluate heads on the acted-on observations; values also on the last row, as constants."""
        observation, (steps, size) = batch["observation"], batch["action"].shape
        flat = observation[:-1].reshape(steps * size, *observation.shape[2:])
        outputs = {
            head: x.reshape(steps, size, -1) for head, x in self.apply(self.parameters(theta), flat, heads).items()
        }
        critics = tuple(head for head in heads if head != "logits")
        last = self.apply(self.parameters(stop(theta)), observation[-1], critics)
        for head in critics:
            outputs[head] = jnp.concatenate([outputs[head], last[head][None]])[..., 0]
        return outputs

    @staticmethod
    def returns(batch: dict[str, Array], value: Array, gamma: Array, lambda_: Array) -> Array:
        """Return λ-returns over constant values."""
        value = stop(value)
        discount = gamma * ~batch["is_terminal"]
        trace = lambda_ * ~(batch["is_terminal"] | batch["is_truncated"])
        following, rows = value[-1], []
        for t in reversed(range(len(batch["reward"]))):
            following = batch["reward"][t] + discount[t] * ((1 - trace[t]) * value[t + 1] + trace[t] * following)
            rows.append(following)
        return jnp.stack(rows[::-1])

    def inner_loss(self, theta: Array, eta: Array, batch: dict[str, Array]) -> Array:
        """Return the A2C loss with LVC and the outer critic's regression."""
        low, high = jnp.asarray(self.constants["bounds"]).T
        gamma, lambda_, value_coefficient, entropy_coefficient = low + (high - low) * jax.nn.sigmoid(eta)
        outputs, outer = self.forward(theta, batch, ("logits", "value", "outer_value")), self.constants["outer"]
        log_probs = jax.nn.log_softmax(outputs["logits"])
        log_prob = jnp.take_along_axis(log_probs, batch["action"][..., None], -1)[..., 0]
        log_prob = jnp.where(batch["valid"], log_prob, 0.0)
        target = self.returns(batch, outputs["value"], gamma, lambda_)
        outer_target = self.returns(batch, outputs["outer_value"], outer["gamma"], outer["lambda_"])
        surrogate = jnp.exp(log_prob - stop(log_prob))
        total = (
            -(target - stop(outputs["value"][:-1])) * surrogate
            + value_coefficient * jnp.square(target - outputs["value"][:-1])
            + entropy_coefficient * (jnp.exp(log_probs) * log_probs).sum(-1)
            + outer["critic_coefficient"] * jnp.square(outer_target - outputs["outer_value"][:-1])
        )
        return self.mean(total, batch)

    def outer_loss(self, theta: Array, batch: dict[str, Array]) -> Array:
        """Return the policy-gradient loss over the outer critic."""
        outputs, outer = self.forward(theta, batch, ("logits", "outer_value")), self.constants["outer"]
        log_probs = jax.nn.log_softmax(outputs["logits"])
        log_prob = jnp.take_along_axis(log_probs, batch["action"][..., None], -1)[..., 0]
        target = self.returns(batch, outputs["outer_value"], outer["gamma"], outer["lambda_"])
        return -self.mean((target - stop(outputs["outer_value"][:-1])) * log_prob, batch)

    @staticmethod
    def mean(x: Array, batch: dict[str, Array]) -> Array:
        """Average over valid steps."""
        return (x * batch["valid"]).sum() / jnp.maximum(batch["valid"].sum(), 1.0)

    def update(self, carry: tuple[Array, ...], count: Array, eta: Array, batch: dict[str, Array]) -> tuple[Array, ...]:
        """Make one inner update."""
        theta, first, second = carry
        adam = self.constants["adam"]
        gradient = jax.grad(self.inner_loss)(theta, eta, batch)
        gradient *= jnp.minimum(self.constants["max_norm"] / (jnp.linalg.norm(gradient) + 1e-6), 1.0)
        first = adam["beta1"] * first + (1 - adam["beta1"]) * gradient
        second = adam["beta2"] * second + (1 - adam["beta2"]) * jnp.square(gradient)
        root = jnp.sqrt(second / (1 - adam["beta2"] ** count) + adam["eps_root"])
        step = first / (1 - adam["beta1"] ** count) / (root + adam["eps"])
        return theta - self.constants["learning_rate"] * step, first, second

    def meta_gradient(self, n: int, is_checkpointed: bool) -> Callable[..., Array]:
        """Return ∂J/∂η as a function of η, the start and the batch."""
        update = jax.checkpoint(self.update) if is_checkpointed else self.update

        def objective(eta: Array, start: tuple[Array, ...], batch: dict[str, Array]) -> Array:
            counts = self.count + 1.0 + jnp.arange(n)
            if n > LONGEST_UNROLLED:
                carry, _ = lax.scan(lambda carry, count: (update(carry, count, eta, batch), None), start, counts)
            else:
                carry = start
                for count in counts:
                    carry = update(carry, count, eta, batch)
            return self.outer_loss(carry[0], batch)

        return jax.grad(objective)

    def ready(self, n: int, is_checkpointed: bool) -> tuple[Callable[..., Array], float]:
        """Compile the function; return it and how long compiling took."""
        key = n, is_checkpointed
        if key not in self.compiled:
            before = time.perf_counter()
            function = jax.jit(self.meta_gradient(n, is_checkpointed))
            compiled = function.lower(self.eta, self.start, self.batch).compile()
            self.compiled[key] = compiled, time.perf_counter() - before
        return self.compiled[key]

    def timed(self, n: int, is_checkpointed: bool) -> dict[str, Any]:
        """Run it once; return the time and the result."""
        function, compile_s = self.ready(n, is_checkpointed)
        before, cpu_before = time.perf_counter(), time.process_time()
        result = np.asarray(function(self.eta, self.start, self.batch))
        seconds = {"wall_s": time.perf_counter() - before, "cpu_s": time.process_time() - cpu_before}
        return seconds | {"meta_gradient": result.tolist(), "compile_s": compile_s}

    def peak(self, n: int, is_checkpointed: bool) -> dict[str, Any]:
        """Peak memory of the first run over what was resident before, and what XLA planned."""
        function, _ = self.ready(n, is_checkpointed)
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what compiling freed goes back to the system
        Path("/proc/self/clear_refs").write_text("5")  # its peak was higher: the high-water mark starts over
        before = _resident("VmRSS")
        function(self.eta, self.start, self.batch).block_until_ready()
        planned = function.memory_analysis().temp_size_in_bytes  # type: ignore[attr-defined]
        return {"peak_growth_bytes": _resident("VmHWM") - before, "planned_bytes": planned}


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found, "Linux only"
    return int(found[1]) * 1024


def main(setting: str, file: str) -> None:
    """Serve the cases of one setting."""
    update = MetaUpdate(setting, Path(file))
    cases = {}
    for n in update.constants["lengths"]:
        for prefix, is_checkpointed in (("", False), ("checkpoint ", True)):
            cases[f"{prefix}time {n}"] = partial(update.timed, n, is_checkpointed)
            cases[f"{prefix}peak {n}"] = partial(update.peak, n, is_checkpointed)
    serve(cases, {"jax": jax.__version__, "jaxlib": metadata.version("jaxlib")})


if __name__ == "__main__":
    main(*sys.argv[1:])
