"""One HTML page about a policy: no script, nothing loaded from elsewhere, light and dark, wide and narrow screens."""

import base64
import io
import json
import math
from html import escape
from pathlib import Path

from PIL import Image, ImageOps

from dada_det.augment.operations import OPERATION_NAMES
from dada_det.augment.policy import Operation, Policy
from dada_det.files import write_text
from dada_det.report.policy_facts import (
    LEAST_OPERATIONS,
    LEAST_WEIGHTS,
    MOST_DIFFERENCE,
    Evenness,
    evenness,
    heaviest_first,
    pair_shares,
    spreads_of,
    usage,
    usual_values,
    value_text,
)
from dada_det.report.policy_movement import CLEAR, Group, Search, idle_magnitudes, movement
from dada_det.report.policy_picture import before_and_after
from dada_det.report.policy_style import STYLE

MOST_ROWS = 50  # of the table
GRID_ROWS = 12
SIDE = 112  # pixels of a picture in the grid
MOST_ENTRIES, MOST_CHARACTERS = 20, 300  # of the provenance


def policy_page(policy: Policy, name: str, images: list[Image.Image], path: str | Path, search: Search | None = None,
                why_no_search: str = "") -> None:
    """Writes the page, at most about 1 MB whatever the policy holds.

    Args:
        name: what the page calls the policy.
        images: 1 to 4 for the grid, cropped to squares.
        search: the search.json the policy comes from, for how far its parameters moved; where it is None, `why_no_search` is
            one sentence that says why.

    Raises:
        UserError: `path` cannot be written.
    """
    groups = movement(search) if search else []
    body = [_head(policy, name), _verdict(policy, search, groups), _usage(policy), _heatmap(policy), _table(policy),
            _grid(policy, images), _movement(search, groups, why_no_search), _provenance(policy)]
    page = ('<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            '<meta name="color-scheme" content="light dark">\n'
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; "
            "style-src 'unsafe-inline'\">\n"
            f"<title>Augmentation policy {escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join(body) + "\n</main>\n</body>\n</html>\n")
    write_text(path, page)


def _head(policy: Policy, name: str) -> str:
    count = len(policy.sub_policies)
    return (f"<header>\n<p class=over>Augmentation policy</p>\n<h1>{escape(name)}</h1>\n"
            f"<p class=note>{count} sub-polic{'y' if count == 1 else 'ies'} · ranges <code>{policy.ranges}</code> · "
            f"sha256 <code>{policy.sha256[:12]}</code></p>\n</header>")


def _verdict(policy: Policy, search: Search | None, groups: list[Group]) -> str:
    """Whether the policy is near uniform and whether its search moved it at all, in words."""
    if search:
        known = {operation.name for sub_policy in search.candidates.sub_policies for operation in sub_policy.operations}
        even = evenness(search.candidates, len(known))
    else:
        even = evenness(policy)
    sentences = [_uniform_sentence(even)]
    alarming = even.near_uniform
    measured = [group for group in groups if group.ratio is not None]
    if measured and all(group.within_noise for group in measured):
        alarming = True
        sentences.append("<strong>Its search found no more than noise would:</strong> none of preferences, probabilities "
                         "and magnitudes moved clearly further than steps without any signal move them "
                         '(<a href="#movement">below</a>).')
    elif measured:
        beyond = [f"{group.name} {group.ratio:.1f} times" for group in measured if not group.within_noise]
        within = [group.name for group in measured if group.within_noise]
        rest = f"; {' and '.join(within)} moved no further than noise may" if within else ""
        sentences.append(f"Its search moved {', '.join(beyond)} as far as noise alone would{rest} "
                         '(<a href="#movement">below</a>).')
    if policy.unaugmented:
        sentences.append(f"It leaves {_percent(policy.unaugmented)} of the images as they are.")
    if policy.mirror is not None:
        sentences.append(f"It was searched {'with' if policy.mirror else 'without'} horizontal flips.")
    if policy.uniform_strength:
        sentences.append("Every magnitude is drawn uniformly from its whole range, anew for each image.")
    most = sorted(usage(policy).items(), key=lambda item: -item[1])[:3]
    sentences.append("Most used: " + ", ".join(f"{name} on {_percent(use)} of the images" for name, use in most if use > 0)
                     + ".")
    of = "the search’s candidates" if search else "sub-policies"
    numbers = (f"Effective number (exp of the entropy) of {of} {even.weights:.1f} of {even.of_weights}, of operations "
               f"{even.operations:.1f} of {even.of_operations}; rms distance from their mean {even.probabilities:.2f} of "
               f"probabilities, {even.magnitudes:.2f} of magnitudes. Close to uniform means effective numbers of at least "
               f"{100 * LEAST_WEIGHTS:.0f} % and {100 * LEAST_OPERATIONS:.0f} %, and distances of at most "
               f"{MOST_DIFFERENCE}.")
    return (f"<section class=\"verdict{' alarm' if alarming else ''}\" aria-label=\"In short\">\n"
            + "\n".join(f"<p>{sentence}</p>" for sentence in sentences) + f"\n<p class=note>{numbers}</p>\n</section>")


def _uniform_sentence(even: Evenness) -> str:
    if even.near_uniform:
        return ("<strong>This policy is close to uniform:</strong> it hardly prefers one sub-policy, operation, probability "
                "or strength to another.")
    return f"<strong>This policy is not uniform:</strong> it differs in its {' and '.join(even.reasons)}."


def _usage(policy: Policy) -> str:
    use = usage(policy)
    most, uniform = max(use.values()) or 1.0, sum(use.values()) / len(use)
    rows = "\n".join(
        f'<li><span>{name}</span><span class=bar><i style="width:{100 * use[name] / most:.1f}%"></i>'
        f'<b style="left:{100 * uniform / most:.1f}%"></b></span>'
        f"<data value=\"{use[name]!r}\">{_percent(use[name])}</data></li>"
        for name in sorted(OPERATION_NAMES, key=lambda name: -use[name]))
    return ("<div class=pair>\n<section>\n<h2>How often each operation acts</h2>\n<p class=note>Share of the images: weight "
            f"times probability, summed. The line marks {_percent(uniform)}, where all operations would be alike.</p>\n"
            f"<ul class=bars>\n{rows}\n</ul>\n</section>")


def _heatmap(policy: Policy) -> str:
    """A table, so that a screen reader and a test can read it; the second half of the pair that `_usage` opens."""
    cells = pair_shares(policy)
    most = max(map(max, cells)) or 1.0
    head = "".join(f'<th scope=col><span>{name}</span></th>' for name in OPERATION_NAMES)
    rows = []
    for row, shares in zip(OPERATION_NAMES, cells, strict=True):
        inside = []
        for column, share in zip(OPERATION_NAMES, shares, strict=True):
            what = f"{row} alone" if row == column else f"{row}, then {column}"
            part = share / most
            look = (f' class="{"full" if part > 0.7 else "some"}" style="--part:{100 * part:.0f}%"' if share
                    else " class=diagonal" if row == column else "")
            number = f'<data value="{share!r}">{_short(share)}</data>' if share else ""
            inside.append(f'<td{look} title="{what}: {100 * share:.2f} %">{number}</td>')
        rows.append(f"<tr><th scope=row>{row}</th>{''.join(inside)}</tr>")
    return ("<section>\n<h2>Pairs of operations</h2>\n<p class=note>Share of the images in %: the row is applied first, the "
            f"column second; the diagonal holds operations alone. All cells sum to {_percent(1 - policy.unaugmented)}.</p>\n"
            f"<table class=heat>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows)
            + f"\n</tbody>\n</table>\n<p class=legend><span>0 %</span><i></i><span>{100 * most:.1f} %</span></p>\n"
            "</section>\n</div>")


def _table(policy: Policy) -> str:
    ordered, spreads = heaviest_first(policy), spreads_of(policy)
    common = f" The spread of all of them is {min(spreads):.2g}, on the logit." if len(spreads) == 1 and min(spreads) else ""
    rows = []
    for number, (share, sub_policy) in enumerate(ordered[:MOST_ROWS], 1):
        cells = "".join(f"<td>{_operation(operation, policy, len(spreads) > 1)}</td>" for operation in sub_policy.operations)
        cells += "<td class=none>–</td>" * (2 - len(sub_policy.operations))
        rows.append(f'<tr><th scope=row>{number}</th><td class=number><data value="{share!r}">{_percent(share)}</data></td>'
                    f"{cells}</tr>")
    rest = ""
    if len(ordered) > MOST_ROWS:
        left = sum(share for share, _ in ordered[MOST_ROWS:])
        rest = (f"<p id=rest>{len(ordered) - MOST_ROWS} more sub-policies share the remaining {_percent(left)} of the "
                "images; they are counted in the figures above.</p>\n")
    return ("<section>\n<h2>The sub-policies, heaviest first</h2>\n<p class=note>An image draws one of them by weight; each "
            "of its operations then acts with its own probability. Translate and Cutout are in % of the image's side (10 % "
            "of 224 px are 22 px), Shear in pixels a pixel; ± and “or” stand for a sign drawn for each image. Where "
            f"magnitudes are drawn around their mean, two draws in three fall into the range given as “usually”.{common}"
            "</p>\n"
            "<table class=policy>\n<thead><tr><th scope=col>#</th><th scope=col class=number>weight</th>"
            "<th scope=col>first, <small>probability</small></th><th scope=col>then</th></tr></thead>\n<tbody>\n"
            + "\n".join(rows) + f"\n</tbody>\n</table>\n{rest}</section>")


def _operation(operation: Operation, policy: Policy, say_spread: bool) -> str:
    """Name, value in real units, probability, and the range of drawn values."""
    value, drawn, usual = "", "", usual_values(operation, policy)
    if policy.uniform_strength:
        drawn = f" · any strength, {usual}" if usual else ""
    else:
        text = value_text(operation.name, operation.magnitude, policy.ranges)
        value = f' <data class=magnitude value="{operation.magnitude!r}">{text}</data>' if text else ""
        spread = f" (spread {operation.spread:.2g})" if say_spread and operation.spread else ""
        drawn = f" · usually {usual}{spread}" if usual else ""
    return (f'<span class=operation>{operation.name}{value}</span> <small><data class=probability '
            f'value="{operation.probability!r}">{100 * operation.probability:.0f} %</data>{drawn}</small>')


def _grid(policy: Policy, images: list[Image.Image]) -> str:
    squares = [ImageOps.fit(image.convert("RGB"), (SIDE, SIDE)) for image in images]
    rows = [("as they are", squares), *before_and_after(policy, squares, GRID_ROWS)]
    figures = []
    for label, pictures in rows:
        words = escape(" ".join(label.split()))
        inside = "".join(f'<img src="{data_uri(picture)}" width={SIDE} height={SIDE} alt="picture {number}, {words}">'
                         for number, picture in enumerate(pictures, 1))
        figures.append(f"<figure><figcaption>{words}</figcaption><div>{inside}</div></figure>")
    return (f"<section>\n<h2>Before and after</h2>\n<p class=note>The {len(rows) - 1} heaviest sub-policies with every "
            "operation switched on, whatever its probability (in brackets). Signs, drawn magnitudes and Cutout's places "
            "differ from picture to picture.</p>\n<div class=grid>\n" + "\n".join(figures) + "\n</div>\n</section>")


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _movement(search: Search | None, groups: list[Group], why_no_search: str) -> str:
    start = '<section id=movement>\n<h2>How far the search moved its numbers</h2>\n'
    if search is None:
        return f"{start}<p>Not known: {escape(why_no_search)}</p>\n</section>"
    unit = "on the logit" if search.logits else "as numbers"
    words = [f"All {len(search.candidates.sub_policies)} candidates started with equal preferences, every probability and "
             f"magnitude at ½. A shift is taken from there: of the logarithm of a preference, and of probabilities and "
             f"magnitudes {unit}."]
    if search.share != 1:
        words.append(f"Saved probabilities, as shown, are {search.share:g} of the learned ones: the other images stay "
                     "as they are.")
    adam = search.optimizer
    if adam is None:
        words.append("What noise alone would move them is not known: this search.json does not tell the steps and the "
                     "rate of its Adam.")
    elif not adam.steps:
        words.append("The policy has taken no step yet.")
    else:
        how = "gradients that hold no signal" if search.logits else "one draw a step and the same reward for each"
        last = f", mean of the last {adam.averaged}" if adam.averaged else ""
        words.append(f"Noise is what the same Adam does with {how} ({adam.steps} steps, lr {adam.lr:g}, betas "
                     f"{adam.betas[0]:g} and {adam.betas[1]:g}{last}; simulated, standard deviation): it divides by the "
                     f"gradient's size, so it walks whatever happens. Rewards without a signal may do up to {CLEAR} times "
                     "as much; from there on this page says more than noise. Dots of one operation share images, so they "
                     "move together even in noise.")
    idle = idle_magnitudes(search)
    if idle is not None:
        words.append("A check inside this search: the magnitudes of AutoContrast, Invert and Equalize do nothing, and "
                     f"moved by {idle:.3f} (rms).")
    return (start + "\n".join(f"<p class=note>{sentence}</p>" for sentence in words) + "\n" + _movement_table(groups)
            + "\n<div class=strips>\n" + "\n".join(_strip(group) for group in groups) + "\n</div>\n"
            + _by_operation(groups) + "\n</section>")


def _movement_table(groups: list[Group]) -> str:
    rows = []
    for group in groups:
        if group.ratio is None or group.noise is None:
            noise = "<td class=number>not known</td><td class=number>not known</td><td>not known</td>"
        else:
            verdict = "within noise" if group.within_noise else "more than noise"
            noise = (f"<td class=number>{group.noise:.3f}</td><td class=number><data value=\"{group.ratio!r}\">"
                     f"{group.ratio:.2f}</data></td><td>{verdict}</td>")
        rows.append(f"<tr><th scope=row>{group.name}</th><td class=number>{group.rms:.3f}</td>{noise}</tr>")
    return ("<table class=plain>\n<thead><tr><th scope=col></th><th scope=col>shift (rms)</th><th scope=col>noise</th>"
            "<th scope=col>shift / noise</th><th scope=col></th></tr></thead>\n<tbody>\n" + "\n".join(rows)
            + "\n</tbody>\n</table>")


def _strip(group: Group) -> str:
    """A dot for each parameter in the row of its operation; the band is where two noise walks in three end, twice."""
    scale = 1 / group.noise if group.noise else 1.0
    row, left, width, top = 18, 84, 250, 22
    height = top + row * len(OPERATION_NAMES)
    most = max([abs(dot.shift) * scale for dot in group.dots] + [3.0 if group.noise else 0.1]) * 1.05

    def x(value: float) -> float:
        return left + width * (value / most + 1) / 2

    parts = []
    if group.noise:
        parts.append(f'<rect class=band x="{x(-2):.1f}" y="{top}" width="{x(2) - x(-2):.1f}" height="{height - top}"/>')
    for tick in _ticks(most):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{top}" y2="{height}" '
                     f'class="{"zero" if tick == 0 else "tick"}"/><text x="{x(tick):.1f}" y="{top - 7}" '
                     f'text-anchor="middle">{tick:+g}</text>')
    for index, name in enumerate(OPERATION_NAMES):
        y = top + row * index + row / 2
        parts.append(f'<text x="{left - 6}" y="{y + 3.5}" text-anchor="end">{name}</text>')
        parts += [f'<circle cx="{x(dot.shift * scale):.1f}" cy="{y}" r="2.6"><title>{dot.text}, shift '
                  f'{dot.shift * scale:+.2f}{" times noise" if group.noise else ""}</title></circle>'
                  for dot in group.dots if dot.operation == name]
    what = "shift / noise, band: ±2" if group.noise else "shift"
    return (f'<figure><figcaption><b>{group.name}</b> {what}</figcaption>'
            f'<svg viewBox="0 0 {left + width + 10} {height + 4}" role="img" aria-label="{group.name}: {what}, a dot for '
            'each parameter by operation; the table below has the numbers">' + "".join(parts) + "</svg></figure>")


