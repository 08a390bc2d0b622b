"""How a strategy is written, read and registered: NAME or NAME:ARGUMENT in one flat parameter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from finetune.models.layers import LayerStack


@dataclass(frozen=True)
class Moment:
    """Where training stands. `step` optimizer steps are done; `epoch` (from 1) is under way or about to begin."""

    epoch: int
    step: int
    total_epochs: int
    total_steps: int
    seed: int
    gradient_norms: tuple[Mapping[str, float], ...] = ()


@dataclass(frozen=True)
class Limits:
    """What an argument is checked against."""

    num_layers: int
    total_epochs: int


Reader = Callable[[str, Limits], tuple]  # raises ValueError saying what is allowed
Rule = Callable[..., frozenset[str]]


@dataclass(frozen=True)
class Form:
    """One entry of the language. The rule is called with (stack, moment, *arguments)."""

    syntax: str  # e.g. prefix:k
    example: str
    doc: str
    source: str
    rule: Rule
    reader: Reader | None
    phase: Callable[..., Hashable] | None  # (moment, *arguments) -> a value that changes when the plan may change
    depth: Callable[..., int] | None  # (limits, *arguments) -> the freeze_depth that it is the same as
    adapt: Callable[..., LayerStack] | None  # (stack, seed, *arguments) -> the stack of the changed model
    needs_gradient_norms: bool
    period: Callable[..., int] | None  # (*arguments) -> optimizer steps between two plans, where they are that short

    @property
    def name(self) -> str:
        return self.syntax.partition(":")[0]

    def read(self, argument: str | None, limits: Limits) -> tuple:
        """The arguments. Raises ValueError saying what is allowed."""
        if self.reader is None:
            if argument is not None:
                raise ValueError(f"{self.name} takes no argument")
            return ()
        if not argument:
            raise ValueError("an argument is missing")
        return self.reader(argument, limits)


FORMS: dict[str, Form] = {}


def strategy(
    syntax: str, example: str, doc: str, source: str, *, reads: Reader | None = None,
    phase: Callable[..., Hashable] | None = None, depth: Callable[..., int] | None = None,
    adapt: Callable[..., Any] | None = None, needs_gradient_norms: bool = False,
    period: Callable[..., int] | None = None,
) -> Callable[[Rule], Rule]:
    """Register the function below as a strategy. It returns the names of the backbone's parameters that train."""

    def register(rule: Rule) -> Rule:
        form = Form(syntax, example, doc, source, rule, reads, phase, depth, adapt, needs_gradient_norms, period)
        FORMS[form.name] = form
        return rule

    return register


def parse(text: str, limits: Limits) -> tuple[Form, tuple]:
    """The form and its arguments. Raises ConfigError with what is allowed, the nearest name and examples."""
    name, colon, argument = text.strip().partition(":")
    form = FORMS.get(name.strip())
    if form is None:
        examples = [form.example for form in FORMS.values()]
        near = did_you_mean(text, examples) or did_you_mean(name, FORMS)
        raise ConfigError([Problem("strategy", text, f"no such strategy{near} (examples: {', '.join(examples)})")])
    try:
        return form, form.read(argument.strip() if colon else None, limits)
    except ValueError as error:
        raise ConfigError([Problem("strategy", text, f"{form.syntax}: {error} (example: {form.example})")]) from error


def spell(form: Form, arguments: tuple) -> str:
    """The canonical spelling: the syntax with its letters replaced."""
    if not arguments:
        return form.name
    separator = next((mark for mark in "/-" if mark in form.syntax.partition(":")[2]), "")
    return f"{form.name}:{separator.join(map(str, arguments))}"


# Readers of arguments.

def whole_number(text: str, low: int, high: int | None, what: str) -> int:
    """Raises ValueError outside low..high."""
    allowed = f"{what} from {low} to {high}" if high is not None else f"{what} of at least {low}"
    if not (text.isascii() and text.isdigit()) or int(text) < low or (high is not None and int(text) > high):
        raise ValueError(f"allowed is a number of {allowed}")
    return int(text)


def reads_layers(low: int) -> Reader:
    """A number of layers, low..L."""

    def read(text: str, limits: Limits) -> tuple[int]:
        try:
            return (whole_number(text, low, limits.num_layers, "layers"),)
        except ValueError as error:
            raise ValueError(f"{error}, the model has {limits.num_layers} layers") from None

    return read


def reads_layer_range(text: str, limits: Limits) -> tuple[int, int]:
    """FIRST-LAST or one layer, counted from 0."""
    first, dash, last = text.partition("-")
    try:
        low = whole_number(first.strip(), 0, limits.num_layers - 1, "layers")
        high = whole_number(last.strip(), low, limits.num_layers - 1, "layers") if dash else low
    except ValueError:
        raise ValueError(f"allowed is FIRST-LAST with layers 0 to {limits.num_layers - 1}") from None
    return low, high


def reads_epochs_before_the_last(text: str, limits: Limits) -> tuple[int]:
    """A number of epochs that leaves at least one."""
    if limits.total_epochs < 2:
        raise ValueError("it has two phases and needs num_train_epochs of at least 2")
    try:
        return (whole_number(text, 1, limits.total_epochs - 1, "epochs"),)
    except ValueError as error:
        raise ValueError(f"{error}, num_train_epochs is {limits.total_epochs}") from None


def reads_epochs(text: str, limits: Limits) -> tuple[int]:
    return (whole_number(text, 1, None, "epochs"),)


def reads_draw(text: str, limits: Limits) -> tuple[int, int]:
    """LAYERS/STEPS."""
    layers, slash, steps = text.partition("/")
    if not slash:
        raise ValueError("allowed is LAYERS/STEPS")
    return (whole_number(layers.strip(), 1, limits.num_layers, "layers"),
            whole_number(steps.strip(), 1, None, "steps"))


def reads_percentile(text: str, limits: Limits) -> tuple[int]:
    return (whole_number(text, 1, 99, "percent"),)


def reads_rank(text: str, limits: Limits) -> tuple[int]:
    return (whole_number(text, 1, 4096, "ranks"),)


def reads_pattern(text: str, limits: Limits) -> tuple[str]:
    return (text,)
