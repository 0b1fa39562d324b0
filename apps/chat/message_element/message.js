// Draws the messages of the chat: text that the server has made into HTML, and the bar of buttons and figures below it.
//
// Loaded once for a page (message_panel.draw_style). Each message is a component of its own with one line of script that
// hands its data to `draw`. While an answer is written, its data does not change: the server puts what is new into a
// hidden element beside it (the feed), and only blocks that changed are touched, so a selection in the text stays.

const ICONS = {
    copy: '<rect x="9" y="9" width="11" height="12" rx="1.5"/><path d="M15 5V4a1 1 0 0 0-1-1H5a1 1 0 0 0-1 1v12h1"/>',
    again: '<path d="M19.5 12a7.5 7.5 0 1 1-2.2-5.3L20 9.4"/><path d="M20 4v5.4h-5.4"/>',
    continue: '<path d="M5 5v14M10 5.5v13l9-6.5z"/>',
    edit: '<path d="M4 20h4L19.5 8.5a1.8 1.8 0 0 0 0-2.5L18 4.5a1.8 1.8 0 0 0-2.5 0L4 16z"/>',
    delete: '<path d="M4.5 7h15M9.5 7V4.5h5V7M6.5 7l1 13h9l1-13M10 11v5M14 11v5"/>',
    earlier: '<path d="M15 5l-7 7 7 7"/>',
    later: '<path d="M9 5l7 7-7 7"/>',
};
const FOLDED_LINES = 14;
const FOLDED_LENGTH = 1500; // characters

// What the server's HTML may have. It has nothing else; this is the second wall.
const TAGS = new Set(
    ("p h1 h2 h3 h4 h5 h6 ul ol li blockquote pre code em strong del a hr div span table thead tbody tr th td button " +
        "svg rect path math semantics annotation mrow mi mn mo ms mtext mspace mfrac msqrt mroot msub msup msubsup munder " +
        "mover munderover mtable mtr mtd mstyle mpadded mphantom menclose").split(" "),
);
const ATTRIBUTES = new Set(
    ("dir class value data-marker data-host data-ui href title target rel type aria-label aria-hidden viewbox x y width " +
        "height rx d display encoding columnalign displaystyle fence form accent accentunder largeop mathvariant " +
        "movablelimits notation scriptlevel separator stretchy symmetric linethickness depth lspace rspace voffset minsize " +
        "maxsize").split(" "),
);

function parsed(html) {
    const template = document.createElement("template"); // nothing in it is loaded
    template.innerHTML = html;
    for (const element of [...template.content.querySelectorAll("*")]) {
        if (!TAGS.has(element.localName)) {
            element.replaceWith(element.textContent);
            continue;
        }
        for (const { name, value } of [...element.attributes]) {
            const isLink = name === "href" && !/^(https?:\/\/|mailto:)/i.test(value);
            if (isLink || !ATTRIBUTES.has(name.toLowerCase())) element.removeAttribute(name);
        }
    }
    return template.content.firstElementChild ?? document.createElement("p");
}

function morph(old, fresh) {
    if (old.nodeName !== fresh.nodeName) {
        old.replaceWith(fresh);
    } else if (old.nodeType === Node.TEXT_NODE) {
        if (fresh.data.startsWith(old.data)) old.appendData(fresh.data.slice(old.data.length));
        else old.data = fresh.data;
    } else {
        for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
        for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
        const children = [...fresh.childNodes];
        children.forEach((child, at) => (old.childNodes[at] ? morph(old.childNodes[at], child) : old.append(child)));
        while (old.childNodes.length > children.length) old.lastChild.remove();
    }
}

async function copy(text, button, label) {
    let words = "Copied";
    try {
        await navigator.clipboard.writeText(text);
    } catch {
        words = "The browser does not allow it: mark the text and copy it";
    }
    button.title = button.ariaLabel = words;
    button.classList.toggle("done", words === "Copied");
    setTimeout(() => {
        button.title = button.ariaLabel = label;
        button.classList.remove("done");
    }, 2000);
}

