"""search.html: what a search did, from the files in its folder; one page without script, light and dark, wide and narrow.

Beside policy.json it reads, where they are there: history.json (numbers epoch by epoch), effects.json (what the trial
said of each operation), verdict.json (the candidates against the fixed policies) and proposal.json.
"""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Policy
from dada_det.errors import UserError
from dada_det.files import read_json, write_json, write_text
from dada_det.report.policy_page import SIDE, data_uri
from dada_det.report.policy_picture import before_and_after
from dada_det.report.policy_style import STYLE

HISTORY, PAGE = "history.json", "search.html"
QUANTITIES = {"preference": "the share of images whose sub-policy holds the operation",
              "probability": "how often it then acts, weighted by preference",
              "strength": "its magnitude in 0..1, weighted by preference"}
GRID_ROWS = 6
UNIT = "nats of calibrated cross-entropy less"  # where a file does not say it
MOST_ROWS = 60  # of a table, whatever the file holds
MORE_STYLE = """
.curves { width: 100%; table-layout: fixed; }
.curves th:first-child { width: 92px; }
.curves td, .curves tbody th { padding: 3px 20px 3px 0; vertical-align: middle; border-bottom: 1px solid var(--line);
  font-size: 13px; text-align: left; font-weight: 400; }
.curves thead th { font-size: 13px; text-align: left; padding: 4px 6px 4px 0; }
.curves td svg { width: calc(100% - 40px); height: 26px; display: inline-block; vertical-align: middle; max-width: none; }
.curves td data { float: right; }
svg polyline { fill: none; stroke: var(--heat); stroke-width: 1.5; vector-effect: non-scaling-stroke; }
svg .whisker { stroke: var(--heat); stroke-width: 2; }
svg .mark { stroke: var(--heat); stroke-width: 5; }
svg .whisker, svg .mark, svg .zero { vector-effect: non-scaling-stroke; }
.curves.effects td svg { width: 100%; }
.curves.effects td.number { text-align: right; }
.effects th:first-child { width: 92px; }
.effects td:last-child { width: 124px; }
.curves.effects td:last-child { padding-right: 0; }
.wide { overflow-x: auto; }
.chosen { font-weight: 600; }
@media (max-width: 560px) { .verdict .plain th, .verdict .plain td { font-size: 12px; padding: 6px 3px; }
  .verdict .plain th.number { white-space: normal; }
  .curves td, .curves tbody th { padding-right: 6px; } .curves tbody th { font-size: 12px; }
  .curves td data { float: none; display: block; }
  .curves td svg { width: 100%; } }
"""


def note_epoch(folder: str | Path) -> dict[str, dict[str, float]]:
    """Adds the numbers of search.json to history.json in the same folder; returns them: operation -> quantity -> value.

    Later epochs, of a search that was resumed, are dropped.
    """
    folder = Path(folder)
    search = read_json(folder / "search.json", "search result")
    epoch, row = search["provenance"]["epoch"], operations_of(search["sub_policies"])
    known = read_json(folder / HISTORY, "search's history")["epochs"] if epoch > 1 and (folder / HISTORY).is_file() else []
    epochs = [entry for entry in known if entry["epoch"] < epoch]
    write_json(folder / HISTORY, {"schema": 1, "epochs": [*epochs, {"epoch": epoch, "operations": row}]})
    return row


def operations_of(table: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """The QUANTITIES of each operation in a table of sub-policies."""
    row = {}
    for name in OPERATION_NAMES:
        holding = [(entry["preference"], operation) for entry in table for operation in entry["operations"]
                   if operation["name"] == name]
        if total := sum(weight for weight, _ in holding):
            row[name] = {"preference": sum(entry["preference"] for entry in table
                                           if any(operation["name"] == name for operation in entry["operations"])),
                         "probability": sum(weight * operation["probability"] for weight, operation in holding) / total,
                         "strength": sum(weight * operation["magnitude"] for weight, operation in holding) / total}
    return row


def search_page(folder: str | Path, images: Sequence[Image.Image]) -> Path:
    """Writes `folder`/search.html and returns its path.

    Args:
        images: 1 to 4 for the pictures before and after.

    Raises:
        UserError: a file in the folder is not what a search writes; the sentence names it.
    """
    folder = Path(folder)
    body = [part for part in (_part(folder, name, what, make) for name, what, make in (
        ("verdict.json", "verdict", _verdict), ("effects.json", "result of a trial", _effects),
        (HISTORY, "search's history", _curves))) if part]
    body += _pictures(folder, images)
    name = escape(folder.resolve().name)
    page = ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
            "style-src 'unsafe-inline'\">\n"
            f"<title>{name}: augmentation search</title>\n<style>{STYLE}{MORE_STYLE}</style>\n</head>\n<body>\n<main>\n"
            f"<header>\n<p class=over>Augmentation search</p>\n<h1>{name}</h1>\n</header>\n" + "\n".join(body)
            + "\n</main>\n</body>\n</html>\n")
    write_text(folder / PAGE, page)
    return folder / PAGE


