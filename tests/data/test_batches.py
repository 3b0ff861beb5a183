import torch

from genssl.runtime import chunks, epoch_permutation


def test_an_order_is_a_permutation() -> None:
    found = epoch_permutation(0, 0, 1000)
    assert found.dtype == torch.int64
    assert torch.equal(found.sort().values, torch.arange(1000))


def test_an_order_depends_on_seed_and_epoch_alone() -> None:
    torch.manual_seed(1)
    first = epoch_permutation(3, 7, 100)
    torch.manual_seed(2)
    assert torch.equal(first, epoch_permutation(3, 7, 100))
    assert not torch.equal(first, epoch_permutation(3, 8, 100))
    assert not torch.equal(first, epoch_permutation(4, 7, 100))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    epoch_permutation(0, 0, 10)
    assert torch.equal(before, torch.get_rng_state())


def test_chunks_cover_every_row_once() -> None:
    assert [list(range(10))[rows] for rows in chunks(10, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [rows.stop for rows in chunks(10, 4)] == [4, 8, 10]
    assert list(chunks(0, 4)) == []
