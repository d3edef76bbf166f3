"""The page in a real browser, from disk: what a reader sees, and what must never happen."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ceval_suite.prepare import Selection, prepare
from ceval_suite.site.write import Wanted, build
from tests import browser as driver
from tests.site_runs import scripted

MODELS = {"qwen-tiny-a": 2.5, "qwen-tiny-b": 1.0, "llama-small": 0.2}
HARMFUL = "<script>window.broken = 1</script><img src=x onerror='window.broken = 1'> & \u2028 end"
MARKUP = "<b onmouseover=alert(1)>bold</b>"

EVIL = """
name: evil-exam
version: 1
title: "Evil <i>exam</i>"
language: en
source:
  layout: csv
  folder: evil
  bundled: true
  files: {dev: "dev/{subject}_dev.csv", test: "test/{subject}_test.csv"}
  columns: {question: 0, choices: [1, 2, 3, 4], answer: 5}
prompt: mmlu
shots: 1
shot_split: dev
split: test
average: micro
license: Apache-2.0
homepage: "https://example.invalid"
citation: "none"
subjects:
  attacks: {title: "attacks </script>", category: "<em>x</em>"}
"""

Open = Callable[..., Any]


def _exam(root: Path) -> None:
    folder = root / "tasks"
    for split in ("dev", "test"):
        (folder / "evil" / split).mkdir(parents=True)
    (folder / "evil-exam.yaml").write_text(EVIL, encoding="utf-8")
    row = f'"{HARMFUL}","{MARKUP}",two,three,four,A\n'
    (folder / "evil/dev/attacks_dev.csv").write_text(row, encoding="utf-8")
    (folder / "evil/test/attacks_test.csv").write_text(row * 3, encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if driver.executable() is None:
        why = "no Chromium here (Debian: apt-get install chromium)"
        if os.environ.get("CEVAL_SUITE_REQUIRE_DATA") == "1":
            pytest.fail(f"{why}, and CEVAL_SUITE_REQUIRE_DATA=1 says it must be there")
        pytest.skip(why)
    out = tmp_path_factory.mktemp("site")
    _exam(out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CEVAL_SUITE_PATH", str(out))
        for name in ("sample-mmlu", "sample-cmmlu", "sample-gaokao", "evil-exam"):
            prepared = prepare(name, Selection())
            for model, skill in MODELS.items():
                if (name, model) != ("sample-gaokao", "llama-small"):
                    scripted(prepared, out / "runs", model, skill)
        scripted(prepare("evil-exam", Selection()), out / "runs", "<img src=x> model", 0.0)
        return build([out / "runs"], out / "page", Wanted(title="Four exams"), lambda _: None)


@pytest.fixture(scope="module")
def chromium(page: Path) -> Iterator[Any]:
    with driver.launched() as browser:
        yield browser


@pytest.fixture
def show(chromium: Any, page: Path) -> Iterator[Open]:
    """Opens an address in a fresh profile; afterwards nothing may have been said or asked for."""
    trouble: list[str] = []
    contexts: list[Any] = []

    def asked(request: Any) -> None:
        if not request.url.startswith(page.parent.resolve().as_uri()):
            trouble.append(f"request to {request.url}")

    def show(hash: str = "#/", **options: Any) -> Any:
        options = {"locale": "en-GB", "viewport": {"width": 1280, "height": 900}} | options
        context = chromium.new_context(**options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(20_000)
        tab.on("console", lambda said: trouble.append(f"{said.type}: {said.text}"))
        tab.on("pageerror", lambda error: trouble.append(str(error)))
        tab.on("request", asked)
        tab.on("dialog", lambda dialog: (trouble.append("dialog"), dialog.dismiss()))
        tab.goto(page.resolve().as_uri() + hash)
        driver.ready(tab, hash)
        return tab

    yield show
    assert all(not tab.evaluate("window.broken") for c in contexts for tab in c.pages)
    for context in contexts:
        context.close()
    assert trouble == []


def site(page: Path) -> dict[str, Any]:
    text = (page.parent / "data" / "site.js").read_text(encoding="utf-8")
    found: Any = json.loads(f"[{text[len('CS.data(') : -3]}]")[1]
    return found


def key(page: Path, task: str) -> str:
    return next(one["key"] for one in site(page)["columns"] if one["task"] == task)


def go(tab: Any, hash: str) -> None:
    tab.evaluate("(hash) => { location.hash = hash; }", hash)
    driver.ready(tab, hash)


def texts(tab: Any, selector: str) -> list[str]:
    found: list[str] = tab.locator(selector).all_inner_texts()
    return found


VIEWS = ("#/", "#/subjects", "#/categories", "#/calibration", "#/items", "#/compare", "#/tables")


def test_every_view_opens_from_disk_without_a_word_on_the_console(show: Open) -> None:
    tab = show()
    for hash in VIEWS:
        go(tab, hash)
        assert tab.locator("h1").count() == 1
        assert tab.locator("[role=alert]").count() == 0
        assert not re.search(r"\b(null|undefined|NaN|Infinity)\b", tab.inner_text("main"))


def test_the_board_shows_every_model_with_interval_and_n(show: Open, page: Path) -> None:
    tab = show()
    assert set(texts(tab, "#board tbody th")) == {*MODELS, "<img src=x> model"}
    cells = texts(tab, "#board tbody td a")
    assert len(cells) == 3 * 4 - 1 + 1
    assert all(
        re.fullmatch(r"≈?\d+\.\d ±\d+\.\d\s+n = \d+( · rank.*)?(\n, .*)?", cell) for cell in cells
    )
    missing = texts(tab, "#board .missing")
    assert len(missing) == 4
    assert all(re.fullmatch(r"–\s+not run", cell) for cell in missing)


def test_the_board_sorts_by_any_column_and_missing_comes_last(show: Open, page: Path) -> None:
    tab = show()
    head = tab.locator("#board thead th").nth(1)
    place = [one["task"] for one in site(page)["columns"]].index("sample-gaokao") + 1
    head = tab.locator("#board thead th").nth(place)
    for order, reverse in (("descending", True), ("ascending", False)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        shown = [
            text.split()[0].lstrip("≈") for text in texts(tab, f"#board td:nth-child({place + 1})")
        ]
        numbers = [float(one) for one in shown if one != "–"]
        assert len(numbers) == 2
        assert numbers == sorted(numbers, reverse=reverse)
        assert shown[2:] == ["–", "–"]


def test_the_board_filters_by_language_category_and_family(show: Open) -> None:
    tab = show()

    def heads() -> list[str]:
        return texts(tab, "#board thead th b")

    tab.select_option("#by-language", "zh")
    tab.wait_for_function("() => document.querySelectorAll('#board thead b').length === 2")
    assert heads() == ["sample-cmmlu", "sample-gaokao"]
    tab.select_option("#by-language", "")
    tab.select_option("#by-category", "STEM")
    tab.wait_for_selector("h1:has-text('STEM')")
    assert "sample-mmlu" in heads()
    assert "sample-gaokao" not in heads()
    tab.select_option("#by-family", "qwen")
    tab.wait_for_function("() => document.querySelectorAll('#board tbody tr').length === 2")
    assert "family=qwen" in tab.url
    assert "category=STEM" in tab.url


def test_a_category_s_cell_is_the_category_s_number(show: Open, page: Path) -> None:
    column = next(one for one in site(page)["columns"] if one["task"] == "sample-mmlu")
    tab = show("#/?category=STEM")
    place = texts(tab, "#board thead th b").index("sample-mmlu") + 2
    row = tab.locator("#board tbody tr", has_text="qwen-tiny-a")
    value = column["cells"]["qwen-tiny-a"]["parts"]["STEM"][0]
    assert f"{100 * value:.1f}" in row.locator(f"td:nth-child({place})").inner_text()


def test_a_number_of_the_board_leads_to_its_items(show: Open, page: Path) -> None:
    tab = show()
    row = tab.locator("#board tbody tr", has_text="qwen-tiny-a")
    row.locator(f"td a[href*={key(page, 'sample-mmlu')}]").click()
    tab.wait_for_selector(".detail h2")
    assert tab.input_value("#model") == "qwen-tiny-a"
    assert tab.input_value("#filter") == "wrong"
    assert tab.locator(".answers tbody tr", has_text="qwen-tiny-a").locator(".wrong, .none").count()


def test_a_deep_link_opens_its_item_with_the_exact_prompt(show: Open, page: Path) -> None:
    prepared = prepare("sample-mmlu", Selection())
    item = prepared.scored()[7]
    tab = show(f"#/item/{key(page, 'sample-mmlu')}/{item.id}")
    assert texts(tab, ".id code") == [item.id]
    head = tab.locator(".shots pre").text_content()
    ask = tab.locator("#prompt").text_content()
    assert head + ask == prepared.renderer(item.subject).render(item).text
    assert "SHA-256" in tab.locator(".proof").inner_text()
    assert tab.locator(".choices li.gold b").inner_text() == item.answer[0]
    assert tab.locator(".answers tbody tr").count() == 3
    assert tab.locator(".answers tbody tr").first.locator(".bar").count() == 4


def test_an_item_that_is_not_there_is_said_not_to_be(show: Open, page: Path) -> None:
    tab = show(f"#/item/{key(page, 'sample-mmlu')}/sample-mmlu/test/nothing/0")
    assert "no item" in tab.locator(".detail .empty").inner_text()


def test_arrow_keys_go_through_the_list(show: Open, page: Path) -> None:
    tab = show(f"#/items/{key(page, 'sample-mmlu')}")
    ids = [tab.locator(".id code").inner_text()]
    for arrow in ("ArrowRight", "ArrowRight", "ArrowLeft"):
        count = tab.evaluate("CS.ready.length")
        tab.keyboard.press(arrow)
        tab.wait_for_function("(n) => CS.ready.length > n", arg=count)
        ids.append(tab.locator(".id code").inner_text())
    assert ids[1] == ids[3]
    assert len({*ids}) == 3
    assert "3 of 100" not in tab.locator(".steps").inner_text()
    assert "2 of 100" in tab.locator(".steps").inner_text()


@pytest.mark.parametrize("name", ["right", "wrong", "unanswered", "flipped"])
def test_a_filter_leaves_only_what_it_says(show: Open, page: Path, name: str) -> None:
    column = key(page, "sample-mmlu")
    tab = show(f"#/items/{column}?filter={name}")
    index = tab.evaluate(f"CS.load('c/{column}/index')")
    states = list(zip(*index["states"], strict=True))
    expected = {
        "right": lambda some: {*some} == {"r"},
        "wrong": lambda some: "r" not in some,
        "unanswered": lambda some: "u" in some,
        "flipped": lambda some: "r" in some and {*some} != {"r"},
    }[name]
    count = sum(expected(some) for some in states)
    assert f"{count} of 100 items" in tab.locator(".count").inner_text()
    shown = texts(tab, ".list .states")[:10]
    sign = {"r": "✓", "w": "✗", "u": "?"}
    all_signs = {"".join(sign[s] for s in some) for some in states if expected(some)}
    assert {"".join(re.findall("[✓✗?]", one)) for one in shown} <= all_signs


def test_only_the_rows_that_are_seen_are_drawn(show: Open, page: Path) -> None:
    tab = show(f"#/items/{key(page, 'sample-mmlu')}")
    rows = tab.locator(".list .tabulator-row").count()
    assert 10 < rows < 80
    assert tab.locator(".list").bounding_box()["height"] < 900


def test_items_sort_by_margin(show: Open, page: Path) -> None:
    tab = show(f"#/items/{key(page, 'sample-mmlu')}?sort=margin&model=llama-small")
    cells = texts(tab, ".list .tabulator-row [tabulator-field=margin]")
    margins = [float(one.replace("−", "-").replace("±", "")) for one in cells]
    assert len(margins) > 5
    assert margins == sorted(margins)


def test_search_finds_what_stands_in_questions_and_choices(show: Open, page: Path) -> None:
    prepared = prepare("sample-mmlu", Selection())
    word = "water"
    expected = [
        item.id
        for item in prepared.scored()
        if word in " ".join([item.id, item.question, *item.choices]).lower()
    ]
    tab = show(f"#/items/{key(page, 'sample-mmlu')}")
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    tab.keyboard.type(word.upper())
    tab.wait_for_function(
        "(n) => document.querySelector('.count').textContent.startsWith(`${n} of`)",
        arg=len(expected),
    )
    assert tab.locator(".id code").inner_text() in expected
    assert 0 < len(expected) < 100


def test_the_language_is_chosen_and_remembered(show: Open) -> None:
    tab = show()
    assert tab.evaluate("document.documentElement.lang") == "en"
    tab.click("#language")
    tab.wait_for_selector("h1:has-text('排行榜')")
    assert tab.evaluate("document.documentElement.lang") == "zh-CN"
    tab.reload()
    driver.ready(tab, "#/")
    assert tab.locator("h1").inner_text() == "排行榜"


def test_a_chinese_reader_gets_chinese(show: Open) -> None:
    assert show("#/", locale="zh-CN").locator("h1").inner_text() == "排行榜"


def test_the_theme_follows_the_system_is_chosen_and_remembered(show: Open) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    dark, light = show("#/", color_scheme="dark"), show("#/", color_scheme="light")
    night, day = dark.evaluate(paper), light.evaluate(paper)
    assert night != day
    light.click("#theme")
    assert light.evaluate(paper) == night
    light.reload()
    driver.ready(light, "#/")
    assert light.evaluate(paper) == night


def test_compare_shows_difference_interval_p_and_flips(show: Open, page: Path) -> None:
    column = key(page, "sample-mmlu")
    a, b = "llama-small", "qwen-tiny-a"
    tab = show(f"#/compare/{column}/{a}/{b}")
    row = tab.locator(".differences tbody tr", has_text="sample-mmlu")
    assert re.search(r"▲ \+\d+\.\d\s+\+\d+\.\d … \+\d+\.\d", row.inner_text())
    index = tab.evaluate(f"CS.load('c/{column}/index')")
    models = sorted(MODELS)
    one, two = (index["states"][models.index(name)] for name in (a, b))
    fixed = sum(x != "r" and y == "r" for x, y in zip(one, two, strict=True))
    broke = sum(x == "r" and y != "r" for x, y in zip(one, two, strict=True))
    cells = [text.strip() for text in row.locator("td").all_inner_texts()]
    assert cells[-3:-1] == [str(fixed), str(broke)]
    matrix = [
        text
        for line in tab.locator("#matrix tbody tr").all()
        for text in line.locator("td").all_inner_texts()
    ]
    numbers = [int(text) for text in matrix if text != "–"]
    assert sum(numbers) == 100
    assert matrix[2] == str(broke)
    assert matrix[3] == str(fixed)


def test_fixed_items_lead_into_the_browser_among_their_likes(show: Open, page: Path) -> None:
    tab = show(f"#/compare/{key(page, 'sample-mmlu')}/llama-small/qwen-tiny-a")
    count = int(re.findall(r"\d+", tab.locator("section:has(#fixed) h3").inner_text())[0])
    tab.locator("#fixed .tabulator-row a").first.click()
    tab.wait_for_selector(".detail h2")
    assert f"1 of {count}" in tab.locator(".steps").inner_text()


def test_swapping_turns_the_signs(show: Open, page: Path) -> None:
    column = key(page, "sample-mmlu")

    def difference(a: str, b: str) -> str:
        go(tab, f"#/compare/{column}/{a}/{b}")
        row = tab.locator(".differences tbody tr", has_text="sample-mmlu")
        return str(row.locator("td .value").inner_text())[2:]

    tab = show()
    there = difference("llama-small", "qwen-tiny-a")
    assert difference("qwen-tiny-a", "llama-small") == there.replace("+", "−")


def test_markup_in_questions_choices_models_and_titles_stays_text(show: Open, page: Path) -> None:
    tab = show(f"#/item/{key(page, 'evil-exam')}/evil-exam/test/attacks/0")
    assert tab.locator(".question").inner_text().startswith("<script>window.broken")
    assert MARKUP in tab.locator(".choices").inner_text()
    assert HARMFUL[:20] in tab.locator("#prompt").text_content()
    assert "<img src=x> model" in tab.locator(".answers").inner_text()
    assert tab.locator("main script, main img, main em, main i i").count() == 0
    for hash in VIEWS:
        column = f"/{key(page, 'evil-exam')}" if hash not in ("#/", "#/tables") else ""
        go(tab, hash + column)
        assert tab.locator("main script, main img, main b[onmouseover]").count() == 0
    assert not tab.evaluate("window.broken")


def test_charts_are_drawn_and_each_says_its_numbers_as_a_table(show: Open, page: Path) -> None:
    tab = show(f"#/categories/{key(page, 'sample-mmlu')}")
    assert tab.locator("figure svg").count() == 2
    assert all(tab.locator("figure .chart").nth(k).get_attribute("aria-label") for k in (0, 1))
    assert tab.locator("figure details table tbody tr").count() == 3
    go(tab, f"#/calibration/{key(page, 'sample-mmlu')}")
    assert tab.locator("figure svg").count() >= 1


def test_the_heat_map_s_numbers_lead_to_the_subject(show: Open, page: Path) -> None:
    tab = show(f"#/subjects/{key(page, 'sample-mmlu')}")
    assert tab.locator("#heat tbody tr").count() == 5
    tab.locator("#heat td a").first.click()
    tab.wait_for_selector(".detail h2")
    assert tab.input_value("#subject")
    assert "20 of 100 items" in tab.locator(".count").inner_text()


def test_sub_questions_lead_to_one_another(show: Open, page: Path) -> None:
    column = key(page, "sample-gaokao")
    tab = show(f"#/items/{column}")
    ids = tab.evaluate(f"CS.load('c/{column}/index').then((index) => index.ids)")
    first = next(id for id in ids if id.endswith("#0"))
    go(
        tab,
        tab.evaluate("([c, id]) => CS.itemAddress(c, id)", [column, f"sample-gaokao/test/{first}"]),
    )
    assert tab.locator(".siblings a").count() > 1
    tab.locator(".siblings a").nth(1).click()
    tab.wait_for_function("() => document.querySelector('.id code').textContent.endsWith('#1')")


def test_everything_has_a_name_for_those_who_cannot_see_it(show: Open) -> None:
    tab = show()
    named = "button, a, input, select, [role=img], table"
    nameless = (
        f"() => [...document.querySelectorAll('{named}')]"
        """
      .filter((e) => e.offsetParent !== null && !e.closest('.tabulator'))
      .filter((e) => !(e.getAttribute('aria-label') || e.textContent || e.title
        || (e.labels && e.labels.length) || (e.caption && e.caption.textContent)))
      .map((e) => e.outerHTML)"""
    )
    ids = """() => { const all = [...document.querySelectorAll('[id]')].map((e) => e.id);
      return all.filter((id, k) => all.indexOf(id) !== k); }"""
    for hash in VIEWS:
        go(tab, hash)
        assert tab.evaluate(nameless) == []
        assert tab.evaluate(ids) == []
        assert tab.locator("main").count() == 1
        assert tab.locator("nav a[aria-current=page]").count() == 1
        scopes = tab.locator("main table th:not([scope])").count()
        assert scopes == 0


CONTRAST = r"""() => {
  const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return [...n, 1].slice(0, 4); };
  const over = (top, under) =>
    [0, 1, 2].map((k) => top[k] * top[3] + under[k] * (1 - top[3])).concat(1);
  const lum = (c) => c.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const behind = (e) => {
    const chain = [];
    for (let at = e; at; at = at.parentElement) {
      chain.unshift(parse(getComputedStyle(at).backgroundColor));
    }
    return chain.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const left_out = 'svg, .hidden, .off, [aria-hidden=true], select, option';
  const bad = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.offsetParent === null || e.closest(left_out)) continue;
    const back = behind(e);
    const style = getComputedStyle(e);
    const [r, g, b, alpha] = parse(style.color);
    const [x, y] = [lum(over([r, g, b, alpha * Number(style.opacity)], back)), lum(back)];
    const ratio = (Math.max(x, y) + 0.05) / (Math.min(x, y) + 0.05);
    if (ratio < 4.5) bad.push([ratio, e.className, e.textContent.slice(0, 30)]);
  }
  return bad;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_what_is_behind_it(show: Open, scheme: str) -> None:
    tab = show("#/", color_scheme=scheme)
    for hash in VIEWS:
        go(tab, hash)
        assert tab.evaluate(CONTRAST) == [], hash


