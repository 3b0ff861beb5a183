"""The figures that are not the assignment's."""

from pathlib import Path

from genssl.report import commands, findings, studies, tables, words
from genssl.report.disk import Found, Record, Run, Study
from genssl.report.parts import Plate
from genssl.report.pictures import embed

OF_TRAINING = ("curves", "wall-clock", "samples-over-epochs", "reconstructions-over-epochs")
TITLES = {
    "curves": "training curves",
    "wall-clock": "wall clock of training",
    "samples-over-epochs": "samples while training",
    "reconstructions-over-epochs": "reconstructions while training",
    "sample": "samples",
    "latent-profile": "mean latent code of each class",
    "interpolate": "interpolation",
    "noise-levels": "reconstructions from noise",
    "reconstruct": "reconstructions of test images",
    "importance-ll": "log-likelihood over the number of importance samples",
    "bits-per-dim": "bits/dim by noise level",
    "knn-eval": "nearest neighbours: confusion of classes",
    "linear-eval": "linear classifier",
    "fidelity": "samples beside their nearest training images",
    "ablate-samples": "samples, as a study took them",
}
KEPT = {"ablate", "compare-fidelity", "compare-samples"}  # by studies, whose own figures show them
GRIDS = {"sample", "interpolate", "reconstruct", "ablate-samples", "fidelity", *OF_TRAINING[2:]}


def draw(found: Found, taken: set[Path]) -> list[tuple[str, list[Plate]]]:
    """By whose they are: every picture that is not taken yet."""
    groups = [(run.name, _of_run(run, found, taken)) for run in found.runs]
    groups += [(study.folder.name, _of_study(study, found, taken)) for study in found.studies]
    return [(name, plates) for name, plates in groups if plates]


def _of_run(run: Run, found: Found, taken: set[Path]) -> list[Plate]:
    files = [run.folder / f"{name}.png" for name in OF_TRAINING]
    files += sorted((run.folder / "eval").glob("*.png"))
    plates = [_of_file(file, run, found) for file in files if file not in taken and file.stem not in KEPT]
    # Numbers without a picture have a place, too; what studies keep is in the tables
    alone = [name for name in run.evaluations if not (run.folder / "eval" / f"{name}.png").exists()]
    plates += [_plate(name, run, found, None) for name in alone if name not in KEPT]
    return [plate for plate in plates if plate is not None]


def _of_file(file: Path, run: Run, found: Found) -> Plate | None:
    return _plate(file.stem, run, found, file) if file.is_file() else None


def _plate(name: str, run: Run, found: Found, file: Path | None) -> Plate | None:
    """A picture of a run, with its numbers and its command; None where it cannot be read."""
    kind = name if name in TITLES else commands.kind_of(name)
    title = TITLES.get(kind, words.of_name(kind))
    variant = name.removeprefix(kind).removeprefix("-").replace("-", " ")
    title = f"{title} ({variant})" if variant else title
    alt = f"{title}, of the run {run.name}"
    picture = embed(file, alt, found.problems, grid=kind in GRIDS) if file else None
    values = run.evaluations.get(name, {})
    if picture is None and (file is not None or not values):
        return None
    of_training = name in OF_TRAINING
    made = commands.recorded(values or _first_of(run, name))
    usual = "" if made or of_training else commands.evaluation(run, name)
    return Plate(
        anchor=f"{run.name}-{name}",
        label="",
        title=title,
        source=run.name,
        shipped=run.shipped or "",
        picture=picture,
        numbers=[]
        if of_training
        else findings.of_evaluation(name, values),  # those of runs come first of all
        notes=[] if kind in tables.KINDS else findings.notes_of(run, values),
        command=made,
        usual=[usual] if usual else [],
    )


def _first_of(run: Run, name: str) -> Record:
    """The numbers of the evaluation whose further picture this is: knn-eval of knn-eval-neighbours."""
    owners = [each for each in run.evaluations if name.startswith(f"{each}-")]
    return run.evaluations[max(owners, key=len)] if owners else {}


def _of_study(study: Study, found: Found, taken: set[Path]) -> list[Plate]:
    """All its sides in one figure, and what a comparison draws beside it.

    Of an ablation that the assignment's figures have taken from, they show it all.
    """
    if taken.intersection(study.pictures.values()):
        return []
    main = study.pictures.get(study.kind)
    plates = [_whole(study, found, main)]
    for name, file in study.pictures.items():
        if study.kind == "compare" and file != main:
            title = words.of_name(name.removeprefix(f"{study.kind}-"))
            picture = embed(file, f"{title}, of {study.folder.name}", found.problems)
            if picture is not None:
                anchor = f"{study.folder.name}-{name}"
                plates.append(Plate(anchor, "", title, source=study.folder.name, picture=picture))
    return plates


def _whole(study: Study, found: Found, file: Path | None) -> Plate:
    alt = f"{study.kind}: all sides of {study.folder.name}"
    made = commands.recorded(study.values)
    usual = "" if made else commands.study(study)
    return Plate(
        anchor=study.folder.name,
        label="",
        title="an ablation" if study.kind == "ablate" else "a comparison",
        source=study.folder.name,
        picture=embed(file, alt, found.problems) if file else None,
        numbers=studies.origin(study),
        table=studies.table(studies.arms(study), study.kind),
        notes=[*studies.verdicts(studies.arms(study)), *studies.notes(study)],
        command=made,
        usual=[usual] if usual else [],
    )
