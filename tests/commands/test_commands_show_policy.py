"""tools/show_policy.py, run in-process."""

import json
import re

import pytest
from PIL import Image

from dada_det.augment.named import resolve_policy
from dada_det.augment.space import SearchSpace
from dada_det.commands.show_policy import image_paths, main
from dada_det.errors import UserError
from dada_det.search.distribution import PolicyDistribution
from tests.messages import assert_names


def written_search(folder, **changes):
    """policy.json and search.json as a search of 75 steps writes them, with nothing learned; `changes` to search.json."""
    distribution = PolicyDistribution(SearchSpace())
    provenance = {"method": "dada", "mode": "default", "config": "search", "seed": 0, "epoch": 6}
    distribution.policy(25, provenance).save(folder / "policy.json")
    content = {"schema": 1, "ranges": "strength", "spread": 0.8, "operations": [], "sub_policies": distribution.table(),
               "provenance": provenance,
               "optimizer": {"steps": 75, "lr": 0.02, "betas": [0.5, 0.999], "averaged": 0, "shared": True}} | changes
    (folder / "search.json").write_text(json.dumps(content))
    return folder / "policy.json"


@pytest.mark.parametrize("name", ["dada-imagenet", "random", "cutout"])
def test_a_name_gives_a_page_and_a_picture(tmp_path, capsys, name):
    out = tmp_path / "new" / "page.html"
    assert main([name, "--out", str(out)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == f"wrote {out} ({out.stat().st_size / 1000:.0f} kB) and {out.with_suffix('.png')}"
    page = out.read_text(encoding="utf-8")
    assert f"<h1>{name}</h1>" in page and page.endswith("</html>\n") and out.stat().st_size < 2_000_000
    with Image.open(out.with_suffix(".png")) as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 600


def test_a_search_beside_the_policy_is_read(tmp_path):
    policy = written_search(tmp_path)
    assert main([str(policy), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "75 steps, lr 0.02" in page and "found no more than noise would" in page
    assert f"<h1>{tmp_path.name}/policy.json</h1>" in page and str(tmp_path) not in page


def test_a_search_json_without_the_optimizer_says_not_known(tmp_path):
    policy = written_search(tmp_path)
    content = json.loads((tmp_path / "search.json").read_text())
    del content["optimizer"]
    (tmp_path / "search.json").write_text(json.dumps(content))
    assert main([str(policy), "--out", str(tmp_path / "page.html")]) == 0
    assert_names((tmp_path / "page.html").read_text(encoding="utf-8"), re.compile("noise alone[^<]*not known"))


def test_no_search_or_another_one_is_said(tmp_path):
    policy = written_search(tmp_path, provenance={"seed": 1})
    assert main([str(policy), "--out", str(tmp_path / "page.html")]) == 0
    assert_names((tmp_path / "page.html").read_text(encoding="utf-8"), "search.json", "another search")
    (tmp_path / "search.json").unlink()
    assert main([str(policy), "--out", str(tmp_path / "page.html")]) == 0
    assert_names((tmp_path / "page.html").read_text(encoding="utf-8"), "no search.json")


def test_what_a_trial_has_handed_over_is_held_against_the_search_beside_it(tmp_path):
    policy = written_search(tmp_path)
    content = json.loads(policy.read_text())
    del content["provenance"]["epoch"]  # which a trial leaves out
    for winner, said in (("aligned", "75 steps, lr 0.02"), ("tone", "the policy is `tone`, which the trial chose")):
        content["provenance"]["winner"] = winner
        policy.write_text(json.dumps(content))
        assert main([str(policy), "--out", str(tmp_path / "page.html")]) == 0
        assert_names((tmp_path / "page.html").read_text(encoding="utf-8"), said)


def test_a_file_is_shown_as_the_name_of_the_same_policy(tmp_path):
    resolve_policy("dada-imagenet").save(tmp_path / "policy.json")
    pages = []
    for policy in ("dada-imagenet", str(tmp_path / "policy.json")):
        assert main([policy, "--out", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        pages.append(page[page.index("<div class=pair>"):page.index("<section id=movement>")])
    assert pages[0] == pages[1]


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["none", "--out", "page.html"], "the policy none is `none`, which is no table of sub-policies"),
    (["trivial", "--out", "page.html"], "is `trivial`, which is no table of sub-policies that could be shown; give another"),
    (["nosuch", "--out", "page.html"], "neither a file nor a name"),
    (["random", "--out", "page.png"], "one that ends in .html"),
    (["random", "--out", "page.html", "--images", "nosuch"], "nosuch"),
    (["random", "--out", "page.html", "--images", "empty"], "holds no image"),
    (["random", "--out", "page.html", "--images", "broken"], "none of the images"),
    (["random", "--out", "empty/file/page.html"], "cannot write")])
def test_a_mistake_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "broken"):
        (tmp_path / folder).mkdir()
    (tmp_path / "empty/file").touch()
    (tmp_path / "broken/image.png").write_bytes(b"no image")
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1 and "Traceback" not in error
    assert not (tmp_path / "page.html").exists()


def test_a_broken_search_json_is_one_sentence(tmp_path, capsys):
    policy = written_search(tmp_path, sub_policies=[{}])
    assert main([str(policy), "--out", str(tmp_path / "page.html")]) == 2
    assert "search.json" in capsys.readouterr().err


def write_images(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def test_images_are_spread_over_files_and_folders(tmp_path):
    write_images(tmp_path / "flat", *(f"{number:02d}.png" for number in range(12)), ".hidden.png")
    assert [path.name for path in image_paths(tmp_path / "flat")] == ["00.png", "03.png", "06.png", "09.png"]
    write_images(tmp_path / "classes", *(f"train/c{label}/{number}.png" for label in range(8) for number in range(3)))
    assert [path.parent.name for path in image_paths(tmp_path / "classes")] == ["c0", "c2", "c4", "c6"]
    write_images(tmp_path / "two", "a/0.png", "a/1.png", "a/2.png", "b/0.png")
    assert len(image_paths(tmp_path / "two")) == 3  # two of each, and b has one
    (tmp_path / "gaps" / "c0").mkdir(parents=True)
    write_images(tmp_path / "gaps", *(f"c{label}/0.jpg" for label in range(1, 9)))
    assert len(image_paths(tmp_path / "gaps")) == 4


def test_a_loop_of_folders_ends(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "again").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "inner" / "itself.png").symlink_to("itself.png")
    with pytest.raises(UserError, match="holds no image"):
        image_paths(tmp_path)


def test_the_users_images_are_in_the_page(tmp_path, capsys):
    write_images(tmp_path / "mine", "a.png", "b.png")
    (tmp_path / "mine" / "c.png").write_bytes(b"broken")
    assert main(["cutout", "--images", str(tmp_path / "mine"), "--out", str(tmp_path / "page.html")]) == 0
    assert "c.png does not decode" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text(encoding="utf-8").count("<img ") == 2 * 2