def _part(folder: Path, name: str, what: str, make: Callable[[Any], str]) -> str:
    """A section made of a file, "" where it is not there; UserError where it holds something else."""
    if not (folder / name).is_file():
        return ""
    content = read_json(folder / name, what)
    try:
        return make(content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{folder / name} is no {what} that a search wrote ({type(error).__name__}: {error}); search again, "
                        "or move it away") from error


def _verdict(content: Mapping[str, Any]) -> str:
    """Who won, in the search's own sentence, and the table of all candidates with their standard errors."""
    candidates, winner = content["candidates"][:MOST_ROWS], content["winner"]
    rows = []
    for candidate in candidates:
        chosen = ' class=chosen' if candidate["name"] == winner else ""
        rows.append(f"<tr{chosen}><th scope=row>{escape(candidate['name'])}{' ← handed over' if chosen else ''}</th>"
                    f"<td class=number>{_number(candidate, 'accuracy', '.1f')}</td>"
                    f"<td class=number>{_with_error(candidate, 'difference', 'standard_error', '+.1f')}</td>"
                    f"<td class=number>{_with_error(candidate, 'shrunken', 'shrunken_error', '+.3f')}</td></tr>")
    reference = escape(str(content.get("reference", "the reference")))
    figure, unit = escape(str(content.get("figure", "top-1 %"))), escape(str(content.get("unit", UNIT)))
    return (f"<section class=verdict>\n<h2>Verdict</h2>\n<p>{_sentence(content['sentence'])}</p>\n<div class=wide>"
            f"<table class=plain>\n<thead><tr><th scope=col>policy</th><th scope=col class=number>{figure}</th>"
            f"<th scope=col class=number>points to {reference}</th><th scope=col class=number>score</th></tr></thead>\n"
            "<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table></div>\n<p class=note>± is the standard error. "
            f"Score: {unit}, compared with the mean candidate and shrunken to the mean of its kind, found or fixed.</p>\n"
            "</section>")


def _effects(content: Mapping[str, Any]) -> str:
    """What the trial says of each operation, the best first: a mark, and a whisker of one standard error each way."""
    operations = sorted(content["operations"], key=lambda entry: -entry["effect"])[:MOST_ROWS]
    ends = [entry["effect"] + side * (entry.get("standard_error") or 0) for entry in operations for side in (-1, 1)]
    low, high = min([0.0, *ends]), max([0.0, *ends])

    def x(value: float) -> str:
        return f"{2 + 96 * (value - low) / ((high - low) or 1):.1f}"

    rows = []
    for entry in operations:
        name, effect, error = escape(entry["name"]), float(entry["effect"]), float(entry.get("standard_error") or 0)
        rows.append(f'<tr><th scope=row>{name}</th><td><svg viewBox="0 0 100 26" preserveAspectRatio="none" role="img" '
                    f'aria-label="{name}: {effect:+.3f} ± {error:.3f}">'
                    f'<line class=zero x1="{x(0)}" x2="{x(0)}" y1="0" y2="26"/>'
                    f'<line class=whisker x1="{x(effect - error)}" x2="{x(effect + error)}" y1="13" y2="13"/>'
                    f'<line class=mark x1="{x(effect)}" x2="{x(effect)}" y1="6" y2="20"/></svg></td>'
                    f"<td class=number>{effect:+.3f} ± {error:.3f}</td></tr>")
    unit = f" In {escape(content['unit'])}." if "unit" in content else ""
    return ("<section>\n<h2>What the trial says of each operation</h2>\n<p class=note>The effect of the operation on "
            f"the score; the whisker is one standard error to each side, the line zero.{unit}</p>\n"
            "<table class=\"curves effects\">\n<tbody>\n" + "\n".join(rows) + "\n</tbody>\n</table>\n</section>")


