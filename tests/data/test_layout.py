import unicodedata

import pytest

from genssl.data.layout import lay_out, natural, part_name
from genssl.errors import UserError


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


def in_parts(*parts: str, classes: str = "AB") -> list[str]:
    return [f"{part}/{name}/1.png" for part in parts for name in classes]


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("training_set", "train"), ("TrainingSet", "train"), ("trainset", "train"), ("seg_train", "train"),
        ("train2017", "train"), ("train-images", "train"), ("TRAIN", "train"), ("train_val", "train"),
        ("test_set", "test"), ("testing data", "test"), ("PublicTest", "test"), ("seg_test", "test"),
        ("eval", "evaluation"), ("Evaluation", "evaluation"), ("holdout", "holdout"), ("hold-out", "holdout"),
        ("HeldOut", "holdout"), ("valid", "validation"), ("dev", "validation"), ("ValSet", "validation"),
        ("unlabeled", "unlabeled"), ("unlabelled", "unlabeled"), ("un-labelled", "unlabeled"),
        ("seg_pred", "unlabeled"),
        ("fold3", "fold"), ("k-fold_03", "fold"), ("fold", None), ("stretch", None), ("interval", None),
        ("contest", None), ("unfold4", None), ("train_test", None), ("cat", None), ("2", None),
    ],
)  # fmt: skip
def test_parts_are_known_by_many_names(folder: str, kind: str | None) -> None:
    part = part_name(folder)
    assert (part and part.kind) == kind
    assert part is None or part.rest == ""


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train", "eval"), ("train", "dev"), ("Train", "holdout"), ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"), ("asl_alphabet_train", "asl_alphabet_test"),
        ("train/images", "valid/images"), ("TrainData", "TestData"), ("train2017", "val2017"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("top", ["", "set/"])
def test_no_part_becomes_a_class(train: str, test: str, top: str) -> None:
    layout = lay_out(in_parts(top + train, top + test))
    assert layout.classes == ("A", "B")
    assert layout.parts["train"] == [(f"{top}{train}/A/1.png", 0), (f"{top}{train}/B/1.png", 1)]
    assert [name for name, _ in layout.parts["test"]] == in_parts(top + test)


def test_the_last_fold_is_the_test_part_unless_there_is_another() -> None:
    layout = lay_out(in_parts("fold1", "fold2", "fold10"))
    assert [name for name, _ in layout.parts["test"]] == in_parts("fold10")
    assert len(layout.parts["train"]) == 4
    assert layout.notes == ["the train part is fold1, fold2, the test part is fold10"]
    layout = lay_out(in_parts("fold1", "fold2", "test"))
    assert [name for name, _ in layout.parts["test"]] == in_parts("test")
    assert len(layout.parts["train"]) == 4


@pytest.mark.parametrize("others", [("test",), ()])
def test_unlabeled_images_are_left_out_and_counted(others: tuple[str, ...]) -> None:
    layout = lay_out([*in_parts("train", *others), "unlabeled/1.png", "unlabeled/2.png"])
    assert layout.classes == ("A", "B")
    assert layout.outside == ["unlabeled/1.png", "unlabeled/2.png"]
    assert set(layout.parts) == ({"train", "test"} if others else {"all"})
    assert layout.notes[0] == "left out, being neither train nor test: unlabeled (2 images)"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/1.png", "car/1.png", "bus/1.png"], "is train a part or a class.* bus, car; .*rename"),
        (["test/1.png", "val/2.png"], "is test, val a part or a class.* nothing else"),
        (in_parts("train", "other"), "is train a part or a class"),
        (in_parts("learn", "check"), r"check, learn have the same folders inside \(A, B\)"),
        (in_parts("2019", "2020", classes="A"), r"2019, 2020 have the same folders inside \(A\)"),
        ([*in_parts("site1", "site2"), "site2/C/1.png"], "site1, site2 have the same folders"),
        (["cat/train/1.png", "cat/test/1.png", "dog/train/1.png"], "train and test lie inside cat, dog"),
        ([*in_parts("set/train", "set/test"), "notes/1.png"], "train and test lie inside"),
        (in_parts("a_train", "a_test", "b_train", "b_test"), "several sets of parts"),
    ],
)
def test_what_cannot_be_told_is_asked(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lay_out(names)


@pytest.mark.parametrize(
    "names",
    [
        ["cat/images/1.png", "dog/images/1.png"],
        ["cat/young/1.png", "cat/old/1.png", "dog/old/1.png"],
        ["test tube/1.png", "freight train/1.png"],
    ],
)
def test_classes_may_have_folders_of_their_own(names: list[str]) -> None:
    assert lay_out(names).classes == tuple(sorted({name.split("/")[0] for name in names}))


def test_spellings_of_one_class_are_one() -> None:
    accents = [unicodedata.normalize(form, "caf\xe9") for form in ("NFC", "NFD")]
    folders = [*accents, "cat", "cat ", r"cat\xa0", "Cat", "dog"]
    layout = lay_out(f"{folder}/{i}.png" for i, folder in enumerate(folders))
    assert set(layout.classes) == {"Cat", accents[0], "cat", "dog"}
    counts = [label for _, label in layout.parts["all"]]
    assert sorted(counts.count(label) for label in set(counts)) == [1, 1, 2, 3]
    assert layout.notes[-1].startswith("classes that differ by case only: Cat and cat;")
    assert lay_out(["a/1.png", "A/1.png"]).notes == []  # letters


def test_test_classes_that_train_has_not_are_told_of() -> None:
    layout = lay_out([*in_parts("train"), *in_parts("test", classes="ab")])
    assert layout.notes[0] == "the test part has no labels: no class of train is called a, b"
