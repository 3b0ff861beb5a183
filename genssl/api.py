"""The Python interface: `genssl.train`, `genssl.evaluate` and `genssl.Run` are these.

They do what the commands do, under the same names, and return objects instead of printing. No torch until
something is trained or loaded.
"""

import functools
import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from genssl import config as configs
from genssl import files, hub, run_info, runs
from genssl.commands import downstream, generate, inpaint, purify
from genssl.commands import evaluate as evaluate_commands
from genssl.commands._console import collect_results, screen_here, with_channels
from genssl.environment import record_arguments
from genssl.errors import UserError
from genssl.settings import Config
from genssl.training.events import Event

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from genssl.eval.result import EvalResult
    from genssl.models.method import Method


class History(list[dict[str, Any]]):
    """The numbers of a run, one record per epoch: losses, measures, learning rate, seconds.

    Examples:
        >>> history = History([{"epoch": 1, "loss": 3.0}, {"epoch": 2, "loss": 2.0}])
        >>> [record["loss"] for record in history]
        [3.0, 2.0]
    """

    def to_pandas(self) -> "pandas.DataFrame":
        """The same as a table, one row per epoch.

        Raises:
            UserError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UserError("to_pandas needs pandas; `pip install pandas` brings it") from error
        return pandas.DataFrame.from_records(self).set_index("epoch")


@dataclass(frozen=True)
class Run:
    """A run folder: its settings, numbers and trained model.

    Examples:
        >>> run = Run.find("vae")
        >>> run.config.method
        'vae'
        >>> run.sample(4).shape
        torch.Size([4, 3, 32, 32])
    """

    path: Path

    @classmethod
    def find(cls, reference: str | Path) -> "Run":
        """The run of a REF: a path, a run's name, or a method's name (its newest run, finished ones first).

        Raises:
            UserError: there is none, or it is a model file without its folder.
        """
        return cls(runs.find_folder(str(reference)))

    @property
    def info(self) -> run_info.RunInfo:
        """What the weights say of themselves: settings, epochs, digests, last numbers."""
        return run_info.inspect(self.path)

    @property
    def config(self) -> Config:
        """The settings."""
        return self.info.config

    @property
    def state(self) -> run_info.State:
        """Whether all epochs are done, time ended the training, or something else did."""
        return self.info.state

    @property
    def history(self) -> History:
        """The numbers of each epoch; empty where weights came without them."""
        file = self.path / run_info.HISTORY
        return History(files.read_records(file) if file.exists() else ())

    @functools.cached_property
    def model(self) -> "Method":
        """The trained model in eval mode, without gradients, on the CPU; loaded once."""
        from genssl import checkpoint

        return checkpoint.load(self.path)

    def sample(self, n: int, **options: Any) -> "Tensor":
        """Samples of a generative model, float (n, C, H, W), about [-1, 1]; see `CanSample`."""
        from genssl.eval.result import require_ability
        from genssl.models.method import CanSample

        return require_ability(self.model, CanSample, "sample").sample(n, **options)

    def features(self, images: "Tensor") -> "Tensor":
        """Features (N, D) of images (N, C, H, W) in the model's range."""
        return self.model.features(images)

    def evaluate(self, name: str, **options: Any) -> "EvalResult":
        """Evaluate this run; see `genssl.evaluate`."""
        return evaluate(name, self.path, **options)

    def _repr_html_(self) -> str:
        """The state, the last numbers and the curves, for a notebook."""
        from genssl.eval.result import embedded, table_html

        info = self.info
        epochs = run_info.progress_of(info.epochs_trained, info.config.epochs)
        title = f"{info.name}, epoch {epochs}, {info.state}"
        curves = self.path / hub.CURVES
        picture = embedded(curves.read_bytes()) if curves.is_file() else ""
        return f"<h4>{html.escape(title)}</h4>{table_html(info.metrics)}{picture}"


