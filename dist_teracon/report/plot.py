"""Small plots as inline SVG: matplotlib draws, the page's style sheet colours.

Colours in the drawing are stand-ins that become CSS variables (`var(--ink)`), so that a figure follows the page from light to dark.
Text stays text, in the page's own font. The same numbers give the same bytes: no date, no random ids, no pyplot state, no user's
matplotlibrc.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from dist_teracon.errors import TeraconError
from dist_teracon.text import cells

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

SERIES = 8
OPEN_PANELS = 8

INK, MUTED, LINE, SOFT, ACCENT, BETTER, WORSE = (f"#0101{k:02x}" for k in range(1, 8))
_VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", SOFT: "soft", ACCENT: "accent", BETTER: "better", WORSE: "worse"}
_VARIABLES |= {f"#0102{k:02x}": f"s{k}" for k in range(SERIES)}

_DASHES = ("solid", (0, (5, 1.6)), (0, (1.4, 1.4)))
_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dist-teracon",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.linewidth": 1,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


@dataclass(frozen=True)
class Key:
    """An entry of a figure's legend, which the page sets as text: name, CSS colour variable and dash (0 solid, 1 dashed, 2 dotted)."""

    name: str
    variable: str
    dash: int = 0


@dataclass(frozen=True)
class Panel:
    """One drawing: its title and an inline `<svg>`; `width` is its natural width in CSS pixels."""

    title: str
    svg: str
    width: int


@dataclass(frozen=True)
class Figure:
    """What the page shows under one heading: panels that belong together, a legend and a caption.

    `wide` figures take the page's whole width; `open` ones are shown without a click.
    """

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[Key, ...] = ()
    wide: bool = False

    @property
    def open(self) -> bool:
        """Whether the figure is shown at once; many panels are folded up."""
        return len(self.panels) <= OPEN_PANELS


def series_colour(index: int) -> str:
    """Return the stand-in colour of the index-th series."""
    return f"#0102{index % SERIES:02x}"


def series_dash(index: int) -> str | tuple[int, tuple[float, float]]:
    """Return the line style of the index-th series; it changes when the colours start again."""
    return _DASHES[index // SERIES % len(_DASHES)]


def series_key(name: str, index: int) -> Key:
    """Return the legend's entry of the index-th series."""
    return Key(name, f"s{index % SERIES}", index // SERIES % len(_DASHES))


@contextmanager
def drawing() -> Iterator[None]:
    """Set matplotlib's style for the figures drawn inside, whatever the user's own is.

    Raises:
        TeraconError: matplotlib is not installed.
    """
    try:
        import matplotlib.style
    except ImportError:
        raise TeraconError("the report's figures need matplotlib; install it with: pip install 'dist-teracon[report]'") from None
    with matplotlib.style.context(["default", _STYLE]), warnings.catch_warnings():
        # The browser sets the text in its own fonts; signs that DejaVu lacks (Hangul, kanji) only make the estimate of a width rough.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@dataclass
class Plot:
    """One drawing under way: a context manager whose `panel()` gives the finished SVG.

    Args:
        width, height: Natural size in CSS pixels; the page scales a drawing down, never up.
        description: For screen readers.
    """

    width: int
    height: int
    description: str
    tips: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    axes: Axes = field(init=False)

    def __enter__(self) -> Plot:
        from matplotlib.figure import Figure as MplFigure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        # One drawing unit is 1/72 inch and becomes one CSS pixel.
        self._figure = MplFigure(figsize=(self.width / 72, self.height / 72), layout=ConstrainedLayoutEngine(w_pad=2 / 72, h_pad=3 / 72))
        self.axes = self._figure.subplots()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing to close: the figure belongs to no global state."""

    def tip(self, artist: Artist, text: str) -> None:
        """Show `text` when the pointer rests on an artist."""
        name = f"tip-{len(self.tips)}"
        artist.set_gid(name)
        self.tips[name] = text

    def rows(self, names: Sequence[str]) -> None:
        """Name the places 0, 1, … of the vertical axis."""
        self.axes.set_yticks(range(len(names)), [_stand_in(name) for name in names])
        self._restore(self.axes.get_yticklabels(), names)

    def columns(self, names: Sequence[str]) -> None:
        """Name the places 0, 1, … of the horizontal axis."""
        self.axes.set_xticks(range(len(names)), [_stand_in(name) for name in names])
        self._restore(self.axes.get_xticklabels(), names)

    def _restore(self, labels: Sequence[Artist], names: Sequence[str]) -> None:
        for label, name in zip(labels, names, strict=True):
            if _stand_in(name) != name:
                mark = f"text-{len(self.texts)}"
                label.set_gid(mark)
                self.texts[mark] = name

    def panel(self, title: str) -> Panel:
        """Render the drawing."""
        buffer = io.BytesIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        self._figure.savefig(buffer, format="svg", metadata=nothing)
        return Panel(title, _inline(buffer.getvalue(), self), self.width)


def _stand_in(text: str) -> str:
    """Return a text as wide as one with Hangul or kanji, which the font of the drawing does not have; the page has the real one."""
    return "".join("W" if cells(sign) == 2 else sign for sign in text)


def _inline(svg: bytes, plot: Plot) -> str:
    """Turn a stand-alone SVG into one that can stand in a page beside others: no names of its own, no style sheet, no addresses."""
    root = ET.fromstring(svg)
    for parent in root.iter():
        for child in [child for child in parent if child.tag in (f"{_SVG}style", f"{_SVG}metadata")]:
            parent.remove(child)
    referred = {
        match for element in root.iter() for value in element.attrib.values() for match in re.findall(r"^(?:url\()?#([\w-]+)", value)
    }
    salt = re.sub(r"\W+", "-", plot.description.encode("ascii", "ignore").decode())[:60]
    for element in list(root.iter()):  # titles are added on the way, and keep their text
        element.tag = element.tag.removeprefix(_SVG)
        tip = plot.tips.get(element.get("id", ""))
        if (real := plot.texts.get(element.get("id", ""))) is not None and (shown := element.find(f"{_SVG}text")) is not None:
            shown.text = real
        _clean(element, referred, salt)
        if element.tag != "text":
            element.text = None
        element.tail = None
        if tip is not None:
            title = ET.Element("title")
            title.text = tip
            element.insert(0, title)
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": plot.description}
    return ET.tostring(root, encoding="unicode")


def _clean(element: ET.Element, referred: set[str], salt: str) -> None:
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        if name == "id":
            if value in referred:
                element.set("id", f"{salt}-{value}")
        elif name == f"{_XLINK}href":
            element.set("href", value.replace("#", f"#{salt}-"))
        elif name == "style":
            element.set("style", _style(value))
        else:
            element.set(name, value.replace("url(#", f"url(#{salt}-"))


def _style(value: str) -> str:
    value = re.sub(r"#[0-9a-f]{6}", lambda match: f"var(--{_VARIABLES[match[0]]})" if match[0] in _VARIABLES else match[0], value)
    # Only size and weight stay of the font, whose family is the page's; older versions of matplotlib write the short form.
    value = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;]*", lambda font: f"font-size: {font[2]}px; font-weight: {font[1] or 400}", value)
    return re.sub(r"font-family: [^;]*;? ?", "", value)
