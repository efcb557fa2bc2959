"""The built book in a real browser: it needs no other host, can be searched, read on a phone and by keyboard, and its
figures move. Looks at `_build/html`; `make book` makes it."""

from __future__ import annotations

import functools
import importlib.resources
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

import pytest

SITE = Path(__file__).resolve().parent.parent / "_build" / "html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="no built book: make book")
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and os.environ.get("TPGM_BROWSER")),
    reason="minutes in a browser: make site-test, which needs chromium and chromedriver",
)

PAGES = sorted(p.relative_to(SITE).as_posix() for p in SITE.rglob("*.html") if "_static" not in p.parts)
# those that a reader reads; the others are indices that Sphinx makes
CHAPTERS = [page for page in PAGES if page.startswith(("book/", "notebooks/"))]
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-dev-shm-usage",
)  # fmt: skip


class Reader(HTMLParser):
    """Links, anchors, images and what a page fetches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.fetched: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.anchors |= {value for key in ("id", "name") if (value := given.get(key))}
        if tag == "a" and (href := given.get("href")):
            self.links.append(href)
        if tag == "img":
            self.images.append(given)
        source = given.get("src") or (given.get("href") if tag == "link" else None)
        if source and given.get("rel") not in ("canonical", "next", "prev", "index", "search", "author", "genindex"):
            self.fetched.append(source)


@functools.cache
def page(name: str) -> Reader:
    return Reader((SITE / name).read_text(encoding="utf8"))


# --- without a browser


def test_internal_links_and_anchors_resolve() -> None:
    broken = []
    for name in PAGES:
        for link in page(name).links:
            target, anchor = urldefrag(urljoin(f"site:///{name}", link))
            parts = urlparse(target)
            if parts.scheme != "site":
                continue
            path = unquote(parts.path).lstrip("/") or name
            if not (SITE / path).is_file():
                broken.append(f"{name}: {link}")
            elif anchor and path.endswith(".html") and unquote(anchor) not in page(path).anchors:
                broken.append(f"{name}: {link} (no such anchor)")
    assert not broken


def test_images_say_what_they_show() -> None:
    silent = [
        f"{name}: {image.get('src')}"
        for name in PAGES
        for image in page(name).images
        if not (image.get("alt") or "").strip() or re.search(r"_images/|\.(png|svg)$", image["alt"] or "")
    ]
    assert not silent


def test_nothing_is_fetched_from_another_host() -> None:
    foreign = [f"{name}: {s}" for name in PAGES for s in page(name).fetched if re.match(r"(https?:)?//", s)]
    assert not foreign


def test_every_page_says_what_it_is_about() -> None:
    silent = []
    for name in CHAPTERS:
        text = (SITE / name).read_text(encoding="utf8")
        about = re.findall(r'<meta (?:name="description"|property="og:\w+") content="([^"]+)"/>', text)
        if len(about) < 5 or len(about[0]) < 20 or any("not set" in said for said in about):
            silent.append(name)
    assert not silent


def test_the_page_for_what_does_not_exist_leads_back() -> None:
    text = (SITE / "404.html").read_text(encoding="utf8")
    assert 'href="book/index.html"' in text
    assert not re.search(r'(src|href)="(_static|https?:)', text), "it is shown at any depth, and offline"


def test_download_source_gives_the_chapter_without_outputs() -> None:
    for name in CHAPTERS:
        (link,) = {urljoin(f"/{name}", link) for link in page(name).links if "_sources/" in link}
        source = SITE / link.lstrip("/")
        assert source.suffix == (".ipynb" if name.startswith("notebooks/") else ".md")
        assert '"output_type"' not in source.read_text(encoding="utf8")


def test_a_page_loads_only_what_it_uses() -> None:
    for name in CHAPTERS:
        text = (SITE / name).read_text(encoding="utf8")
        loaded = {script: any(script in source for source in page(name).fetched) for script in (
            "figures.js", "schematic.js", "mathjax", "plotly")}  # fmt: skip
        assert loaded == {
            "figures.js": "tpgm-figure" in text,
            "schematic.js": 'id="schematic"' in text,
            "mathjax": 'class="math' in text,
            "plotly": False,
        }, name


def test_the_site_is_lighter_than_it_was() -> None:
    """28.7 MB, and 1.5 MB of icons on each page, before."""
    assert not list(SITE.rglob("*.map"))
    assert (SITE / "_static" / "scripts" / "fontawesome.js").stat().st_size < 200_000
    weight = sum(path.stat().st_size for path in SITE.rglob("*") if path.is_file())
    assert weight < 22_000_000


def test_every_icon_of_a_page_is_in_the_script() -> None:
    script = (SITE / "_static" / "scripts" / "fontawesome.js").read_text(encoding="utf8")
    drawn = set(re.findall(r'"?([a-z0-9-]+)"?:\[\d+,\d+,\[[^\]]*\],"[0-9a-f]+","M', script))
    others = {
        n
        for found in re.findall(r'\[\d+,\d+,\[([^\]]+)\],"[0-9a-f]+","M', script)
        for n in re.findall(r'"(.+?)"', found)
    }
    asked = {icon for name in CHAPTERS for icon in re.findall(r"\bfa-([a-z-]+)", (SITE / name).read_text("utf8"))}
    assert "magnifying-glass" in asked
    assert asked - {"solid", "brands", "regular", "lg"} <= drawn | others


# --- in the browser


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(SITE))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_script_timeout(60)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


def wait(browser: Any, condition: Callable[[Any], Any], seconds: float = 20) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(condition)


def size(browser: Any, width: int, height: int = 800) -> None:
    """The viewport, also narrower than a window may be."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def figures(browser: Any) -> int:
    """Scroll to each of the page's interactive figures and wait until it is drawn; how many there are."""
    holders = browser.find_elements("css selector", ".tpgm-figure")
    for holder in holders:
        browser.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", holder)
        wait(browser, lambda _, holder=holder: holder.find_elements("css selector", ".tpgm-controls"))
    return len(holders)


