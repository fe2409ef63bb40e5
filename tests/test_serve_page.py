"""The served page in a real Chromium, by mouse and keyboard, narrow and dark; skipped without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from verydeep import retrieval

from .browsing import GIVEN, watched
from .served import PHOTO, Server, jpeg
from .tiny import NAMES, model_file, photo, tiny

TOKEN = "a-token-of-mine"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("page")
    model_file(folder / "m.safetensors", tiny("vgg16"), threshold=1.0)
    for seed in range(3):
        photo(folder / "photos" / f"{seed}.png", seed=seed)
    retrieval.features([folder / "photos"], folder / "index.npz", model=folder / "m.safetensors")
    (folder / "a.jpg").write_bytes(PHOTO)
    (folder / "b.jpg").write_bytes(jpeg(1, 40, 40))
    (folder / "no.jpg").write_text("no photo at all")
    return folder


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Server]:
    words = ("--model", place / "m.safetensors", "--index", place / "index.npz", "--token", TOKEN)
    running = Server(*words)
    yield running
    running.process.kill()
    running.process.communicate()


def opened(browser: Any, server: Server, **look: Any) -> Any:
    """The page, past its question for the token."""
    page = watched(browser, server.url, **look)
    page.goto(server.url)
    page.get_by_label("This server asks for its token").fill("nonsense")
    page.get_by_role("button", name="Go on").click()
    page.get_by_role("alert").filter(has_text="the token is not the right one").wait_for()
    page.get_by_label("This server asks for its token").fill(TOKEN)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="The network", exact=True).wait_for()
    return page


def test_a_photo_is_looked_at(browser: Any, server: Server, place: Path) -> None:
    page = opened(browser, server, viewport={"width": 1300, "height": 900})
    page.locator("#one input").set_input_files(place / "no.jpg")
    page.get_by_role("alert").filter(has_text="not an image that can be read").wait_for()
    page.locator("#one input").set_input_files(place / "a.jpg")
    page.get_by_role("status").filter(has_text="Not sure: ").wait_for()
    assert not page.get_by_role("alert").is_visible()
    guesses = page.locator("#guesses button")
    assert guesses.count() == 5
    assert {text.splitlines()[0] for text in guesses.all_inner_texts()} < set(NAMES)
    first = page.locator("#heat").get_attribute("src")
    guesses.nth(1).focus()
    page.keyboard.press("Enter")
    assert guesses.nth(1).get_attribute("aria-pressed") == "true"
    assert guesses.nth(0).get_attribute("aria-pressed") == "false"
    assert page.locator("#heat").get_attribute("src") != first
    page.locator("#blocks .block").nth(4).wait_for()
    assert page.locator("#matches img").count() == 3
    page.locator("#matches img").first.evaluate("image => image.decode()")
    # a click on the drawing, and the list that a keyboard reaches
    page.locator('.figure.broad [data-layer="pool4"] .front').click()
    page.locator("#channels h3").filter(has_text="pool4").wait_for()
    page.get_by_label("layer").select_option("fc8")
    page.locator("#channels h3").filter(has_text="fc8").wait_for()
    assert page.locator("#channels img").count() == 7
    page.locator("#a input").set_input_files(place / "a.jpg")
    page.locator("#b input").set_input_files(place / "b.jpg")  # of another size
    page.locator("#difference").filter(has_text="LPIPS, compared at 64 × 48").wait_for()
    page.locator("#b input").set_input_files(place / "no.jpg")
    page.get_by_role("alert").filter(has_text="not an image").wait_for()
    assert page.locator("#difference").inner_text() == ""
    assert page.evaluate(
        "[...document.images].every((image) => image.hidden || image.hasAttribute('alt'))"
    )
    assert page.wrong == []


def test_answers_of_photos_that_were_there_before(
    browser: Any, server: Server, place: Path
) -> None:
    """They come late, and are not shown beside the photos of now."""
    page = opened(browser, server)
    held: list[Any] = []
    for routes in ("**/v1/distance*", "**/v1/channels?strongest=16*"):
        page.route(routes, lambda route: held.append(route))

    def release(route: Any) -> None:
        with page.expect_response(route.request.url):
            route.continue_()
        page.wait_for_timeout(300)

    for name in ("a", "b"):
        page.locator(f"#{name} input").set_input_files(place / f"{name}.jpg")
    page.wait_for_timeout(500)
    page.locator("#b input").set_input_files(place / "a.jpg")
    page.wait_for_timeout(500)
    first, second = held
    release(second)
    page.locator("#difference").filter(has_text="0.000 LPIPS").wait_for()
    release(first)
    assert page.locator("#difference").inner_text().startswith("0.000 LPIPS")
    page.locator("#one input").set_input_files(place / "a.jpg")
    page.locator("#blocks .block").nth(4).wait_for()
    page.get_by_label("layer").select_option("fc8")
    page.locator("#one input").set_input_files(place / "b.jpg")
    page.locator("#status").filter(has_text="Not sure: ").wait_for()
    release(held[2])
    assert page.locator("#channels").inner_text() == ""


def test_classes_of_one_name_have_maps_of_their_own(browser: Any, tmp_path: Path) -> None:
    names = ("crane",) * 7
    running = Server("--model", model_file(tmp_path / "m.safetensors", class_names=names))
    try:
        page = watched(browser, running.url)
        page.goto(running.url)
        page.evaluate(GIVEN, ["paste", "body", list(PHOTO)])
        guesses = page.locator("#guesses button")
        guesses.nth(4).wait_for()
        shown = []
        for at in range(5):
            guesses.nth(at).click()
            shown.append(page.locator("#heat").get_attribute("src"))
        asked = f"{running.url}/v1/explain?form=page&top=5"
        maps = httpx.post(asked, files={"file": PHOTO}).json()["maps"]
        assert shown == [one["picture"] for one in maps]
        assert len(set(shown)) > 2
        assert page.wrong == []
    finally:
        running.process.kill()
        running.process.communicate()


def test_paste_and_drop(browser: Any, server: Server) -> None:
    page = opened(browser, server)
    for kind, target in (("paste", "body"), ("drop", "#one"), ("drop", "h1")):
        page.evaluate("document.getElementById('status').textContent = ''")
        page.evaluate(GIVEN, [kind, target, list(PHOTO)])
        page.get_by_role("status").filter(has_text="Not sure: ").wait_for()
    assert page.wrong == []


def test_narrow_dark_and_by_keyboard(browser: Any, server: Server, place: Path) -> None:
    page = opened(browser, server, viewport={"width": 360, "height": 740}, color_scheme="dark")
    page.locator("#one input").set_input_files(place / "a.jpg")
    page.locator("#blocks .block").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.locator(".figure.narrow svg").is_visible()
    assert not page.locator(".figure.broad svg").is_visible()
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(21, 23, 28)"
    page.evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(20):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.closest('[id]')?.id"))
    assert {"one", "mix", "guesses", "layer", "a", "b"} <= seen
    assert page.wrong == []
