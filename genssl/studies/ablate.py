"""Ablations: runs that differ in named settings, trained, measured and compared.

torch is imported when something is trained: what cannot be ablated is said at once.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from genssl import checkpoint, files, paths, run_info, runs
from genssl import config as configs
from genssl.errors import FAILED_RUN, INTERRUPTED, TERMINATED, UserError
from genssl.eval.result import EvalResult
from genssl.settings import FROM_DATA, Config, differences
from genssl.studies.results import Arm, ArmRuns
from genssl.training.events import Listener, Note
from genssl.training.options import Options

LONGEST_TAG = 60  # characters of a run's name


def combinations(values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one value per setting, the last setting's values changing fastest.

    One value per setting gives one combination, and several values of one setting give one each.
    """
    if not values:
        return []
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def arms_of(baseline: Config, named: Mapping[str, Sequence[Any]], *settings: Mapping[str, Any]) -> list[Arm]:
    """The baseline, one arm for each value of each named setting, and one for each of `settings`.

    What equals the baseline is the baseline, and what is asked for twice is one arm.

    Args:
        baseline: the settings of the first arm.
        named: values by setting; each changes nothing but this setting.
        settings: changes that one arm makes together, as from `combinations`.

    Raises:
        UserError: the method lacks a setting, a value is wrong, or nothing would change.
    """
    asked = [{name: value} for name, values in named.items() for value in values]
    for change in asked:
        _require(baseline, *change)
    asked += [dict(change) for change in settings if change]
    first = "baseline"
    arms: list[Arm] = []
    for change in asked:
        changes = _changes(baseline, change)
        if not changes:
            first = f"{_label(_values(baseline, change))} (baseline)"
        elif changes not in [arm.changes for arm in arms]:
            arms.append(Arm(_label(changes), changes))
    if not arms:
        current = _label(_values(baseline, {name: None for change in asked for name in change}))
        raise UserError(f"nothing to ablate: {current or 'no change'} is the baseline; give another value")
    return [Arm(first, {}), *arms]


def own_settings(kind: type[Config]) -> list[str]:
    """The settings that a method has beyond those of every method, and that the data do not decide."""
    return [name for name in kind.model_fields if name not in {*Config.model_fields, *FROM_DATA}]


def untrained(baseline: Config, arms: Sequence[Arm], seeds: int) -> list[Config]:
    """The settings of every run of a study that is not at its end yet, begun or not."""
    changed = [baseline.updated(arm.changes) for arm in arms]
    configs = [config.updated({"seed": config.seed + i}) for config in changed for i in range(seeds)]
    result = [(config, find_run(config)) for config in configs]
    return [config for config, run_of in result if run_of is None or not run_of.complete]


def ablate(
    baseline: Config, arms: Sequence[Arm], options: Options, listen: Listener, seeds: int = 1
) -> EvalResult:
    """Train what is not trained yet, measure what is not measured yet, and compare.

    An arm that was trained to its end before, by whatever command, is taken as it is, and so is one that its
    time limit ended, unless this limit is longer. A run that was cut short is resumed: the same call
    continues a study that was stopped at any moment. A run that was trained on other images than its data
    have now is left as it is, and the arm is trained again.

    Args:
        baseline: the settings of the first arm.
        arms: as from `arms_of`, the baseline first.
        options: how the runs are carried out; tag and out are chosen here.
        listen: called with events, among them which arm is being trained.
        seeds: each arm is repeated with the seed, the seed + 1, ...

    Raises:
        UserError: the data of a run cannot be read (no run is started then), a run was stopped, or none came
            to its end.
    """
    from genssl.studies.compare import compare_arms

    digests = _require_data(baseline, arms, options, listen, seeds)
    results = [
        _run_arm(baseline, arm, f"arm {i} of {len(arms)}: {arm.name}", options, listen, seeds, digests)
        for i, arm in enumerate(arms, 1)
    ]
    if not any(result.runs for result in results):
        raise UserError(f"no arm came to its end: {results[0].failures[0]}", FAILED_RUN)
    return compare_arms(baseline, results)


def _require_data(
    baseline: Config, arms: Sequence[Arm], options: Options, listen: Listener, seeds: int
) -> dict[Config, str]:
    """Load the data of all runs that are not trained and measured yet, before the first of them starts.

    Returns:
        The digests of the train splits of settings that were trained before; none where no data are needed.
    """
    from genssl.runtime import choose_device
    from genssl.studies.measures import unmeasured
    from genssl.training.splits import load_splits, require_data

    device = choose_device(options.device)

    def needs_data(config: Config) -> bool:
        known = find_run(config)
        if known is None or not known.complete:
            return True
        return bool(unmeasured([known.folder], device))

    wanted = [config for arm in arms for config in _configs(baseline, arm, seeds)]
    needed = list(filter(needs_data, wanted))
    require_data(needed, listen)
    if not needed:
        return {}
    digests = {config: load_splits(config, listen)[0].digest for config in wanted if find_run(config)}
    for config, digest in digests.items():
        known = find_run(config)
        if known is not None and known != find_run(config, digest):
            listen(Note(f"{known.folder} is not used: it was trained on other images than {config.data} has"))
    return digests


