import errno

import pytest

from genssl.errors import FAILED_RUN, WRONG_INPUT, UserError, explain


@pytest.mark.parametrize(
    ("number", "words", "code"),
    [
        (errno.ENOSPC, "disk is full", FAILED_RUN),
        (errno.EROFS, "no permission", FAILED_RUN),
        (errno.EACCES, "no permission", FAILED_RUN),
        (errno.ENOENT, "no such file", WRONG_INPUT),
        (errno.ENOTDIR, "check the path", WRONG_INPUT),
    ],
)
def test_failures_of_the_disk_are_explained(number: int, words: str, code: int) -> None:
    told = explain(OSError(number, "reason", "/some/file"))
    assert told is not None
    assert words in str(told)
    assert "/some/file" in str(told)
    assert told.code == code


def test_out_of_memory_is_explained() -> None:
    import torch

    for error in (
        torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 17 GB)"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ):  # fmt: skip
        told = explain(error)
        assert told is not None
        assert "--batch-size" in str(told)


def test_a_user_error_is_its_own_explanation_and_the_rest_has_none() -> None:
    error = UserError("x")
    assert explain(error) is error
    assert explain(ZeroDivisionError()) is None
