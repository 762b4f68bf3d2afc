"""Small screens above the monitor: the keys, a question, a filter, and what can be queued."""

from collections.abc import Sequence

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui.text import BOLD, CYAN, DIM, PLAIN, RED, parts, safe

CLOSE = Binding("escape,q", "dismiss", "close")
SIGNS = (
    "▶ running  · queued  ✓ done  ✗ failed  ○ cancelled  ! blocked by another",
    "▲ better  ▼ worse  · as it was, against the base",
    "runner LIVE, STALE (silent), LOST (killed; jobs go on, another is started), PAUSED, STOPPED",
)


class Box(ModalScreen):
    """Text in a frame; esc closes it. Arrows scroll."""

    BINDINGS = [CLOSE]

    def __init__(self, lines: Sequence[Content], small: bool = False) -> None:
        super().__init__()
        self._lines, self._small = lines, small

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box small" if self._small else "box"):
            yield Static(Content("\n").join(self._lines))


class Help(Box):
    """Every key of the monitor, from its own bindings."""

    BINDINGS = [Binding("question_mark", "dismiss", "close")]

    def __init__(self, bindings: Sequence[Binding]) -> None:
        keys: dict[str, list[str]] = {}
        for binding in bindings:
            shown = binding.key if binding.key_display is None else binding.key_display
            keys.setdefault(binding.description, []).append(shown)
        rows = [parts((f"{' '.join(names).strip():<11}", CYAN + BOLD), words) for words, names in keys.items()]
        super().__init__([*rows, *(Content.styled(text, DIM) for text in SIGNS)])


class Confirm(ModalScreen[bool]):
    """A question whose answer costs something. The text may hold names from anywhere."""

    BINDINGS = [Binding("y", "dismiss(True)", "yes"), Binding("n,escape,q", "dismiss(False)", "no")]

    def __init__(self, question: str, what: str) -> None:
        super().__init__()
        self._question, self._what = question, what

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box small"):
            yield Static(safe(self._question, BOLD))
            yield Static(parts("\n", safe(self._what), "\n"))
            yield Static(parts(("y", CYAN + BOLD), " yes, cancel it   ", ("n", CYAN + BOLD), " no, let it go on"))


class Filter(ModalScreen[str]):
    """A line at the foot: the jobs shown are those that hold all its words."""

    BINDINGS = [Binding("escape", "dismiss('')", "show all")]

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Input(self._text, placeholder="words of run, phase or state, then enter; esc shows all", id="filter")

    def on_input_submitted(self, message: Input.Submitted) -> None:
        self.dismiss(message.value.strip())


class QueueMenu(ModalScreen[tuple]):
    """What to queue. Dismisses with (kind, phase) for the form."""

    CHOICES = (
        ("1", "phase 1", ("phase", "1")),
        ("2", "phase 2, on top of a run's phase 1", ("phase", "2")),
        ("3", "phase 3, on top of a run's phase 2", ("phase", "3")),
        ("a", "all phases of a config, with evaluations", ("pipeline", None)),
        ("e", "evaluate a checkpoint", ("evaluate", None)),
        ("f", "Fisher of a checkpoint, for what trains on from it", ("fisher", None)),
    )
    BINDINGS = [
        *(Binding(key, f"choose({place})", words) for place, (key, words, _) in enumerate(CHOICES)),
        Binding("down,j", "move(1)", "next"),
        Binding("up,k", "move(-1)", "previous"),
        Binding("enter", "take", "take"),
        CLOSE,
    ]
    place = 3

    def compose(self) -> ComposeResult:
        with VerticalScroll(classes="box small"):
            yield Static(id="choices")

    def on_mount(self) -> None:
        self._draw()

    def _draw(self) -> None:
        rows = [
            parts(
                ("▶ " if place == self.place else "  ", CYAN),
                (key, CYAN + BOLD),
                (f"  {words}", BOLD if place == self.place else PLAIN),
            )
            for place, (key, words, _) in enumerate(self.CHOICES)
        ]
        hint = Content.styled("A form follows that shows what would run. esc closes.", DIM)
        self.query_one("#choices", Static).update(
            Content("\n").join([Content.styled("Queue", BOLD), Content(""), *rows, Content(""), hint])
        )

    def action_move(self, step: int) -> None:
        self.place = (self.place + step) % len(self.CHOICES)
        self._draw()

    def action_choose(self, place: int) -> None:
        self.dismiss(self.CHOICES[place][2])

    def action_take(self) -> None:
        self.action_choose(self.place)


def problem(lines: Sequence[str]) -> list[Content]:
    """The lines of an error, each with its sign."""
    return [parts(("✗ ", RED), safe(line)) for line in lines]
