"""Pages in a real Chromium, and whatever goes wrong in them."""

from __future__ import annotations

from typing import Any

# dispatched as an event, with a file, as a person pastes or drops one
GIVEN = """([kind, target, bytes]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "a.jpg", { type: "image/jpeg" }));
    const event = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: data, bubbles: true })
        : new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true });
    document.querySelector(target).dispatchEvent(event);
}"""


def watched(browser: Any, url: str, **look: Any) -> Any:
    """A new page, not gone anywhere yet; what goes wrong in it, or out of it, is kept in `wrong`."""
    page = browser.new_context(**look).new_page()
    page.set_default_timeout(30_000)
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    own = (url, "blob:", "data:")
    page.on("request", lambda one: one.url.startswith(own) or page.wrong.append(one.url))
    page.on("console", lambda one: "Content Security" in one.text and page.wrong.append(one.text))
    return page
