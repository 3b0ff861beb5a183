import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from genssl import runtime
from genssl.errors import UserError


def test_stream_keys_never_change() -> None:
    # A stored run resumes with these: a changed value would break every run on disk
    assert runtime.seed_of(0, "order", 0) == 5617314440832320419


def test_streams_differ() -> None:
    keys = {runtime.seed_of(s, name, c) for s in range(3) for name in ("order", "views") for c in range(5)}
    assert len(keys) == 30


@pytest.mark.parametrize("draw", [runtime.normal, runtime.uniform])
def test_image_i_depends_on_seed_and_i_alone(draw: Callable[..., Tensor]) -> None:
    whole = draw((7, 3, 5), runtime.generators(1, "sample", range(7)))
    parts = [draw((1, 3, 5), runtime.generators(1, "sample", [i])) for i in range(7)]
    assert torch.equal(whole, torch.cat(parts))


def test_wrong_number_of_generators_is_refused() -> None:
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        runtime.normal((3, 4), runtime.generators(0, "sample", range(2)))


# Random123's known answers for Philox4x32-10: counter, key, words
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def plain_philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 in Python's integers, from the paper."""
    c, k = list(counter), list(key)
    for _ in range(10):
        upper_0, lower_0 = divmod(0xD2511F53 * c[0], 2**32)
        upper_1, lower_1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [upper_1 ^ c[1] ^ k[0], lower_1, upper_0 ^ c[3] ^ k[1], lower_0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_published_words(counter: str, key: str, expected: str) -> None:
    assert plain_philox(words(counter), words(key)) == words(expected)
    found = runtime.philox(*([torch.tensor(word) for word in words(text)] for text in (counter, key)))
    assert [int(word) for word in found] == words(expected)


def test_philox_broadcasts() -> None:
    counters, keys = torch.randint(2**32, (4, 5)), torch.randint(2**32, (2, 3, 1))
    found = torch.stack(runtime.philox(list(counters), list(keys)), -1)  # (3, 5, 4)
    for i, key in enumerate(keys[..., 0].T.tolist()):
        assert found[i].tolist() == [plain_philox(counter, key) for counter in counters.T.tolist()]


def test_step_noise_is_of_its_place_and_call() -> None:
    # numbers per image that are no multiple of four: counter j gives the numbers j, j + 2, j + 4 and j + 6
    noise = runtime.StepNoise((2, 7), runtime.generators(0, "sample", range(2)), "cpu")
    _, drawn = noise(9), noise(9)
    for i, source in enumerate(runtime.generators(0, "sample", range(2))):
        key = torch.randint(2**32, (2,), generator=source).tolist()
        pairs = [plain_philox([j, 1, 0, 0], key) for j in range(2)]
        for j, (w0, w1, w2, w3) in enumerate(pairs):
            for place, radius, angle, turn in (
                (j, w0, w1, math.cos),
                (j + 2, w0, w1, math.sin),
                (j + 4, w2, w3, math.cos),
                (j + 6, w2, w3, math.sin),
            ):
                if place < 7:
                    length = math.sqrt(-2 * math.log((radius + 1) / 2**32))
                    expected = length * turn(2 * math.pi * angle / 2**32)
                    assert float(drawn[i, place]) == pytest.approx(expected, abs=1e-5)


def test_step_noise_is_the_same_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls(indices: range) -> torch.Tensor:
        noise = runtime.step_noise((len(indices), 3, 30), runtime.generators(1, "sample", indices), "cpu")
        return torch.stack([noise(5) for _ in range(4)], 1)

    whole = calls(range(7))
    assert torch.equal(whole, torch.cat([calls(range(i, i + 1)) for i in range(7)]))
    # in portions of two images instead of many calls ahead
    monkeypatch.setattr(runtime, "PORTION_CPU", 50)
    assert torch.equal(whole, calls(range(7)))


def test_step_noise_is_standard_normal_and_independent() -> None:
    generators = runtime.generators(0, "sample", range(20))
    noise = runtime.StepNoise((20, 10_000), generators, "cpu")
    again = runtime.StepNoise((20, 10_000), generators, "cpu")
    x = torch.cat([noise(0), noise(0), again(0)]).double()  # 60 streams of 10,000
    for power, moment in enumerate((0, 1, 0, 3, 0, 15), 1):
        error = math.sqrt(math.prod(range(1, 2 * power, 2)) / x.numel())  # E x^2p = (2p - 1)!!
        assert abs(float(x.pow(power).mean()) - moment) < 4 * error
    # P(|x| > 2) and the correlation of any two streams
    assert float((x.abs() > 2).double().mean()) == pytest.approx(0.0455, abs=4 * 0.00027)
    correlation = torch.corrcoef(x) - torch.eye(60, dtype=torch.float64)
    assert correlation.abs().max() < 5 / math.sqrt(10_000)
    # and of neighbors within one
    assert abs(float((x[:, 1:] * x[:, :-1]).mean())) < 4 / math.sqrt(x.numel())


def test_step_noise_needs_a_generator_a_row() -> None:
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        runtime.step_noise((3, 4), runtime.generators(0, "sample", range(2)), "cpu")


def test_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    runtime.normal((4,), runtime.generator(0, "eval"))
    runtime.StepNoise((1, 4), runtime.generators(0, "eval", [0]), "cpu")(0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_and_absent_devices_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        runtime.choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no device 'cuda' on this machine"):
            runtime.choose_device("cuda")


def test_measuring_leaves_the_precision_as_it_was() -> None:
    cudnn: Any = torch.backends.cudnn
    matmul, convolution = torch.backends.cuda.matmul, cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision  # compiled graphs are guarded by them
    with runtime.measuring():
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
        assert torch.is_inference_mode_enabled()
    assert (matmul.fp32_precision, convolution.fp32_precision) == before
