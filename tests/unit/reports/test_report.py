"""The HTML report and the files beside it, from small stored results."""

import csv
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_material import EVIL, NAMES

from raybench.cli import main
from raybench.publish_all import publish_stored
from raybench.report import Report, write_report
from raybench.reports.attack_text import attacks_as_json, attacks_as_markdown
from raybench.reports.tables import as_json, as_markdown
from raybench.sinks.store import find_folders, read_manifest

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The elements of a page, its visible text, and whether every tag is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def stored(stored_results: Path) -> Path:
    return stored_results


@pytest.fixture(scope="module")
def written(stored: Path) -> Report:
    said: list[str] = []
    report = write_report(stored, None, "normalised", said.append)
    assert said == []
    return report


@pytest.fixture(scope="module")
def page(written: Report) -> Page:
    return Page(written.page.read_text())


@pytest.fixture
def copy(stored: Path, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    shutil.copytree(stored, out, ignore=shutil.ignore_patterns("report", "reports", "mlflow*"))
    return out


def silent(text: str) -> None:
    raise AssertionError(text)


def test_the_page_needs_nothing_else(page: Page) -> None:
    assert page.open == []
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style", tag
            if name in ("src", "srcset", "data", "action", "xlink:href"):
                assert value.startswith("data:"), (tag, value)
            if name == "href":
                assert not re.match(r"(?i)\s*(https?:|//|javascript:)", value), value
    assert {one.get("rel") for one in page.all("link")} == {"icon"}
    assert "url(" not in "".join(page.text)


def test_the_policy_allows_the_pages_own_style_and_script_alone(written: Report) -> None:
    from base64 import b64encode
    from hashlib import sha256

    text = written.page.read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None
    rules = policy.group(1).replace("&#39;", "'")
    assert rules.startswith("default-src 'none'; img-src data:;")
    for tag in ("style", "script"):
        (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, flags=re.DOTALL)
        found = b64encode(sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{found}'" in rules


def test_a_models_name_is_text_and_never_markup(page: Page, written: Report) -> None:
    assert all(one["src"].startswith("data:image/png;base64,") for one in page.all("img"))
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert EVIL in page.words
    for path in written.files:
        if path.suffix == ".md":
            # What stands between backticks is code, and shown as it is.
            assert "<img" not in re.sub(r"`[^`]*`", "", path.read_text()), path.name


def test_every_part_of_the_issue_is_there(page: Page) -> None:
    for text in (
        "Fig. 1: brittle-scores", "Fig. 2: explanations", "Temperature:", "Robust accuracy",
        "Score against robust accuracy", "Throughput and cost", "worker seconds", "Provenance",
        "Settings", "Libraries", "tied with ranks", "Fig. 5", "Fig. 6",
        "leaderboard.json",
    ):  # fmt: skip
        assert text in page.words, text
    for name in NAMES:
        assert name in page.words


def test_tables_say_how_they_are_sorted_and_name_their_cells(page: Page) -> None:
    sorted_by = [one for one in page.all("th") if "aria-sort" in one]
    assert len(sorted_by) == 3  # the scores, and two budgets
    assert {one["aria-sort"] for one in sorted_by} == {"ascending"}
    assert all(one["data-label"] for one in page.all("td"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = {one["href"].removeprefix("#") for one in page.all("a") if one["href"][0] == "#"}
    assert links <= set(ids)
    assert all(one.get("alt") for one in page.all("img"))


def test_links_lead_to_files(page: Page, written: Report) -> None:
    beside = [one["href"] for one in page.all("a") if one["href"][0] != "#"]
    assert len(beside) > 10
    for address in beside:
        assert (written.page.parent / address).is_file(), address


@pytest.mark.usefixtures("no_drawing")
def test_files_say_what_the_tables_say(stored: Path, written: Report) -> None:
    published = publish_stored(stored, None, "normalised", silent)
    scores = [table for table in published.views[0].tables if table.shown]
    robust = published.views[1].tables
    folder = written.page.parent

    content = json.loads((folder / "leaderboard.json").read_text())
    for found, table in zip(content["scores"], scores, strict=True):
        assert found["n"] == 24
        for name, value in as_json(table).items():
            assert found[name] == value
    by_threat = {one["threat"]: one for one in content["robustness"]}
    for table in robust:
        assert by_threat[table.threat].items() >= attacks_as_json(table).items()
    assert {one["threat"] for one in content["agreement"]} == {"linf 0.02", "linf 0.1"}
    for one in content["agreement"]:
        assert one["models"] == len(one["points"]) == 3

    lines = list(csv.DictReader(io.StringIO((folder / "leaderboard.csv").read_text())))
    assert len(lines) == 3 + 2 * 3
    for row in scores[0].rows:
        (line,) = [x for x in lines if (x["kind"], x["model"]) == ("score", row.model.name)]
        assert float(line["brittle_score"]) == row.score
        assert float(line["normalised_ci_low"]) == row.normalised_low
        assert line["rank"] == str(row.rank)
    for table in robust:
        for row in table.rows:
            (line,) = [
                x for x in lines if (x["evaluation"], x["model"]) == (table.threat, row.model.name)
            ]
            assert float(line["robust_accuracy"]) == row.robust_accuracy

    text = (folder / "leaderboard.md").read_text()
    assert all(as_markdown(table) in text for table in scores)
    assert all(attacks_as_markdown(table) in text for table in robust)


@pytest.mark.usefixtures("no_drawing")
def test_the_page_shows_the_numbers_of_the_tables(stored: Path, page: Page) -> None:
    from raybench.reports.tables import number

    published = publish_stored(stored, None, "normalised", silent)
    for row in published.views[0].tables[0].rows:
        if row.normalised is not None:
            assert f"{number(row.score)} [{number(row.ci_low)}, {number(row.ci_high)}]" in (
                page.words
            )
    for table in published.views[1].tables:
        for row in table.rows:
            assert f"{100 * row.robust_accuracy:.1f} [{100 * row.robust_low:.1f}," in page.words


def test_every_model_has_a_card(written: Report) -> None:
    cards = sorted((written.page.parent / "cards").glob("*.md"))
    assert len(cards) == 3
    (card,) = [path.read_text() for path in cards if path.name.startswith("plain-adv-")]
    assert "`plain-adv`" in card
    assert "robust accuracy within linf 0.1 (%), by fgsm, square" in card
    assert "upper bound" in card
    assert "no guarantee" in card
    assert "raybench score" in card
    assert all(line.count(" | ") == 2 for line in card.splitlines() if line.startswith("| b"))


def test_the_same_results_give_the_same_bytes(written: Report, copy: Path) -> None:
    again = write_report(copy, None, "normalised", silent)
    old, new = written.page.parent, again.page.parent
    names = sorted(path.relative_to(old) for path in written.files)
    assert names == sorted(path.relative_to(new) for path in again.files)
    for name in names:
        assert (old / name).read_bytes() == (new / name).read_bytes(), name


@pytest.mark.usefixtures("no_drawing")
def test_what_is_no_more_leaves_the_report(copy: Path) -> None:
    stale = copy / "report" / "cards" / "gone.md"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    write_report(copy, None, "normalised", silent)
    assert not stale.exists()


def _keep(out: Path, family: str) -> None:
    for folder in find_folders(out):
        if (read_manifest(folder).measurement["family"] == "attack") != (family == "attack"):
            shutil.rmtree(folder)


@pytest.mark.usefixtures("no_drawing")
def test_scores_alone_make_a_page(copy: Path) -> None:
    _keep(copy, "lime")
    found = Page(write_report(copy, None, "normalised", silent).page.read_text())
    assert "Fig. 1" in found.words
    assert "Score against robust accuracy" not in found.words


@pytest.mark.usefixtures("no_drawing")
def test_attacks_alone_make_a_page(copy: Path) -> None:
    _keep(copy, "attack")
    found = Page(write_report(copy, None, "normalised", silent).page.read_text())
    assert "linf 0.02" in found.words
    assert "Fig. 1" not in found.words


@pytest.mark.usefixtures("no_drawing")
def test_a_damaged_manifest_is_told_first(copy: Path) -> None:
    folder = find_folders(copy)[0]
    (folder / "_manifest.json").write_text("{")
    said: list[str] = []
    found = Page(write_report(copy, None, "normalised", said.append).page.read_text())
    assert "is damaged" in said[0]
    assert "Before you read on" in found.words
    assert "raybench verify --repair" in found.words


@pytest.mark.usefixtures("no_drawing")
def test_a_lost_part_is_a_model_without_rank(copy: Path) -> None:
    folder = next(one for one in find_folders(copy) if "grid" in str(one))
    next(folder.glob("part-*.parquet")).unlink()
    found = Page(write_report(copy, None, "normalised", silent).page.read_text())
    assert "Not ranked: history and failures" in found.words
    assert "incomplete" in found.words


@pytest.mark.usefixtures("no_drawing")
def test_images_that_have_moved_leave_a_sentence(copy: Path, stored: Path) -> None:
    data = stored.parent / "data.npz"
    moved = data.rename(data.with_suffix(".moved"))
    try:
        found = Page(write_report(copy, None, "normalised", silent).page.read_text())
    finally:
        moved.rename(data)
    assert "Fig. 2: explanations" not in found.words
    assert "the images have moved" in found.words


@pytest.mark.usefixtures("no_drawing")
def test_the_command_prints_the_page(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(copy), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["page"] == str(copy / "report" / "index.html")
    assert all(Path(name).is_file() for name in printed["files"])


def test_a_folder_without_results_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert main(["report", str(folder)]) == 2
        assert "holds no results; expected a folder" in capsys.readouterr().err
        assert not (folder / "report").exists()


@pytest.mark.usefixtures("no_drawing")
def test_an_unknown_baseline_changes_nothing(copy: Path) -> None:
    assert main(["report", str(copy)]) == 0
    before = (copy / "report" / "index.html").read_bytes()
    assert main(["report", str(copy), "--baseline", "plane"]) == 2
    assert (copy / "report" / "index.html").read_bytes() == before
