// The end of the page. While the page is at its end it stays there as the conversation grows; a person who scrolls up
// stays where they are and gets a button back. After sending, and in a new chat, the composer has the focus, unless a
// person has gone to another field meanwhile.
//
// Streamlit's own following is not used: it pulled the page back from a person who scrolled up slowly.

const AT_END = 60; // pixels: so near the end the page follows
const COMPOSER = '[data-testid="stChatInputTextArea"]';
const FIELD = "input, textarea, [contenteditable=true]";
// Streamlit gives its colours only to components; the gauge beside this one needs them, too.
const COLOURS = ["text", "background", "border", "primary", "orange", "red", "red-text"].map((name) => `--st-${name}-color`);
const ARROW = '<svg viewBox="0 0 24 24" aria-hidden="true"><path d="M12 5v14M6 13l6 6 6-6"/></svg>';

class PageEnd {
    constructor(parent) {
        this.main = parent.closest('[data-testid="stMain"]') ?? document.scrollingElement;
        this.follows = true;
        this.top = 0;
        this.button = document.createElement("button");
        this.button.type = "button";
        this.button.className = "to-end";
        this.button.innerHTML = ARROW;
        this.button.title = this.button.ariaLabel = "To the end";
        this.button.onclick = () => this.goToEnd();
        parent.append(this.button);
        this.main.addEventListener("scroll", () => this.scrolled(), { passive: true });
        this.main.addEventListener("click", (event) => this.clicked(event), { capture: true });
        this.drawn = new MutationObserver(() => this.focusComposer());
        this.size = new ResizeObserver(() => this.resized());
        const content = this.main.querySelector('[data-testid="stMainBlockContainer"]');
        for (const element of [this.main, content]) if (element) this.size.observe(element);
    }

    show(data) {
        const before = this.data;
        this.data = data;
        const style = getComputedStyle(this.button);
        for (const name of COLOURS) this.main.style.setProperty(name, style.getPropertyValue(name));
        const isNew = data.conversation === "" && before?.conversation !== "";
        const hasAsked = before && data.asked !== before.asked;
        const hasBegun = data.is_live && !before?.is_live && this.isAtEnd();
        const hasLostFocus = before?.is_live && !data.is_live && document.activeElement === document.body;
        if (!before || hasAsked || hasBegun || data.conversation !== before.conversation) this.follows = true;
        this.resized();
        if (!before || isNew || hasAsked || hasLostFocus) this.focusComposer();
    }

    isAtEnd() {
        return this.main.scrollHeight - this.main.clientHeight - this.main.scrollTop < AT_END;
    }

    goToEnd() {
        this.follows = true;
        this.main.scrollTop = this.main.scrollHeight;
        this.resized();
        this.focusComposer();
    }

    // Streamlit may draw the composer later than this, and call this later than a person's next key.
    focusComposer() {
        if (!matchMedia("(pointer: fine)").matches) return;
        const isInField = document.activeElement?.matches(FIELD);
        const composer = document.querySelector(COMPOSER);
        if (!isInField) composer?.focus({ preventScroll: true });
        if (isInField || composer) this.drawn.disconnect();
        else this.drawn.observe(document.body, { childList: true, subtree: true });
    }

    scrolled() {
        if (this.isAtEnd()) this.follows = true;
        else if (this.main.scrollTop < this.top) this.follows = false; // only a person scrolls up
        this.top = this.main.scrollTop;
        this.button.classList.toggle("shown", !this.isAtEnd());
    }

    // What a person unfolds or opens at the end of a finished conversation must not move out of view.
    clicked(event) {
        if (!this.data?.is_live && event.target.closest('[data-testid="stMainBlockContainer"]')) this.follows = false;
    }

    resized() {
        if (this.follows) this.main.scrollTop = this.main.scrollHeight;
        this.scrolled();
    }
}

const ends = new WeakMap(); // by the element that the button is in

export default function ({ data, parentElement }) {
    if (data.number < (parentElement.dataNumber ?? 0)) return; // apps/shared/ordered_data.py
    parentElement.dataNumber = data.number;
    if (!ends.has(parentElement)) ends.set(parentElement, new PageEnd(parentElement));
    ends.get(parentElement).show(data);
}
