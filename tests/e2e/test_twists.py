"""The pages when things turn: signed out, stopped or deleted elsewhere, full, empty, failed, given up, or seen by a stranger."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from .watching import STATE, Roomtape, fresh_link, post, record, until

pytestmark = pytest.mark.timeout(120)

SAFE = re.compile("safe on the server")


@pytest.fixture
def own(browser: Browser, roomtape: Roomtape) -> Iterator[BrowserContext]:
    """Somebody with a session of their own, which may be ended."""
    context = browser.new_context(permissions=["camera", "microphone"], base_url=roomtape.address)
    sign_in(context.new_page(), roomtape)
    yield context
    context.close()


def sign_in(page: Page, roomtape: Roomtape) -> None:
    page.goto(fresh_link(roomtape))
    page.get_by_role("button", name="Sign in").click()


def begun(page: Page, title: str) -> dict[str, str]:
    """A recording that is open and holds nothing; the page is any of ours."""
    page.goto("/")
    return post(page, "meetings/start-recording", title=title)


def newest(page: Page) -> str:
    told = page.context.request.get("/api/v1/recordings?limit=1").json()
    return str(told["recordings"][0]["id"])


def status(page: Page, name: str) -> str:
    return str(page.context.request.get(f"/api/v1/recordings/{name}/status").json()["status"])


def send(page: Page, where: dict[str, str], body: bytes) -> None:
    """One piece, of whatever bytes."""
    csrf = page.locator('meta[name="csrf-token"]').get_attribute("content")
    query = f"meetingId={where['meetingId']}&recordingId={where['recordingId']}&trackId={where['trackId']}&segmentIndex=1"
    came = page.context.request.post(f"/api/v1/meetings/upload-segment?{query}", data=body, headers={"X-CSRF-Token": csrf or ""})
    assert came.ok, came.text()


def test_a_recording_goes_on_after_signing_out_and_in_again_elsewhere(own: BrowserContext, roomtape: Roomtape) -> None:
    page, other = own.pages[0], own.new_page()
    record(page, "Signed out and in")
    safe = page.locator("#safe")
    expect(safe).to_contain_text(SAFE, timeout=20_000)
    other.goto("/")
    other.get_by_role("button", name="Sign out").click()
    expect(safe).to_contain_text("sign in again in another tab", timeout=20_000)
    sign_in(other, roomtape)
    expect(safe).not_to_contain_text("signed out", timeout=30_000)
    expect(page.get_by_role("button", name="Stop")).to_be_enabled()
    expect(page.locator("#trouble")).to_be_hidden()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url("**/recordings/*", timeout=40_000)
    until(lambda: status(page, page.url.rsplit("/", 1)[1]) == "completed", limit_s=30, what="all of it arrived")


def test_nothing_records_by_itself_at_the_next_sign_in(own: BrowserContext, roomtape: Roomtape) -> None:
    """The button was pressed while nobody was signed in: whoever signs in later has not pressed it."""
    page, other = own.pages[0], own.new_page()
    page.goto("/record")
    key = page.get_by_role("button", name="Record")
    expect(key).to_be_enabled(timeout=20_000)
    other.goto("/")
    other.get_by_role("button", name="Sign out").click()
    expect(other).to_have_url(re.compile("/login"))
    key.click()
    expect(page.locator("#trouble")).to_contain_text("You are signed out", timeout=20_000)
    expect(key).to_be_enabled()
    sign_in(other, roomtape)
    expect(other).not_to_have_url(re.compile("/login"))
    page.wait_for_timeout(5_000)  # longer than it waited between two tries
    expect(page.locator("[data-state=ready]")).to_be_attached()
    key.click()
    expect(page.get_by_role("button", name="Stop")).to_be_enabled(timeout=20_000)
    page.on("dialog", lambda dialog: dialog.accept())


def test_a_recorder_that_is_stopped_elsewhere_says_so_and_sends_the_rest(page: Page) -> None:
    record(page, "Stopped elsewhere")
    expect(page.locator("#safe")).to_contain_text(SAFE, timeout=20_000)
    name = newest(page)
    page.route("**/upload-segment?*", lambda route: route.abort())  # the page stays until all is sent
    post(page, f"recordings/{name}/stop")
    expect(page.get_by_role("alert")).to_contain_text("Stopped by somebody else", timeout=20_000)
    page.unroute_all()
    page.wait_for_url(f"**/recordings/{name}", timeout=40_000)
    until(lambda: status(page, name) == "completed", limit_s=30, what="the rest arrived")


def test_a_recorder_whose_recording_is_deleted_says_so_and_ends(page: Page) -> None:
    record(page, "Deleted elsewhere")
    expect(page.locator("#safe")).to_contain_text(SAFE, timeout=20_000)
    name = newest(page)
    post(page, f"recordings/{name}/stop")
    csrf = page.locator('meta[name="csrf-token"]').get_attribute("content")
    came = page.context.request.delete(f"/api/v1/recordings/{name}", headers={"X-CSRF-Token": csrf or ""})
    assert came.ok, came.text()
    expect(page.get_by_role("alert")).to_contain_text("This recording was deleted", timeout=20_000)
    expect(page.locator("[data-state=over]")).to_be_attached(timeout=20_000)
    page.on("dialog", lambda dialog: dialog.accept())


def test_a_full_disk_is_told_in_the_servers_words(page: Page) -> None:
    full = '{"status": 507, "code": "storage_full", "title": "Full", "detail": "There is no room left for recordings."}'

    def refuse(route: Route) -> None:
        route.fulfill(status=507, content_type="application/problem+json", body=full)

    page.route("**/upload-segment?*", refuse)
    record(page, "Full")
    expect(page.locator("#safe")).to_contain_text("There is no room left for recordings. Nothing is lost while this page stays open.", timeout=20_000)
    page.unroute_all()
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url("**/recordings/*", timeout=60_000)


def test_what_nobody_finishes_can_be_finished_by_hand(page: Page, signed_in: BrowserContext) -> None:
    gone = signed_in.new_page()
    record(gone, "Given up")
    expect(gone.locator("#safe")).to_contain_text(SAFE, timeout=20_000)
    gone.close()
    name = newest(page)
    page.clock.set_fixed_time(datetime.now(UTC) + timedelta(days=1))  # a reader's clock is no measure
    page.goto("/")
    expect(page.locator(".row", has=page.locator(f"#row-{name}")).locator(".row-length")).to_have_text(re.compile(r"^\s*(–|0:\d\d)\s*$"))
    page.goto(f"/recordings/{name}")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("#about")).to_contain_text("no more pieces are taken")
    page.get_by_role("button", name="Finish").click()
    until(lambda: status(page, name) == "completed", limit_s=30, what="it is finished")
    expect(page.get_by_role("button", name="Finish")).to_be_hidden()


def test_a_recording_without_a_piece_says_that_nothing_was_recorded(page: Page) -> None:
    name = begun(page, "Empty")["recordingId"]
    post(page, f"recordings/{name}/stop")
    page.goto(f"/recordings/{name}")
    expect(page.locator("#stage-say")).to_have_text("Nothing was recorded.")
    expect(page.locator("#about")).to_contain_text("Nothing was recorded.")


def test_a_failed_recording_offers_its_pieces_as_they_came(page: Page) -> None:
    where = begun(page, "Broken")
    name, body = where["recordingId"], b"no media at all"
    send(page, where, body)
    post(page, "meetings/complete-recording", meetingId=where["meetingId"], recordingId=name)
    until(lambda: status(page, name) == "failed", limit_s=30, what="no media fails")
    page.goto(f"/recordings/{name}")
    expect(page.get_by_role("link", name="Download")).to_be_hidden()
    with page.expect_download() as saved:
        page.get_by_role("link", name="Piece 1").click()
    assert saved.value.path().read_bytes() == body


def test_a_stop_at_once_still_records_something(page: Page) -> None:
    record(page, "At once")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url("**/recordings/*", timeout=30_000)
    until(lambda: status(page, page.url.rsplit("/", 1)[1]) == "completed", limit_s=30, what="it holds media")


def test_devices_that_give_nothing_leave_no_recording(page: Page) -> None:
    before = newest(page)
    page.goto("/record")
    expect(page.locator("[data-state=ready]")).to_be_attached(timeout=15_000)
    page.evaluate("() => document.getElementById('preview').srcObject.getTracks().forEach((track) => track.stop())")
    page.get_by_role("button", name="Record").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was recorded", timeout=20_000)
    expect(page.locator("[data-state=over]")).to_be_attached()
    assert newest(page) == before


def test_neither_camera_nor_microphone_has_a_sentence(page: Page) -> None:
    page.goto("/record")
    expect(page.locator("[data-state=ready]")).to_be_attached(timeout=15_000)
    page.get_by_label("Camera", exact=True).select_option("none")
    expect(page.locator("[data-state=ready]")).to_be_attached(timeout=15_000)
    page.get_by_label("Microphone", exact=True).select_option("none")
    expect(page.get_by_role("alert")).to_contain_text("Neither a camera nor a microphone is chosen")


def publish(page: Page, name: str) -> None:
    csrf = page.locator('meta[name="csrf-token"]').get_attribute("content")
    came = page.context.request.patch(f"/api/v1/recordings/{name}", data={"visibility": "public"}, headers={"X-CSRF-Token": csrf or ""})
    assert came.ok, came.text()


def test_a_public_recording_plays_for_strangers_who_can_change_nothing(browser: Browser, page: Page, roomtape: Roomtape) -> None:
    running = begun(page, "Public and running")["recordingId"]
    publish(page, running)
    context = browser.new_context(base_url=roomtape.address)
    stranger = context.new_page()
    stranger.goto(f"/recordings/{running}")
    expect(stranger.get_by_role("heading", name="Public and running")).to_be_visible()
    expect(stranger.get_by_role("button")).to_have_count(0)
    post(page, f"recordings/{running}/stop")
    expect(stranger.locator("#stage-say")).to_have_text("Nothing was recorded.", timeout=15_000)  # it moves for strangers too

    record(page, "Public")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_url("**/recordings/*", timeout=30_000)
    publish(page, page.url.rsplit("/", 1)[1])
    stranger.goto(page.url)
    until(lambda: stranger.evaluate(STATE)["ready"] >= 2, limit_s=20, what="a stranger sees it")
    context.close()


def test_a_fresh_link_leads_to_the_page_that_was_asked_for(browser: Browser, roomtape: Roomtape) -> None:
    context = browser.new_context(base_url=roomtape.address)
    page = context.new_page()
    page.goto("/record")
    sign_in(page, roomtape)
    page.wait_for_url("**/record")
    context.close()