def _configs(baseline: Config, arm: Arm, seeds: int) -> list[Config]:
    """The settings of an arm's runs, one per seed."""
    changed = baseline.updated(arm.changes)
    return [changed.updated({"seed": changed.seed + count}) for count in range(seeds)]


def _run_arm(
    baseline: Config,
    arm: Arm,
    title: str,
    options: Options,
    listen: Listener,
    seeds: int,
    digests: Mapping[Config, str],
) -> ArmRuns:
    """All seeds of one arm. A loss that breaks down is a result too: it is told, and the study goes on."""
    from genssl.runtime import choose_device
    from genssl.studies.measures import measured

    runs, failures = [], []
    for count, config in enumerate(_configs(baseline, arm, seeds)):
        listen(Note(title if seeds == 1 else f"{title}, seed {config.seed} ({count + 1} of {seeds})"))
        try:
            folder = _train(config, _tag(arm, count), options, listen, digests.get(config))
        except UserError as error:
            if error.code != FAILED_RUN:
                raise
            listen(Note(f"{arm.name} failed: {error}"))
            failures.append(f"seed {config.seed}: {error}")
            continue
        runs.append(measured(folder, choose_device(options.device), listen))
    return ArmRuns(arm, runs, failures)


def _train(config: Config, tag: str, options: Options, listen: Listener, digest: str | None = None) -> Path:
    """The folder of a run of `config`: one that is done, one that is resumed, or a new one."""
    from genssl.training import run

    result = find_run(config, digest)
    if result is not None and (result.complete or _had_its_time(result.folder, options.max_minutes)):
        listen(Note(f"already trained: {result.folder}"))
        return result.folder
    try:
        if result is None:
            return run.start(config, replace(options, tag=tag, out=None, arm=True), listen)
        return run.resume(result.folder, {}, replace(options, tag=None, out=None), listen)
    except UserError as error:
        if error.code in {INTERRUPTED, TERMINATED}:
            raise UserError(f"{error}; the same ablate command continues the study", error.code) from error
        raise


@dataclass(frozen=True)
class Found:
    """A run of the settings looked for; `complete`: all its epochs are done."""

    folder: Path
    complete: bool


def find_run(config: Config, digest: str | None = None) -> Found | None:
    """The run with exactly these settings that came furthest, the newest of them; arms included.

    Args:
        config: the settings.
        digest: of the train split; runs that recorded another one are left out.
    """
    same = [info for info in runs.known(config.method, arms=True) if not differences(info.config, config)]
    if digest is not None:
        same = [info for info in same if run_info.trained_digest(info.folder) in {None, digest}]
    if same:
        best = max(reversed(same), key=lambda info: (info.epoch, info.finished))
        return Found(best.folder, best.finished and best.epoch >= config.epochs)
    files = [file for parent in paths.parents(arms=True) for file in parent.glob(f"*/{run_info.CONFIG}")]
    files.sort(key=lambda file: file.stat().st_mtime)
    unsaved = [file.parent for file in files if _is_unsaved(file, config)]
    return Found(unsaved[-1], complete=False) if unsaved else None


def _had_its_time(folder: Path, max_minutes: float | None) -> bool:
    """Whether a run was ended by a time limit that was no shorter than this one."""
    if max_minutes is None or not (folder / run_info.MODEL).exists():
        return False
    return run_info.inspect(folder).finished and checkpoint.trained_seconds(folder) >= 60 * max_minutes


def _is_unsaved(file: Path, config: Config) -> bool:
    """Whether a run of `config` was cut short before its first saved state."""
    if (file.parent / run_info.MODEL).exists():
        return False
    try:
        return not differences(configs.read(files.read_text(file), str(file)), config)
    except UserError:
        return False


def _require(baseline: Config, setting: str) -> None:
    if setting in type(baseline).model_fields:
        return
    method, known = baseline.method, configs.methods()
    owners = [name for name, kind in known.items() if setting in kind.model_fields]
    whose = f" (that is for {', '.join(owners)})" if owners else ""
    current = ", ".join(own_settings(type(baseline)))
    raise UserError(f"a {method} has no {setting}{whose}; --set ablates its own settings: {current}")


def _changes(baseline: Config, change: Mapping[str, Any]) -> dict[str, Any]:
    """What of `change` differs from the baseline, validated."""
    changed = differences(baseline, baseline.updated(change))
    return {name: after for name, (_, after) in changed.items()}


def _values(baseline: Config, names: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(baseline, name) for name in names}


def _label(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items())


def arm_name(baseline: Config, changes: Mapping[str, Any]) -> str:
    """The name of the run that `ablate` makes of an arm, where there is no other run of that name."""
    changes = _changes(baseline, changes)
    return runs.run_name(baseline.updated(changes), _tag(Arm(_label(changes), changes), 0))


def _tag(arm: Arm, count: int) -> str:
    tag = _label(arm.changes)[:LONGEST_TAG] if arm.changes else "baseline"
    return tag if count == 0 else f"{tag}-seed+{count}"