def test_the_keyboard_reaches_content_and_sorting(show: Open) -> None:
    tab = show()
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "skip"
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert tab.evaluate(outline) != "none"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    tab.locator("#board thead button").nth(1).focus()
    tab.keyboard.press("Enter")
    assert tab.locator("#board thead th").nth(1).get_attribute("aria-sort") == "ascending"
    assert "Sorted" in tab.locator("#live").inner_text()


def test_a_narrow_screen_never_scrolls_sideways(show: Open) -> None:
    tab = show("#/", viewport={"width": 360, "height": 740})
    for hash in VIEWS:
        go(tab, hash)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360, hash


def test_print_leaves_the_controls_out_and_is_light(show: Open) -> None:
    tab = show("#/", color_scheme="dark")
    tab.emulate_media(media="print")
    assert not tab.locator("#by-language").is_visible()
    assert not tab.locator("#nav").is_visible()
    assert tab.locator("#board").is_visible()
    assert tab.evaluate("getComputedStyle(document.documentElement).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


def test_a_lost_data_file_is_named_and_the_page_stays(
    chromium: Any, page: Path, tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(page.parent, tmp_path / "copy"))
    (copy / "data" / "pairs.js").unlink()
    tab = chromium.new_page(locale="en-GB")
    tab.goto((copy / "index.html").as_uri() + "#/compare")
    tab.wait_for_selector("[role=alert]")
    assert "data/pairs.js" in tab.locator("[role=alert]").inner_text()
    tab.evaluate("location.hash = '#/'")
    tab.wait_for_selector("#board")
    tab.close()


def test_the_first_view_loads_no_items_and_no_charts(show: Open, page: Path) -> None:
    tab = show()
    time.sleep(0.2)
    loaded = tab.evaluate("[...document.scripts].map((s) => s.src.split('/').pop())")
    assert not {"echarts.min.js", "tabulator.min.js", "index.js", "t0.js"} & {*loaded}