def _curves(content: Mapping[str, Any]) -> str:
    """A row for each operation, most preferred first: its QUANTITIES over the epochs, one scale a column."""
    epochs = content["epochs"]
    last = epochs[-1]["operations"]
    names = sorted(last, key=lambda name: -last[name]["preference"])
    top = {quantity: max(entry["operations"].get(name, {}).get(quantity, 0) for entry in epochs for name in names) or 1
           for quantity in QUANTITIES}
    rows = []
    for name in names:
        cells = []
        for quantity in QUANTITIES:
            values = [entry["operations"][name][quantity] for entry in epochs if name in entry["operations"]]
            cells.append(f"<td>{_spark(values, top[quantity], f'{name}, {quantity}')}<data value=\"{values[-1]!r}\">"
                         f"{values[-1]:.2f}</data></td>")
        rows.append(f"<tr><th scope=row>{escape(name)}</th>{''.join(cells)}</tr>")
    heads = "".join(f"<th scope=col>{quantity} <small>0 to {top[quantity]:.2f}</small></th>" for quantity in QUANTITIES)
    words = "; ".join(f"{quantity}: {meaning}" for quantity, meaning in QUANTITIES.items())
    return (f"<section>\n<h2>Operations over {len(epochs)} epochs</h2>\n<p class=note>{words[0].upper()}{words[1:]}.</p>\n"
            f"<table class=curves>\n<thead><tr><th scope=col></th>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows)
            + "\n</tbody>\n</table>\n</section>")


def _spark(values: Sequence[float], top: float, label: str) -> str:
    steps = max(1, len(values) - 1)
    heights = [f"{24 - 22 * min(1.0, value / top):.1f}" for value in values]
    points = " ".join(f"{100 * place / steps:.1f},{height}" for place, height in enumerate(heights))
    only = f'<circle cx="50" cy="{heights[0]}" r="2"/>' if len(values) == 1 else ""
    return (f'<svg viewBox="0 0 100 26" preserveAspectRatio="none" role="img" aria-label="{escape(label)} over the epochs">'
            f'<polyline points="{points}"/>{only}</svg>')


def _pictures(folder: Path, images: Sequence[Image.Image]) -> list[str]:
    """The heaviest sub-policies of policy.json, or of proposal.json where that is no table, on each of the images."""
    policy, name = None, ""
    for name in ("policy.json", "proposal.json"):
        if (folder / name).is_file() and "sub_policies" in read_json(folder / name, "policy"):
            policy = Policy.load(folder / name)
            break
    if policy is None or not images:
        return []
    squares = [ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)) for image in images]
    figures = []
    for label, pictures in [("as they are", squares), *before_and_after(policy, squares, GRID_ROWS)]:
        words = escape(" ".join(label.split()))
        inside = "".join(f'<img src="{data_uri(picture)}" width={SIDE} height={SIDE} alt="picture {number}, {words}">'
                         for number, picture in enumerate(pictures, 1))
        figures.append(f"<figure><figcaption>{words}</figcaption><div>{inside}</div></figure>")
    return [f"<section>\n<h2>Before and after</h2>\n<p class=note>The heaviest sub-policies of {name}, every operation "
            "switched on.</p>\n<div class=grid>\n" + "\n".join(figures) + "\n</div>\n</section>"]


def _sentence(text: str) -> str:
    """A clause of the search as a sentence, with what stands between backquotes as code."""
    parts = escape(text[:1].upper() + text[1:]).split("`")
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts)) + "."


def _number(entry: Mapping[str, Any], key: str, form: str) -> str:
    value = entry.get(key)
    return "–" if value is None else format(float(value), form)


def _with_error(entry: Mapping[str, Any], key: str, error: str, form: str) -> str:
    if entry.get(key) is None:
        return "–"
    return f"{_number(entry, key, form)} ± {_number(entry, error, form.replace('+', ''))}"
