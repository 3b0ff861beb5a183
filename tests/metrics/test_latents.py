import torch

from genssl.metrics.latents import active_units, class_profile
from genssl.runtime import generator


def test_profile_agrees_with_one_class_at_a_time() -> None:
    source = generator(0, "test")
    codes = torch.randn(90, 4, generator=source).double()
    labels = torch.randint(0, 3, (90,), generator=source)
    profile = class_profile(codes, labels, 4)
    for place in range(3):
        own = codes[labels == place]
        torch.testing.assert_close(profile.means[place], own.mean(0))
        torch.testing.assert_close(profile.stds[place], own.std(0, correction=0))
    assert profile.counts.tolist() == [*torch.bincount(labels).tolist(), 0]
    assert torch.equal(profile.means[3], torch.zeros(4).double())


def test_separation_finds_the_dimension_that_tells() -> None:
    source = generator(0, "test")
    labels = torch.arange(5).repeat(40)
    codes = torch.randn(200, 3, generator=source)
    codes[:, 1] += 3 * labels
    assert int(class_profile(codes, labels, 5).separation.argmax()) == 1


def test_total_variance_is_between_plus_within() -> None:
    source = generator(0, "test")
    codes = torch.randn(60, 2, generator=source).double()
    labels = torch.randint(0, 4, (60,), generator=source)
    profile = class_profile(codes, labels, 4)
    share = (profile.counts / 60)[:, None]
    within = (share * profile.stds.square()).sum(0)
    total = codes.var(0, correction=0)
    torch.testing.assert_close(profile.separation, (total - within) / within)


def test_active_units_counts_dimensions_that_move() -> None:
    codes = torch.randn(500, 3, generator=generator(0, "test")) * torch.tensor([1.0, 0.05, 0.3])
    assert active_units(codes) == 2