def train(
    method: str,
    *,
    data: str | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    tag: str | None = None,
    max_minutes: float | None = None,
    auto_resume: bool = False,
    logger: str | Sequence[str] = (),
    progress: bool = True,
    callbacks: Sequence[Callable[[Event], None]] = (),
    **settings: Any,
) -> Run:
    """Train a method, as `genssl train` does; returns its run.

    Args:
        method: vae, ddpm, flow, simsiam, ...
        data: svhn, cifar10, synthetic, a folder, an archive, ...; default: the method's.
        device: auto, cpu, cuda, cuda:1 or mps.
        out: the run folder; default: a new one in checkpoints/.
        tag: suffix of the run's name.
        max_minutes: end the training cleanly after this many minutes.
        auto_resume: continue the run of these settings, if there is one.
        logger: where the epochs are logged, too: tensorboard, wandb, csv or mlflow, or several of them.
        progress: show progress: a bar in a terminal or a notebook.
        callbacks: called with each event of `genssl.training.events`, such as `EpochEnded(record)`.
        settings: any setting of the method (`epochs=70, z_dim=64`), as --set takes them.

    Raises:
        UserError: a setting is wrong, the data or device is missing, or the run was stopped.

    Examples:
        >>> run = train("vae", data="digits", epochs=1, width=8, progress=False)  # digits: a folder of images
        >>> [record["epoch"] for record in run.history]
        [1]
    """
    from genssl.commands.train import check
    from genssl.training import run
    from genssl.training.options import Options, checked_loggers

    named = {} if data is None else {"data": data}
    config = configs.make(method, {**named, **settings})
    options = Options(
        device=device, out=None if out is None else Path(out), tag=tag, max_minutes=max_minutes,
        auto_resume=auto_resume, loggers=checked_loggers([logger] if isinstance(logger, str) else logger),
    )  # fmt: skip
    runs.check_tag(tag)
    check(config, options)
    if "channels" not in settings:
        config = with_channels(config, quiet=not progress)
    with screen_here(quiet=not progress) as screen:
        return Run(run.start(config, options, _to_all((screen, *callbacks))))


def _to_all(listeners: Iterable[Callable[[Event], None]]) -> Callable[[Event], None]:
    def tell(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return tell


def evaluate(name: str, ref: str | Path | Run, **options: Any) -> "EvalResult":
    """Evaluate a run, as the command of this name does; files are written as by the command.

    Args:
        name: knn-eval, linear-eval, fidelity, reconstruct, interpolate, sample, latent-profile,
            importance-ll, bits-per-dim, inpaint, features, segment, probe, purify.
        ref: a method, the name or path of a run, or a `Run`.
        options: of the command, by their long names with `_` for `-`: `batch_size=64, k=[5, 20]`.

    Returns:
        The numbers (`values`), figures and notes; a notebook shows them.

    Raises:
        UserError: there is no such evaluation, option or run, or it cannot be evaluated so.

    Examples:
        >>> result = evaluate("sample", "vae", n=4, device="cpu")
        >>> result.values["images"]
        4
    """
    command = _evaluations().get(name.replace("_", "-"))
    if command is None:
        raise UserError(f"no evaluation {name!r}; there are {', '.join(_evaluations())}")
    reference = ref.path if isinstance(ref, Run) else ref
    words = [str(reference), *_arguments(command, options)]
    with record_arguments([command.name, *words]), collect_results() as results:
        try:
            command.main(words, prog_name=command.name, standalone_mode=False)
        except Exception as error:
            if not hasattr(error, "format_message"):
                raise
            raise UserError(str(error.format_message())) from error
    return results[-1]


@functools.cache
def _evaluations() -> Mapping[str, Any]:
    """The commands that evaluate a run, by name."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False)
    for group in (generate, inpaint, evaluate_commands, downstream, purify):
        group.register(app)
    program: Any = typer.main.get_command(app)
    return dict(program.commands)


def _arguments(command: Any, options: Mapping[str, Any]) -> list[str]:
    """Keyword arguments as the words of a command line.

    Raises:
        UserError: the command has no such option.
    """
    known = {
        parameter.name: parameter for parameter in command.params if parameter.param_type_name == "option"
    }
    known |= {longest(p.opts).lstrip("-").replace("-", "_"): p for p in known.values()}
    words: list[str] = []
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{command.name} has no option {name}; it has {', '.join(sorted(known))}")
        words += _words(known[name], value)
    return words


def longest(names: Sequence[str]) -> str:
    """The longest of an option's names."""
    return max(names, key=len)


def _words(option: Any, value: Any) -> list[str]:
    """One option with its value, once per item of a repeatable one; nothing for None."""
    if value is None:
        return []
    if option.is_flag:
        names = option.opts if value else option.secondary_opts
        return [longest(names)] if names else []
    items = value if isinstance(value, list | tuple) else [value]
    return [word for item in items for word in (longest(option.opts), str(item))]