function makeButton({ name, about, label, disabled }) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.action = name;
    button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name] ?? ""}</svg>`;
    if (label) button.append(label);
    else button.title = button.ariaLabel = about;
    button.disabled = Boolean(disabled);
    return button;
}

class Message {
    constructor(parent) {
        this.root = document.createElement("div");
        this.text = document.createElement("div");
        this.fold = document.createElement("button");
        this.problem = document.createElement("div");
        this.bar = document.createElement("div");
        this.buttons = document.createElement("div");
        this.figures = document.createElement("div");
        this.root.append(this.text, this.fold, this.problem, this.bar);
        this.bar.append(this.buttons, this.figures);
        this.text.className = "text";
        this.fold.className = "fold";
        this.fold.type = "button";
        this.fold.hidden = true;
        this.problem.className = "problem";
        this.problem.role = "alert";
        this.bar.className = "bar";
        this.buttons.className = "buttons";
        this.figures.className = "figures";
        this.blocks = [];
        this.size = 0;
        this.fold.onclick = () => this.setFolded(!this.text.classList.contains("folded"));
        this.root.onclick = (event) => this.click(event.target.closest("button"));
        parent.append(this.root);
    }

    show(data, act) {
        this.act = act;
        const isOlder = data.is_live && this.data?.is_live && this.data.id === data.id && data.size < this.size;
        this.data = data;
        this.root.className = `chat-message ${data.role}`;
        this.root.ariaBusy = String(data.is_live);
        this.hasAskedForAll = false;
        if (data.role === "question") this.showQuestion(data.text);
        else if (!isOlder) this.grow(0, data.blocks, data.size, data.thought);
        this.showThought(data);
        if (this.problem.textContent !== data.problem) this.problem.textContent = data.problem;
        this.showFigures(data.figures, data.about);
        this.showButtons();
        this.watch(data.is_live);
    }

    showQuestion(text) {
        if (this.text.textContent === text) return;
        this.text.textContent = text;
        const isLong = text.length > FOLDED_LENGTH || text.split("\n").length > FOLDED_LINES;
        this.fold.hidden = !isLong;
        this.setFolded(isLong);
    }

    setFolded(isFolded) {
        this.text.classList.toggle("folded", isFolded);
        this.fold.textContent = isFolded ? "Show all of it" : "Show less";
        this.fold.ariaExpanded = String(!isFolded);
    }

    // Replaces the blocks from number `first` on.
    grow(first, blocks, size, thought) {
        if (first > this.blocks.length) {
            if (!this.hasAskedForAll) this.act("redraw"); // the page was so busy that it missed some
            this.hasAskedForAll = true;
            return;
        }
        this.size = size;
        this.divide(thought);
        let hasChanged = false; // to measure what has not changed would lay out the whole page for each message
        blocks.forEach((html, index) => {
            const at = first + index;
            if (this.blocks[at] === html) return;
            const block = parsed(html);
            const [box, place] = at < thought ? [this.thoughtText, at] : [this.text, at - thought];
            if (box.children[place]) morph(box.children[place], block);
            else box.append(block);
            this.blocks[at] = html;
            hasChanged = true;
        });
        this.blocks.length = first + blocks.length;
        while (this.text.children.length > this.blocks.length - thought) this.text.lastElementChild.remove();
        for (const box of hasChanged ? this.root.querySelectorAll("pre, .table, .formula") : []) {
            if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // the arrow keys scroll it
        }
    }

    // The first `thought` blocks are in the part that is folded.
    divide(thought) {
        if (thought && !this.thought) {
            this.thought = document.createElement("details");
            this.thought.className = "thought";
            this.thought.append(document.createElement("summary"), document.createElement("div"));
            this.thought.firstChild.onclick = () => (this.hasToggled = true);
            this.thoughtText = this.thought.lastChild;
            this.thoughtText.className = "text";
            this.root.prepend(this.thought);
        }
        if (!this.thought) return;
        this.thought.hidden = !thought;
        while (this.thoughtText.children.length < thought && this.text.firstElementChild) {
            this.thoughtText.append(this.text.firstElementChild);
        }
        while (this.thoughtText.children.length > thought) this.text.prepend(this.thoughtText.lastElementChild);
    }

    // Open while it is written, and if nothing follows it; a person's own choice stays.
    showThought({ is_live, thinks, thought, thought_label }) {
        if (!this.thought) return;
        const summary = this.thought.firstChild;
        if (summary.textContent !== thought_label) summary.textContent = thought_label;
        if (!this.hasToggled) this.thought.open = is_live ? thinks : thought === this.blocks.length;
    }

    showFigures(figures, about) {
        if (this.figures.textContent !== figures) this.figures.textContent = figures;
        this.figures.title = about ?? "";
    }

    showButtons() {
        const { actions, branch } = this.data;
        const key = JSON.stringify([actions, branch]);
        if (this.buttonsKey === key) return;
        this.buttonsKey = key;
        const focused = this.buttons.contains(document.activeElement) ? document.activeElement.dataset.action : null;
        const parts = actions.map(makeButton);
        if (branch) {
            const place = document.createElement("span");
            place.textContent = `${branch.at}/${branch.of}`;
            parts.push(makeButton({ name: "earlier", about: "The earlier version", disabled: branch.at === 1 }), place);
            parts.push(makeButton({ name: "later", about: "The later version", disabled: branch.at === branch.of }));
        }
        this.buttons.replaceChildren(...parts);
        if (focused) {
            const same = this.buttons.querySelector(`[data-action="${focused}"]:not(:disabled)`);
            (same ?? this.buttons.querySelector("button:not(:disabled)"))?.focus({ preventScroll: true });
        }
    }

    click(button) {
        if (!button) return;
        if (button.classList.contains("copy")) {
            copy(button.closest(".code").querySelector("code").textContent, button, "Copy the code");
        } else if (button.dataset.action === "copy") {
            copy(this.data.text, button, "Copy");
        } else if (button.dataset.action) {
            this.act(button.dataset.action);
        }
    }

    watch(isLive) {
        if (!isLive) {
            this.observer?.disconnect();
            this.observer = null;
            this.feed = null;
        } else if (!this.observer) {
            const box = this.root.closest('[data-testid="stVerticalBlock"]') ?? document.body;
            this.observer = new MutationObserver(() => this.readFeed(box));
            this.observer.observe(box, { childList: true, subtree: true, attributeFilter: ["data-feed"] });
            this.readFeed(box);
        }
    }

    readFeed(box) {
        const feed = box.querySelector(`[data-message="${this.data.id}"]`)?.dataset.feed;
        if (!feed || feed === this.feed) return;
        this.feed = feed;
        const update = JSON.parse(feed);
        if (update.size < this.size) return; // of the run before
        this.grow(update.first, update.blocks, update.size, update.thought);
        this.showThought({ ...update, is_live: true });
        this.showFigures(update.figures);
    }
}

const messages = new WeakMap(); // by the element that the message is in

function draw({ data, parentElement, setTriggerValue }) {
    if (data.number < (parentElement.dataNumber ?? 0)) return; // apps/shared/ordered_data.py
    parentElement.dataNumber = data.number;
    if (!messages.has(parentElement)) messages.set(parentElement, new Message(parentElement));
    messages.get(parentElement).show(data, (name) => setTriggerValue("action", name));
}

const waiting = globalThis.chatMessages ?? [];
globalThis.chatMessages = { push: draw };
if (Array.isArray(waiting)) waiting.forEach(draw);

export default function () {}
