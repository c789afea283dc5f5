"""The demo in a real Chromium: clicks, uploads, keyboard, a phone, accessibility, no console error.

With `CLIP_ITALIAN_SCREENSHOTS` naming a folder, pictures of the pages are put there for people.
"""

import os
import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from clip_italian.demo.words import ENGLISH, ITALIAN
from tests.pictures import png_bomb

pytestmark = pytest.mark.browser
QUERY = "una stella blu"
PATIENCE = 10_000  # milliseconds, on a busy machine


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium, address):
    """(path, options of the browser) → page; at the end it must have said nothing wrong."""
    contexts, wrong = [], []

    def opened(path="/", **options):
        context = chromium.new_context(**{"viewport": {"width": 1200, "height": 900}, **options})
        context.set_default_timeout(PATIENCE)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: None if expected(m) else wrong.append(m.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else
                wrong.append(f"left the server: {r.url}"))  # fmt: skip
        page.goto(address + path)
        page.get_by_role("tab").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def expected(message):
    """Whether a line of the console is no error, or what gradio writes of a refused upload."""
    refused = "/gradio_api/upload" in message.location["url"] or message.text == "Response"
    return message.type != "error" or refused


@pytest.fixture
def page(open_page):
    return open_page()


def keep(page, name):
    """A picture of the whole page for people, where they want one."""
    folder = os.environ.get("CLIP_ITALIAN_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def search(page, text, words=ITALIAN):
    # Random towers find nearly all pictures alike, so that hardly any would be left.
    page.get_by_label(words.fold).uncheck()
    page.get_by_label(words.query).locator("visible=true").fill(text)
    page.get_by_role("button", name=words.search, exact=True).click()


def remark(page, text):
    """Waits until the page says so."""
    page.get_by_text(text).locator("visible=true").first.wait_for()


def go_to(page, tab):
    page.get_by_role("tab", name=tab).click()


def put(page, path):
    """Gives a file to the upload field that is to be seen."""
    panel = page.locator('[role="tabpanel"]:visible')
    panel.locator('input[type="file"]').first.set_input_files(path)


def panel(page):
    return page.locator('[role="tabpanel"]:visible')


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (120, 60), "blue").save(path)
    return path


def test_a_text_finds_pictures_and_a_picture_finds_others(page):
    search(page, QUERY)
    remark(page, "12 immagini per «una stella blu»")
    buttons = page.locator("ol.found button")
    assert buttons.count() == 12
    keep(page, "search")
    name = buttons.nth(2).get_attribute("aria-label")
    buttons.nth(2).click()
    remark(page, "immagini simili a")
    first = page.locator("ol.found button").first
    assert first.get_attribute("aria-label") == name, "a picture is most like itself"


def test_remarks_are_said_by_screen_readers(page):
    """They speak when a region changes that is on the page already, not when one comes in."""
    region = panel(page).locator("[role=status][aria-live=polite]")
    region.wait_for(state="attached")  # exactly one, else Playwright refuses
    region.evaluate("node => { node.marked = true; }")
    for text in ("", QUERY):
        search(page, text)
        said = "Scrivi prima qualche parola" if not text else "12 immagini per"
        panel(page).locator("[role=status]", has_text=said).wait_for()
        assert region.evaluate("node => node.marked"), "the same region"


def test_examples_fill_in_the_query(page):
    page.locator(".examples button:visible").first.click()
    page.wait_for_function("document.querySelector('textarea').value.length > 5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Scrivi prima qualche parola"),
        ("???", "non contiene parole"),
        ("a red square on the beach", "Sembra inglese"),
        ("blu " * 50, "il modello legge solo i primi"),
        ("<img src=x onerror=alert(1)> {{constructor}} ${alert(1)}", "immagini per «<img"),
    ],
)
def test_odd_texts_get_a_helpful_line(page, text, said):
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    search(page, text)
    remark(page, said)


def test_candidates_get_bars(page, photo):
    go_to(page, ITALIAN.image_to_text)
    put(page, photo)
    panel(page).locator(".picture img").wait_for()
    panel(page).get_by_role("button", name=ITALIAN.classify).click()
    remark(page, "softmax dei coseni")
    panel(page).get_by_text("%").first.wait_for()
    keep(page, "classify")


def test_the_heat_map_is_seen(page, photo):
    go_to(page, ITALIAN.where)
    panel(page).locator("ul.choices button").nth(1).click()
    panel(page).get_by_label(ITALIAN.phrase).fill(QUERY)
    for method in (ITALIAN.tokens, ITALIAN.occlusion):
        panel(page).get_by_label(method).check()
        panel(page).get_by_role("button", name=ITALIAN.locate, exact=True).click()
        remark(page, "Mappa di calore di «una stella blu»")
        heat = panel(page).locator(".picture img").last
        heat.wait_for()
        colors = heat.evaluate(
            """async image => {
                await image.decode();
                const canvas = document.createElement('canvas');
                canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
                const context = canvas.getContext('2d');
                context.drawImage(image, 0, 0);
                const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(Array.from({length: data.length / 4},
                    (_, i) => `${data[4*i]>>4},${data[4*i+1]>>4},${data[4*i+2]>>4}`)).size;
            }"""
        )
        assert colors > 10, "a map of one colour says nothing"
    keep(page, "where")


