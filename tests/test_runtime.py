import pytest
import torch

from genssl import runtime
from genssl.errors import UserError


def test_stream_keys_never_change() -> None:
    # A stored run resumes with these: a changed value would break every run on disk
    assert runtime.seed_of(0, "order", 0) == 5617314440832320419


def test_streams_differ() -> None:
    keys = {runtime.seed_of(s, name, c) for s in range(3) for name in ("order", "views") for c in range(5)}
    assert len(keys) == 30


@pytest.mark.parametrize("draw", [runtime.normal, runtime.uniform])
def test_image_i_depends_on_seed_and_i_alone(draw: object) -> None:
    whole = draw((7, 3, 5), runtime.generators(1, "sample", range(7)))
    parts = [draw((1, 3, 5), runtime.generators(1, "sample", [i])) for i in range(7)]
    assert torch.equal(whole, torch.cat(parts))


def test_wrong_number_of_generators_is_refused() -> None:
    with pytest.raises(ValueError, match="2 generators for 3 rows"):
        runtime.normal((3, 4), runtime.generators(0, "sample", range(2)))


def test_global_generator_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    runtime.normal((4,), runtime.generator(0, "eval"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_and_absent_devices_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        runtime.choose_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no device 'cuda' on this machine"):
            runtime.choose_device("cuda")


def test_measuring_leaves_the_precision_as_it_was() -> None:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, convolution.fp32_precision  # compiled graphs are guarded by them
    with runtime.measuring():
        assert (matmul.fp32_precision, convolution.fp32_precision) == ("ieee", "ieee")
        assert torch.is_inference_mode_enabled()
    assert (matmul.fp32_precision, convolution.fp32_precision) == before