@in_browser
def test_no_request_to_another_host_and_no_error(browser: Any, address: str) -> None:
    size(browser, 1200)
    browser.get_log("performance")
    for name in CHAPTERS:
        browser.get(address + name)
        figures(browser)
    foreign = {
        url
        for entry in browser.get_log("performance")
        for url in re.findall(r'"url":"(https?://[^"]+)"', entry["message"])
        if "Network.requestWillBeSent" in entry["message"] and not url.startswith(address)
    }
    assert not foreign
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not severe


@in_browser
@pytest.mark.parametrize("name", CHAPTERS)
def test_fits_a_phone(browser: Any, address: str, name: str) -> None:
    size(browser, 360)
    browser.get(address + name)
    figures(browser)
    too_wide = browser.execute_script(
        """
        const width = document.documentElement.clientWidth;
        if (document.scrollingElement.scrollWidth <= width) return [];
        const scrolls = (e) => { for (; e; e = e.parentElement)
          if (["auto", "scroll", "hidden"].includes(getComputedStyle(e).overflowX)) return true; return false; };
        return [...document.querySelectorAll("body *")]
          .filter((e) => e.getBoundingClientRect().right > width + 1 && !scrolls(e.parentElement))
          .map((e) => e.outerHTML.slice(0, 120)).slice(0, 5).concat(`page ${document.scrollingElement.scrollWidth}`);
        """
    )
    assert not too_wide


AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {runOnly: {type: 'tag', values: ['wcag2a', 'wcag2aa']}}).then(
  (found) => done(found.violations.filter((v) => ['serious', 'critical'].includes(v.impact)).map(
    (v) => v.id + ': ' + v.nodes.length + ' x, as ' + v.nodes.slice(0, 3).map(
      (n) => n.html.slice(0, 160) + ' ' + (n.any[0] ? n.any[0].message : '')).join(' | '))),
  (error) => done([String(error)]));