def test_two_models_side_by_side(page):
    go_to(page, ITALIAN.compare)
    panel(page).get_by_label(ITALIAN.query).fill(QUERY)
    panel(page).get_by_role("button", name=ITALIAN.compare_search).click()
    remark(page, "immagini in comune")
    assert panel(page).locator("ol.found").count() == 2
    keep(page, "compare")


def hostile(folder):
    """Name → contents of a file, and what the page says of it."""
    large = b"\xff\xd8\xff" + b"\0" * 50_000_000
    return {
        "bomb.png": (png_bomb(), ITALIAN.too_many_pixels[:12]),
        "page.jpg": (b"<!DOCTYPE html><html></html>", ITALIAN.no_image),
        "empty.png": (b"", ITALIAN.empty_file),
        "drawing.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', ITALIAN.svg),
        "large.jpg": (large, "exceed the maximum allowed size"),
        "text.exe": (b"MZ\x90\0 no picture", ITALIAN.no_image),
    }


@pytest.mark.parametrize("name", hostile(None))
def test_hostile_uploads_are_refused_with_a_line(page, tmp_path, name):
    data, said = hostile(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(data)
    go_to(page, ITALIAN.image_to_text)
    put(page, path)
    page.get_by_text(re.compile(re.escape(said))).locator("visible=true").first.wait_for()
    keep(page, f"refused-{path.stem}")
    # The page goes on working.
    go_to(page, ITALIAN.text_to_image)
    search(page, QUERY)
    remark(page, "12 immagini per")


def test_a_picture_under_a_wrong_name_is_taken(page, photo):
    go_to(page, ITALIAN.image_to_text)
    put(page, photo.rename(photo.with_name("photo.txt")))
    panel(page).locator(".picture img").wait_for()


def test_all_is_done_by_keyboard_alone(page):
    page.get_by_label(ITALIAN.query).locator("visible=true").focus()
    page.keyboard.type(QUERY)
    page.keyboard.press("Enter")
    remark(page, "immagini per")
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('ol.found button')"):
            break
    else:
        raise AssertionError("no picture was reached by the Tab key")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus must be seen"
    page.keyboard.press("Enter")
    remark(page, "immagini simili a")
    page.get_by_role("tab", name=ITALIAN.text_to_image).focus()
    for key in ("Tab", "Enter"):
        page.keyboard.press(key)
    assert panel(page).get_by_role("button", name=ITALIAN.classify).is_visible()


def test_on_a_phone_nothing_sticks_out(open_page):
    page = open_page(viewport={"width": 375, "height": 700}, has_touch=True, is_mobile=True)
    search(page, QUERY)
    remark(page, "12 immagini per")
    first, second = (page.locator("ol.found li").nth(place).bounding_box() for place in (0, 1))
    assert first["y"] == second["y"], "the second picture is not beside the first"
    for number, tab in enumerate((None, ITALIAN.image_to_text, ITALIAN.where, ITALIAN.compare)):
        if tab:
            open_on_phone(page, tab)
        if tab in (ITALIAN.image_to_text, ITALIAN.where):
            panel(page).locator("ul.choices button").first.click()
            panel(page).locator("figure.picture img").first.wait_for()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 375, f"{tab} is {width} pixels wide"
        keep(page, f"phone-{number}")


def open_on_phone(page, tab):
    """Where a tab has no room it is in a menu behind three dots."""
    if not page.get_by_role("tab", name=tab).is_visible():
        page.locator(".overflow-menu > button").click()
        page.locator(".overflow-dropdown").get_by_text(tab).click()


def test_english_has_its_own_page(open_page):
    page = open_page("/en")
    assert page.evaluate("document.documentElement.lang") == "en"
    search(page, QUERY, ENGLISH)
    remark(page, "12 pictures for “una stella blu”")
    keep(page, "english")
    page.get_by_role("link", name="In italiano").click()
    page.get_by_label(ITALIAN.query).locator("visible=true").wait_for()
    page.wait_for_function("document.documentElement.lang == 'it'")


@pytest.mark.parametrize("path", ["/", "/en"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(open_page, photo, path, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    words = ITALIAN if path == "/" else ENGLISH
    page = open_page(path, color_scheme=scheme)
    search(page, QUERY, words)
    page.locator("ol.found li").first.wait_for()
    faults = {}
    for number in range(4):
        page.get_by_role("tab").nth(number).click()
        if number in (1, 2):
            panel(page).locator("ul.choices button").first.click()
            panel(page).locator(".picture img").wait_for()
        if number == 2:
            panel(page).get_by_label(words.phrase).fill(QUERY)
        if number in (1, 2):
            verb = words.classify if number == 1 else words.locate
            panel(page).get_by_role("button", name=verb, exact=True).click()
            panel(page).locator("[role=status] p").first.wait_for()
            page.wait_for_timeout(1000)
        for fault in axe.run(page).response["violations"]:
            if fault["impact"] in ("serious", "critical"):
                faults[fault["id"], number] = [node["html"][:200] for node in fault["nodes"]]
        keep(page, f"axe-{words.language}-{scheme}-{number}")
    assert faults == {}
