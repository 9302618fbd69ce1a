import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import conv2d as plain

from metagrad.convolution import Geometry, conv2d

GEOMETRIES = [Geometry((1, 1), (0, 0)), Geometry((2, 2), (1, 1)), Geometry((2, 1), (1, 0)), Geometry((3, 2), (0, 1))]


@pytest.fixture(params=GEOMETRIES, ids=str)
def geometry(request):
    return request.param


@pytest.fixture(params=[torch.contiguous_format, torch.channels_last], ids=["channels first", "channels last"])
def factors(request):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 2, 5, 4, generator=generator, dtype=torch.float64)
    weight = torch.randn(3, 2, 3, 2, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, generator=generator, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (x.contiguous(memory_format=request.param), weight, bias)]


def of(geometry, function=None):
    """Ours or torch's convolution of (x, weight, bias)."""
    if function is plain:
        return lambda x, weight, bias: plain(x, weight, bias, geometry.stride, geometry.padding)
    return lambda x, weight, bias: conv2d(x, weight, bias, geometry)


def test_it_is_the_convolution(geometry, factors):
    assert torch.equal(of(geometry)(*factors), of(geometry, plain)(*factors))
    x, weight, _ = factors
    assert torch.equal(conv2d(x, weight, None, geometry), plain(x, weight, None, geometry.stride, geometry.padding))


@pytest.mark.parametrize(
    ("geometry", "wanted"),
    [*((each, "xwb") for each in GEOMETRIES), *((each, one) for each in GEOMETRIES[1::2] for one in "xwb")],
    indirect=["geometry"],
    ids=str,
)
@pytest.mark.thinned(3)
def test_first_and_second_derivatives_in_both_modes(geometry, factors, wanted):
    """By finite differences, of every subset of the inputs: what is not asked for is not there to be wrong."""
    inputs = [tensor if name in wanted else tensor.detach() for name, tensor in zip("xwb", factors, strict=True)]
    assert gradcheck(of(geometry), inputs, check_forward_ad=True)
    if wanted != "b":  # linear, with a gradient that is constant
        assert gradgradcheck(of(geometry), inputs, check_fwd_over_rev=True)


def test_derivatives_of_second_derivatives(geometry, factors):
    x, weight, bias = factors

    def curvature(function, x, weight):
        loss = (of(geometry, function)(x, weight, bias.detach()) ** 3).sum()
        first = torch.autograd.grad(loss, (x, weight), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), (x, weight), create_graph=True)

    third = [
        torch.autograd.grad(sum((g**2).sum() for g in curvature(function, x, weight)), (x, weight))
        for function in (conv2d, plain)
    ]
    for ours, theirs in zip(*third, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("argument", [0, 1])
def test_function_transforms(geometry, factors, argument):
    """Forward over reverse, and one gradient per copy, as torch's own convolution gives them."""
    values = [tensor.detach() for tensor in factors]

    def gradient(function):
        return torch.func.grad(lambda *inputs: (of(geometry, function)(*inputs) ** 3).sum(), argument)

    tangents = tuple(torch.ones_like(value) for value in values)
    copies = tuple(torch.stack([value, 2 * value]) for value in values)
    for transform in (
        lambda f: torch.func.jvp(f, tuple(values), tangents)[1],
        lambda f: torch.func.vmap(f)(*copies),
        lambda f: torch.func.vmap(lambda *inputs: torch.func.jvp(f, inputs, inputs)[1])(*copies),
        lambda f: torch.func.jvp(torch.func.vmap(f), copies, copies)[1],
    ):
        torch.testing.assert_close(transform(gradient(conv2d)), transform(gradient(plain)))


def test_a_tangent_of_one_input_alone(geometry, factors):
    values = [tensor.detach() for tensor in factors]
    for index, value in enumerate(values):

        def along(function, index=index):
            return lambda tensor: of(geometry, function)(*values[:index], tensor, *values[index + 1 :])

        tangents = [torch.func.jvp(along(f), (value,), (torch.ones_like(value),))[1] for f in (conv2d, plain)]
        torch.testing.assert_close(*(tangent.expand_as(tangents[1]) for tangent in tangents))


def test_pictures_that_nobody_differentiates_have_no_gradient_computed(monkeypatch):
    """Not even in second derivatives, where torch's own convolution computes one."""
    asked = []

    class Record(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten.convolution_backward.default:
                asked.append(args[-1])
            assert function is not torch.ops.aten.convolution.default or not args[6], "a transposed convolution"
            return function(*args, **(kwargs or {}))

    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3, requires_grad=True)
    with Record():
        loss = (conv2d(x, weight, None, GEOMETRIES[0]) ** 3).sum()
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        torch.autograd.grad((gradient**2).sum(), weight)
    assert asked == [[False, True, False]] * 2