def _ticks(most: float) -> list[float]:
    step = 10 ** math.floor(math.log10(most))
    step = next(step * part for part in (0.5, 1, 2, 5) if step * part * 3.2 > most)
    return [count * step for count in range(-3, 4) if abs(count * step) <= most]


def _by_operation(groups: list[Group]) -> str:
    known = any(group.noise for group in groups)
    rows = []
    for name in OPERATION_NAMES:
        numbers = [group.rms_of(name) for group in groups]
        cells = "".join(f"<td class=number>{'–' if math.isnan(number) else f'{number:.2f}'}</td>" for number in numbers)
        rows.append(f"<tr><th scope=row>{name}</th>{cells}</tr>")
    heads = "".join(f"<th scope=col>{group.name}</th>" for group in groups)
    return (f"<details>\n<summary>By operation: rms of shift{' / noise' if known else ''}</summary>\n<table class=plain>\n"
            f"<thead><tr><th scope=col></th>{heads}</tr></thead>\n<tbody>\n" + "\n".join(rows)
            + "\n</tbody>\n</table>\n</details>")


def _provenance(policy: Policy) -> str:
    """Free text from a file: escaped, and cut where it is long."""
    entries = list(policy.provenance.items())
    rows = "\n".join(f"<dt>{escape(_cut(key))}</dt><dd>{escape(_cut(value))}</dd>" for key, value in entries[:MOST_ENTRIES])
    more = f"\n<dt>…</dt><dd>{len(entries) - MOST_ENTRIES} more</dd>" if len(entries) > MOST_ENTRIES else ""
    content = f"<dl>\n{rows}{more}\n</dl>" if entries else "<p>The policy does not say where it comes from.</p>"
    return f"<section>\n<h2>Where it comes from</h2>\n{content}\n</section>"


def _cut(value: object) -> str:
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return words if len(words) <= MOST_CHARACTERS else words[:MOST_CHARACTERS - 1] + "…"


def _percent(share: float) -> str:
    whole = share >= 0.1 and abs(100 * share - round(100 * share)) < 0.005
    return f"{100 * share:.{0 if whole else 1}f} %"


def _short(share: float) -> str:
    return f"{100 * share:.1f}" if share < 0.0995 else f"{100 * share:.0f}"
