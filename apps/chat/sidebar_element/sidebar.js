// Carries out what sidebar_panel.py orders: { jump, focus, change }, each a number that grows and what it is about.

const WAIT_MS = 10_000; // for an element that is not drawn yet
const AFTER_DRAWING_MS = 300; // by then the elements around a new message have their heights
const MARKED_MS = 2500;
const COVERING = 768; // pixels; up to this width Streamlit's sidebar lies over the page

function whenDrawn(selector, act) {
    const found = document.querySelector(selector);
    if (found) return act(found);
    const observer = new MutationObserver(() => {
        const element = document.querySelector(selector);
        if (!element) return;
        observer.disconnect();
        act(element);
    });
    observer.observe(document.body, { childList: true, subtree: true });
    setTimeout(() => observer.disconnect(), WAIT_MS);
}

const drafts = new Map(); // by conversation; "" is a new one
const composer = () => document.querySelector('[data-testid="stChatInputTextArea"]');
let draftAtClick = ""; // what a person types after the click that opens a conversation belongs to that one

function noteDraft() {
    draftAtClick = composer()?.value ?? "";
}
addEventListener("click", noteDraft, { capture: true });
addEventListener("keydown", ({ ctrlKey, metaKey }) => (ctrlKey || metaKey) && noteDraft(), { capture: true });

function swapDraft(left, opened) {
    const box = composer();
    if (!box || left === opened) return;
    const typedSince = box.value.startsWith(draftAtClick) ? box.value.slice(draftAtClick.length) : box.value;
    drafts.set(left, draftAtClick);
    const draft = (drafts.get(opened) ?? "") + typedSince;
    if (draft === box.value) return;
    // React notices a value only if the prototype's setter sets it.
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(box, draft);
    box.dispatchEvent(new Event("input", { bubbles: true }));
}

const ORDERS = {
    jump: (key) =>
        whenDrawn(`.st-key-${key}`, (message) => {
            message.scrollIntoView({ block: "center" });
            setTimeout(() => message.scrollIntoView({ block: "center" }), AFTER_DRAWING_MS);
            message.classList.add("found-message");
            setTimeout(() => message.classList.remove("found-message"), MARKED_MS);
        }),
    focus: (key) =>
        whenDrawn(`.st-key-${key} :is(input, textarea)`, (field) => {
            field.focus();
            if (field.matches("input")) requestAnimationFrame(() => field.select());
        }),
    change: ([left, opened]) => {
        swapDraft(left, opened);
        if (window.innerWidth <= COVERING) {
            document.querySelector('[data-testid="stSidebarCollapseButton"] button')?.click();
        }
    },
};

export default function ({ data, parentElement }) {
    if (data.number < (parentElement.dataNumber ?? 0)) return; // apps/shared/ordered_data.py
    parentElement.dataNumber = data.number;
    const done = JSON.parse(parentElement.dataset.done ?? "null");
    parentElement.dataset.done = JSON.stringify(data.orders);
    if (done === null) return; // what was ordered before this page was loaded
    for (const [name, [number, about]] of Object.entries(data.orders)) {
        if (number !== done[name]?.[0]) ORDERS[name](about);
    }
}
