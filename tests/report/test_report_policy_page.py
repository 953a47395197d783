"""The policy's page: read with html.parser, as a browser would."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from dada_det.augment.named import resolve_policy
from dada_det.augment.operations import OPERATION_NAMES, OPERATIONS
from dada_det.augment.policy import Operation, Policy, SubPolicy
from dada_det.augment.space import SearchSpace
from dada_det.report.policy_facts import heaviest_first, pair_shares, usage
from dada_det.report.policy_movement import GROUPS, Optimizer, Search
from dada_det.report.policy_page import policy_page

IMAGES = [Image.new("RGB", (90, 60), "teal"), Image.linear_gradient("L")]
VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Every tag with its attributes, the tables as rows of cells [text, data values], and all text of elements by class."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.tables, self.classes = {}, {}
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        if tag == "table":
            self.rows = self.tables.setdefault(attributes["class"], [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append(["", []])
        elif tag == "data" and any(name in ("td", "th") for name, _ in self.open):
            self.rows[-1][-1][1].append(float(attributes["value"]))
        if tag not in VOID:
            self.open.append((tag, attributes))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if not any(tag == "style" for tag, _ in self.open):
            self.words.append(data)
        if any(tag in ("td", "th") for tag, _ in self.open):
            self.rows[-1][-1][0] += data
        for _, attributes in self.open:
            for name in (attributes.get("class") or "").split():
                self.classes[name] = self.classes.get(name, "") + data

    @property
    def text(self):
        return " ".join("".join(self.words).split())


def read(tmp_path, policy, name="some", **arguments):
    policy_page(policy, name, arguments.pop("images", IMAGES), tmp_path / "page.html", **arguments)
    return Reader((tmp_path / "page.html").read_text(encoding="utf-8"))


def search_of(preferences, probability, magnitude, optimizer):
    pairs = SearchSpace().pairs
    candidates = Policy("strength", tuple(
        SubPolicy(preference, tuple(Operation(OPERATION_NAMES[o], probability, magnitude) for o in pair))
        for preference, pair in zip(preferences, pairs, strict=True)))
    return Search(candidates, True, 0.8, optimizer)


ADAM = Optimizer(100, 0.02, (0.5, 0.999), 0, "preferences", 0.02)


@pytest.mark.parametrize("name", ["dada-imagenet", "dada-cifar100", "random", "one-op", "cutout"])
def test_the_numbers_are_the_policys(tmp_path, name):
    policy = resolve_policy(name)
    page = read(tmp_path, policy, name)
    rows = page.tables["policy"][1:]
    assert len(rows) == len(policy.sub_policies)
    for row, (share, sub_policy) in zip(rows, heaviest_first(policy), strict=True):
        assert row[1][1] == [share] and float(row[1][0].split()[0]) == pytest.approx(100 * share, abs=0.051)
        for cell, operation in zip(row[2:], sub_policy.operations, strict=False):
            assert cell[0].startswith(operation.name) and f" {100 * operation.probability:.0f} %" in cell[0]
            strength = [operation.magnitude] if OPERATIONS[operation.name].unit and not policy.uniform_strength else []
            assert cell[1] == [*strength, operation.probability]
    assert f"Augmentation policy {name}" in page.text and policy.sha256[:12] in page.text


def test_images_that_stay_as_they_are_and_flips_are_told(tmp_path):
    policy = replace(resolve_policy("dada-imagenet"), unaugmented=0.5, mirror=False)
    page, whole = read(tmp_path, policy), read(tmp_path, resolve_policy("dada-imagenet"))
    verdict = page.classes["verdict"]
    assert "It leaves 50 % of the images as they are" in verdict and "It was searched without horizontal flips" in verdict
    assert "as they are" not in whole.classes["verdict"] and "flips" not in whole.classes["verdict"]
    values, of_whole = ([[sum(cell[1]) for cell in row[1:]] for row in own.tables["heat"][1:]] for own in (page, whole))
    assert sum(map(sum, values)) == pytest.approx(0.5) and values[0] == pytest.approx([cell / 2 for cell in of_whole[0]])
    assert "All cells sum to 50 %." in page.text and "All cells sum to 100 %." in whole.text
    read(tmp_path, replace(policy, unaugmented=1))  # no share to divide by


def test_real_units(tmp_path):
    operations = (("Rotate", "±15°"), ("TranslateX", "±22 %"), ("Posterize", "6 bits"), ("Solarize", "≥128"),
                  ("Color", "×0.55 or 1.45"), ("ShearY", "±0.15"), ("Cutout", "10 %"))
    page = read(tmp_path, Policy("strength", tuple(SubPolicy(1, (Operation(name, 0.31, 0.5, 0.8),))
                                                   for name, _ in operations)))
    cells = [row[2][0] for row in page.tables["policy"][1:]]
    assert [cell.split(" 31 %")[0] for cell in cells] == [f"{name} {value}" for name, value in operations]
    assert "usually ±9° to ±21°" in cells[0] and "The spread of all of them is 0.8" in page.text
    assert page.tables["policy"][1][3][0] == "–"


def test_different_spreads_stand_beside_their_operations(tmp_path):
    page = read(tmp_path, Policy("strength", tuple(SubPolicy(1, (Operation("Rotate", 0.5, 0.5, spread),))
                                                   for spread in (0.4, None, 1.2))))
    cells = [row[2][0] for row in page.tables["policy"][1:]]
    assert "(spread 0.4)" in cells[0] and "usually" not in cells[1] and "(spread 1.2)" in cells[2]


@pytest.mark.parametrize("name", ["dada-imagenet", "uniform", "one-op"])
def test_the_heatmap_holds_all_weights(tmp_path, name):
    policy = resolve_policy(name)
    page = read(tmp_path, policy)
    head, *rows = page.tables["heat"]
    assert [cell[0] for cell in head[1:]] == [row[0][0] for row in rows] == list(OPERATION_NAMES)
    values = [[sum(cell[1]) for cell in row[1:]] for row in rows]
    assert values == pair_shares(policy) and sum(map(sum, values)) == pytest.approx(1)
    titles = [attributes["title"] for tag, attributes in page.tags if tag == "td" and "title" in attributes]
    assert len(titles) == 225 and titles[1].startswith("ShearX, then ShearY: ") and titles[16].startswith("ShearY alone: ")
    assert f"{100 * max(map(max, values)):.1f} %" in page.classes["legend"]


def test_the_bars_are_the_usage(tmp_path):
    policy = resolve_policy("dada-imagenet")
    page = read(tmp_path, policy)
    bars = [float(attributes["value"]) for tag, attributes in page.tags if tag == "data"][:15]
    assert bars == sorted(usage(policy).values(), reverse=True)


@pytest.mark.parametrize(("name", "near"), [("random", True), ("dada-svhn", True), ("dada-imagenet", False),
                                            ("cutout", False)])
def test_near_uniform_is_said_in_words(tmp_path, name, near):
    verdict = read(tmp_path, resolve_policy(name)).classes["verdict"]
    assert ("This policy is close to uniform:" in verdict) is near
    assert ("This policy is not uniform:" in verdict) is not near


def test_a_search_is_judged_by_all_its_candidates(tmp_path):
    """The 25 saved ones are alike, and yet hold nearly everything."""
    policy = Policy("strength", search_of([1 / 105] * 105, 0.5, 0.5, None).candidates.sub_policies[:25])
    peaked = search_of([0.039] * 25 + [0.025 / 80] * 80, 0.5, 0.5, None)
    assert "not uniform: it differs in its weights" in read(tmp_path, policy, search=peaked).classes["verdict"]
    flat = search_of([1 / 105] * 105, 0.5, 0.5, None)
    assert "close to uniform" in read(tmp_path, policy, search=flat).classes["verdict"]


def test_movement_against_noise(tmp_path):
    # logit(0.6) = 0.405 against 0.02 * sqrt(100) = 0.2; logit(0.53) = 0.12
    page = read(tmp_path, resolve_policy("uniform"), search=search_of([1 / 105] * 105, 0.6, 0.53, ADAM))
    table = {row[0][0]: row for row in page.tables["plain"][1:4]}
    assert list(table) == list(GROUPS)
    assert table["preferences"][3][1][0] == pytest.approx(0, abs=1e-9) and table["preferences"][4][0] == "within noise"
    assert table["probabilities"][3][1][0] == pytest.approx(0.405 / 0.2, rel=0.05)
    assert table["probabilities"][4][0] == "more than noise"
    assert table["magnitudes"][3][1][0] == pytest.approx(0.12 / 0.2, rel=0.05)
    ratio = table["probabilities"][3][1][0]
    assert (f"Its search moved probabilities {ratio:.1f} times as far as noise alone would; preferences and magnitudes "
            "moved no further than noise may") in page.text
    assert "100 steps, lr 0.02, betas 0.5 and 0.999" in page.text
    by_operation = {row[0][0]: row[1:] for row in page.tables["plain"][5:]}
    assert list(by_operation) == list(OPERATION_NAMES)
    assert by_operation["Invert"][2][0] == "–" and float(by_operation["Rotate"][1][0]) == pytest.approx(2.0, rel=0.05)
    titles = "".join(page.words)
    assert f"Rotate in ShearX and Rotate: probability 0.60, shift {ratio:+.2f} times noise" in titles
    assert sum(tag == "circle" for tag, _ in page.tags) == 210 + 210 + 12 * 14


def test_a_saved_share_of_the_probabilities_is_said(tmp_path):
    search = replace(search_of([1 / 105] * 105, 0.6 * 0.75, 0.53, ADAM), share=0.75)
    page = read(tmp_path, resolve_policy("uniform"), search=search)
    assert "Saved probabilities, as shown, are 0.75 of the learned ones: the other images stay as they are." in page.text
    assert page.tables["plain"][2][3][1][0] == pytest.approx(0.405 / 0.2, rel=0.05)


def test_a_search_that_found_noise_is_told_so(tmp_path):
    page = read(tmp_path, resolve_policy("uniform"), search=search_of([1 / 105] * 105, 0.53, 0.53, ADAM))
    assert "Its search found no more than noise would" in page.classes["alarm"]


def test_what_is_not_known_is_said(tmp_path):
    page = read(tmp_path, resolve_policy("uniform"), search=search_of([1 / 105] * 105, 0.6, 0.53, None))
    assert "What noise alone would move them is not known" in page.text
    assert page.tables["plain"][1][2][0] == "not known" and "as far as noise" not in page.classes["verdict"]
    page = read(tmp_path, resolve_policy("uniform"), why_no_search="there is no <search>.")
    assert "Not known: there is no <search>." in page.text and "plain" not in page.tables


def test_free_text_from_a_file_is_escaped_and_cut(tmp_path):
    hostile = "</dd><script>alert(1)</script><img src=http://example.org/x onerror=alert(1)>"
    provenance = {hostile: hostile, "list": [hostile], "long": "x" * 100_000} | {f"key{index}": 1 for index in range(100)}
    policy = Policy("strength", resolve_policy("dada-imagenet").sub_policies, provenance)
    page = read(tmp_path, policy, f'"{hostile}', why_no_search=hostile)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "link", "object", "embed", "base", "form"}
    assert "<script>alert(1)</script>" in page.text  # as text
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert (tmp_path / "page.html").stat().st_size < 400_000 and "x" * 301 not in page.text


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = read(tmp_path, resolve_policy("dada-imagenet"))
    source = (tmp_path / "page.html").read_text(encoding="utf-8")
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster", "background"):
            assert attributes.get(name, "data:").startswith(("data:image/jpeg;base64,", "data:", "#"))
    style = re.search(r"<style>(.*?)</style>", source, re.S).group(1)
    assert "url(" not in style and "@import" not in style and "http" not in style
    assert "prefers-color-scheme: dark" in style and "default-src 'none'" in source
    meta = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in meta


def test_pictures_before_and_after(tmp_path):
    page = read(tmp_path, resolve_policy("dada-imagenet"))
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 13 * len(IMAGES)
    assert images[0]["alt"] == "picture 1, as they are"
    assert images[2]["alt"] == "picture 1, 4.0 % TranslateY ±12 % (0.85), then Contrast ×0.94 (0.70)"
    pictures = [Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1]))) for image in images]
    assert {picture.size for picture in pictures} == {(112, 112)}
    assert max(abs(a - b) for a, b in zip(pictures[0].getpixel((50, 50)), (0, 128, 128), strict=True)) < 4  # teal
    assert pictures[0].tobytes() != pictures[2].tobytes()


def test_a_thousand_sub_policies_stay_a_page(tmp_path):
    policy = Policy("strength", tuple(SubPolicy(1 + index % 7, (Operation("Rotate", 0.5, index / 1000, 0.8),
                                                                Operation("Cutout", 0.5, 0.5)))
                                      for index in range(1000)))
    page = read(tmp_path, policy, images=[Image.effect_noise((200, 200), 200)] * 4)
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    assert len(page.tables["policy"]) == 51
    left = sum(share for share, _ in heaviest_first(policy)[50:])
    assert f"950 more sub-policies share the remaining {100 * left:.1f} %" in page.text
    assert sum(sum(cell[1]) for row in page.tables["heat"][1:] for cell in row[1:]) == pytest.approx(1)


def test_equal_policies_give_equal_pages(tmp_path):
    pages = []
    for _ in range(2):
        read(tmp_path, resolve_policy("dada-imagenet"), search=search_of([1 / 105] * 105, 0.6, 0.53, ADAM))
        pages.append((tmp_path / "page.html").read_bytes())
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]