"""


@in_browser
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", CHAPTERS)
def test_axe_finds_nothing_serious(browser: Any, address: str, name: str, theme: str) -> None:
    pytest.importorskip("axe_core_python", reason="needs axe-core-python")
    axe = (importlib.resources.files("axe_core_python") / "axe.min.js").read_text(encoding="utf8")
    size(browser, 1200)
    browser.get(address + name)
    browser.execute_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    browser.refresh()
    assert browser.execute_script("return document.documentElement.dataset.theme") == theme
    figures(browser)
    browser.execute_script(axe)
    assert browser.execute_async_script(AXE) == []


@in_browser
def test_search_finds_a_chapter(browser: Any, address: str) -> None:
    size(browser, 1200)
    browser.get(f"{address}search.html?q=projection")
    # results come one after the other
    wait(browser, lambda b: b.find_elements("css selector", "#search-results ul.search a[href*='02_projections.html']"))
    browser.get(f"{address}search.html?q=how+to+use+on+my+own+data")
    first = "#search-results ul.search li:first-child a[href*='five_minutes.html']"
    wait(browser, lambda b: b.find_elements("css selector", first))
    browser.get(f"{address}search.html?q=zzzqqq")
    wait(browser, lambda b: "did not match any documents" in b.find_element("id", "search-results").text)


WITH_FIGURES = [n for n in CHAPTERS if "tpgm-figure" in (SITE / n).read_text(encoding="utf8")]


@in_browser
@pytest.mark.parametrize("name", WITH_FIGURES)
def test_a_figures_slider_changes_it_by_keyboard(browser: Any, address: str, name: str) -> None:
    from selenium.webdriver.common.keys import Keys

    size(browser, 1200)
    browser.get(address + name)
    assert figures(browser)
    state = "return JSON.stringify([...arguments[0].data].map((t) => [t.x, t.y, t.z, t.visible]))"
    for holder in browser.find_elements("css selector", ".tpgm-figure"):
        (plot,) = holder.find_elements("css selector", ".js-plotly-plot")
        sliders = holder.find_elements("css selector", "input[type=range]")
        assert sliders, "an interactive figure has something to move"
        buttons = holder.find_elements("css selector", "button:not([aria-pressed=true])")
        for control, key in [(slider, Keys.ARROW_LEFT) for slider in sliders] + [(b, Keys.ENTER) for b in buttons]:
            before = browser.execute_script(state, plot)
            control.send_keys(key)
            wait(browser, lambda b, plot=plot, old=before: b.execute_script(state, plot) != old, 10)
        assert sliders[0].get_attribute("aria-label")
        assert sliders[0].get_attribute("aria-valuetext")


@in_browser
def test_plotly_is_fetched_only_when_a_figure_comes_near(browser: Any, address: str) -> None:
    fetched = "return performance.getEntriesByType('resource').some((e) => e.name.includes('plotly'))"
    size(browser, 1200, 600)
    for name in ("book/index.html", "notebooks/03_ratios.html"):
        browser.get(address + name)
        assert not browser.execute_script(fetched), name
    assert figures(browser)
    assert browser.execute_script(fetched)


@in_browser
def test_the_schematic_moves_by_keyboard_and_by_pointer(browser: Any, address: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    size(browser, 1200)
    browser.get(f"{address}book/index.html")
    handles = browser.find_elements("css selector", "#schematic [role=slider]")
    assert len(handles) == 6, "weights and radius of three layers"
    assert all(handle.get_attribute("tabindex") == "0" and handle.accessible_name for handle in handles)
    (radius,) = browser.find_elements("css selector", "#schematic .layer:nth-of-type(1) .radius")
    (ratio,) = browser.find_elements("css selector", "#schematic .layer:nth-of-type(1) .ratio:last-of-type")
    before = ratio.text
    radius.send_keys(Keys.END)
    assert ratio.text == "ratio 1.00" != before
    assert radius.get_attribute("aria-valuetext") == "ratio 1.00: inside its ball"
    radius.send_keys(Keys.HOME)
    narrow = ratio.text
    assert float(narrow.split()[1]) < 0.1
    hit = radius.find_element("css selector", ".hit")
    ActionChains(browser).move_to_element(hit).click_and_hold().move_by_offset(-30, 10).release().perform()
    assert ratio.text != narrow


@in_browser
def test_the_schematic_stands_still_without_scripts(browser: Any, address: str) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(f"{address}book/index.html")
        assert len(browser.find_elements("css selector", "#schematic .ball")) == 3
        assert not browser.find_element("css selector", ".schematic-hint").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@in_browser
def test_the_first_tab_stops_lead_into_the_page(browser: Any, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    size(browser, 1200)
    browser.get(address + "book/use_it.html")
    browser.find_element("tag name", "body").send_keys(Keys.TAB)
    focused = browser.switch_to.active_element
    assert focused.get_attribute("textContent") == "Skip to main content"
    focused.send_keys(Keys.ENTER)
    assert browser.current_url.endswith("#main-content")
