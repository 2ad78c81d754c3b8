"""The pages as people meet them: by keyboard, on a phone, while the server is away, and without a script or a style that the policy forbids."""

import re

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from .watching import Roomtape, record, until

pytestmark = pytest.mark.timeout(120)


def test_nobody_sees_a_page_without_signing_in(browser: Browser, roomtape: Roomtape) -> None:
    context = browser.new_context(base_url=roomtape.address)
    page = context.new_page()
    for path in ("/", "/record", "/recordings/0193f0f0-0000-7000-8000-000000000000"):
        page.goto(path)
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    context.close()


def test_a_login_link_is_not_used_up_by_looking_at_it_but_works_once(browser: Browser, roomtape: Roomtape, signed_in: BrowserContext) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(roomtape.login)  # `signed_in` has used it already
    expect(page.get_by_role("button", name="Sign in")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("used")
    expect(page.get_by_role("alert").locator("code")).to_have_text("roomtape login")
    context.close()


def test_an_unknown_recording_is_not_found(page: Page) -> None:
    for name in ("0193f0f0-0000-7000-8000-000000000000", "nonsense"):
        came = page.goto(f"/recordings/{name}")
        assert came is not None
        assert came.status == 404
        expect(page.get_by_role("heading", name="Not found")).to_be_visible()


def test_a_recording_is_made_named_deleted_and_brought_back_by_keyboard(page: Page) -> None:
    record(page, "<b>Draft</b> & more")
    until(lambda: "safe on the server" in page.locator("#safe").inner_text(), limit_s=15, what="the first piece is safe")
    page.locator("body").press("r")
    page.wait_for_url("**/recordings/*", timeout=30_000)
    expect(page.get_by_role("heading", level=1)).to_have_text("<b>Draft</b> & more")  # markup in a name stays text
    name = page.get_by_label("Name")
    name.fill("Final")
    name.press("Enter")
    expect(page).to_have_title(re.compile("Final"))
    page.reload()
    expect(page.get_by_label("Name")).to_have_value("Final")
    page.get_by_role("button", name="Delete").press("Enter")
    page.get_by_role("button", name="Bring back").press("Enter")
    expect(page.get_by_role("button", name="Delete")).to_be_visible()


def test_what_the_server_does_not_take_is_told_and_sent_later(page: Page) -> None:
    away = True

    def answer(route: Route) -> None:
        if away:
            route.abort()
        else:
            route.fallback()

    page.route("**/upload-segment?*", answer)
    record(page, "Away")
    until(lambda: "will be sent when the server is back" in page.locator("#safe").inner_text(), limit_s=15, what="the page says that nothing goes out")
    assert page.locator("#safe").inner_text().startswith("Nothing is on the server yet")
    page.get_by_role("button", name="Stop").click()
    until(lambda: "Keep this page open" in page.locator("#safe").inner_text(), limit_s=15, what="the page asks to be kept open")
    away = False
    page.wait_for_url("**/recordings/*", timeout=40_000)
    until(lambda: page.locator("#about").get_attribute("data-status") == "completed", limit_s=30, what="all of it arrived")


def test_pieces_that_are_refused_can_be_saved(page: Page) -> None:
    problem = '{"status": 409, "code": "recording_completed", "title": "Closed", "detail": "Closed."}'
    page.route("**/upload-segment?*", lambda route: route.fulfill(status=409, content_type="application/problem+json", body=problem))
    record(page, "Refused")
    expect(page.get_by_role("alert")).to_contain_text("closed elsewhere", timeout=15_000)
    with page.expect_download() as saved:
        page.get_by_role("link", name="Save piece 1").click()
    assert saved.value.path().read_bytes()[:4] == b"\x1a\x45\xdf\xa3"
    page.on("dialog", lambda dialog: dialog.accept())  # leaving asks, for bytes are only here


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_scrolls_sideways_on_a_phone(browser: Browser, signed_in: BrowserContext, roomtape: Roomtape, scheme: str) -> None:
    kept = signed_in.storage_state()
    context = browser.new_context(
        base_url=roomtape.address, viewport={"width": 360, "height": 740}, color_scheme="dark" if scheme == "dark" else "light", storage_state=kept
    )
    page = context.new_page()
    for path in ("/", "/record", "/recordings/none"):
        page.goto(path)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 360, path
    context.close()
