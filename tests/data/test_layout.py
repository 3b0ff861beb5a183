import pytest

from genssl.data.image_folder import lay_out, natural


def test_numbers_are_ordered_by_value_and_words_by_letter() -> None:
    assert natural(["10", "9", "1"]) == ("1", "9", "10")
    assert natural(["10", "9", "b"]) == ("10", "9", "b")


@pytest.mark.parametrize("top", ["", "svhn/", "a/b/"])
@pytest.mark.parametrize("test", ["test", "Test", "testing", "val", "valid", "validation"])
def test_parts_and_classes_under_a_top_folder_or_not(top: str, test: str) -> None:
    names = [f"{top}{part}/{name}/1.png" for part in ("train", test) for name in ("dog", "cat")]
    layout = lay_out(names)
    assert layout.classes == ("cat", "dog")
    assert layout.parts["train"] == [(f"{top}train/cat/1.png", 0), (f"{top}train/dog/1.png", 1)]
    assert layout.parts["test"] == [(f"{top}{test}/cat/1.png", 0), (f"{top}{test}/dog/1.png", 1)]
    assert layout.outside == []


def test_test_is_preferred_to_validation() -> None:
    layout = lay_out(["train/a/1.png", "test/a/2.png", "val/a/3.png"])
    assert layout.parts == {"train": [("train/a/1.png", 0)], "test": [("test/a/2.png", 0)]}
    assert layout.outside == ["val/a/3.png"]


def test_another_folder_beside_the_parts_is_no_class() -> None:
    layout = lay_out(["train/a/1.png", "test/a/2.png", "extra/a/3.png"])
    assert layout.classes == ("a",)
    assert layout.outside == ["extra/a/3.png"]


@pytest.mark.parametrize("top", ["", "pets/", "train/"])
def test_classes_alone(top: str) -> None:
    layout = lay_out([f"{top}dog/1.png", f"{top}cat/2.png", f"{top}cat/deep/1.png"])
    assert layout.classes == ("cat", "dog")
    assert [label for _, label in layout.parts["all"]] == [0, 0, 1]


@pytest.mark.parametrize("top", ["", "photos/"])
def test_images_alone(top: str) -> None:
    layout = lay_out([f"{top}2.png", f"{top}1.png"])
    assert layout.parts == {"all": [(f"{top}1.png", None), (f"{top}2.png", None)]}
    assert layout.classes == ()


def test_parts_without_classes() -> None:
    layout = lay_out(["train/1.png", "test/2.png"])
    assert layout.parts == {"train": [("train/1.png", None)], "test": [("test/2.png", None)]}


def test_images_beside_the_classes_are_outside() -> None:
    layout = lay_out(["logo.png", "set/train/a/1.png", "set/test/a/2.png", "set/train/b.png"])
    assert layout.outside == ["logo.png", "set/train/b.png"]
    assert layout.parts["train"] == [("set/train/a/1.png", 0)]


def test_a_folder_beside_more_images_is_no_class() -> None:
    layout = lay_out(["1.png", "2.png", "3.png", "more/4.png"])
    assert layout.parts == {"all": [(name, None) for name in ("1.png", "2.png", "3.png", "more/4.png")]}
    assert layout.outside == []


def test_images_are_ordered_by_class_and_name() -> None:
    layout = lay_out(["10/a.png", "9/b.png", "9/a.png"])
    assert layout.parts["all"] == [("9/a.png", 0), ("9/b.png", 0), ("10/a.png", 1)]


def test_a_test_folder_of_foreign_classes_has_no_labels() -> None:
    layout = lay_out(["train/a/1.png", "train/b/1.png", "val/images/1.png"])
    assert layout.classes == ("a", "b")
    assert layout.parts["test"] == [("val/images/1.png", None)]


def test_classes_of_both_parts_have_the_same_labels() -> None:
    layout = lay_out(["train/b/1.png", "test/a/1.png", "test/b/1.png"])
    assert layout.classes == ("a", "b")
    assert layout.parts["train"] == [("train/b/1.png", 1)]
